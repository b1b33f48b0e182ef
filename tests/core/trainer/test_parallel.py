"""Devices that share samples: what the libraries are given, what is read back, and what each rank counts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ado_actuators.sfttrainer.core.protocol import supported
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
from ado_actuators.sfttrainer.core.trainer import arguments, fsdp, parallel
from ado_actuators.sfttrainer.core.trainer.errors import BadInput, Refused
from ado_actuators.sfttrainer.core.trainer.timing import Counts
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = pytest.mark.torch


def workload(**change: Any) -> JobWorkload:
    """Return a workload with FSDP2 on eight GPUs."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 16, "batch_size": 8, "number_gpus": 8}
    return JobWorkload(**parse({**values, "distributed_backend": "FSDP2", **change}).model_dump())


def job(**change: Any) -> Job:
    """Return the job of one of the eight processes."""
    return Job(id="test", workload=workload(**change), world_size=8, rank=3, local_rank=3)


def test_context_parallelism_is_a_mesh_of_accelerate() -> None:
    """The mesh has the devices that share samples and those that do not; rows have a length that all can divide."""
    accelerate = pytest.importorskip("accelerate")
    found = parallel.options(workload(context_parallel_size=4))
    mesh = found["parallelism_config"]
    assert isinstance(mesh, accelerate.ParallelismConfig)
    assert (mesh.cp_size, mesh.dp_shard_size, mesh.tp_size, mesh.total_size) == (4, 2, 1, 8)
    assert found["pad_to_multiple_of"] == 8
    assert fsdp.options(workload(context_parallel_size=4))["fsdp_config"]["version"] == 2
    assert parallel.options(workload()) == {}


def test_a_group_of_devices_gets_the_samples_of_one() -> None:
    """Eight samples are two for each of four groups, one for each of eight devices."""
    for change, samples in (({}, 1), ({"tensor_parallel_size": 2}, 2), ({"context_parallel_size": 4}, 4)):
        assert arguments.shared(job(**change), 1)["per_device_train_batch_size"] == samples
        asked = parse({**dataclasses.asdict(workload(**change))})
        assert (asked.device_batch_size, asked.replicas) == (samples, 8 // samples)


def test_with_tensor_parallelism_accelerate_does_not_shard() -> None:
    """transformers has divided the model already."""
    assert fsdp.options(workload(tensor_parallel_size=2)) == {}
    assert fsdp.variables(workload(tensor_parallel_size=2)) == {}


class Model:
    """A model that cannot be divided."""

    config = SimpleNamespace(model_type="gpt2")
    settings: Any = None

    @classmethod
    def prepare_distribute_model(cls, settings: Any) -> tuple[Any, None, None]:
        """Record the settings."""
        cls.settings = settings
        return settings, None, None

    @classmethod
    def maybe_distribute_model(cls, model: Any, settings: Any, mesh: Any) -> Any:
        """Raise the library's error."""
        raise ValueError("`tp_size=2` was requested, but `GPT2` has no `tp_plan`.")


def test_heads_that_the_devices_cannot_share_are_refused() -> None:
    """A part of a head has no device; also in the text part of a vision model."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    asked = workload(tensor_parallel_size=4)
    message = "tensor_parallel_size 4 does not divide the 2 num_key_value_heads of model tiny-llama-5m."
    assert supported.mismatch(asked, heads) == supported.mismatch(asked, {"text_config": heads}) == message
    assert supported.mismatch(workload(tensor_parallel_size=2), heads) is None


def test_a_model_without_a_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason of transformers; the devices that remain shard with FSDP2."""
    asked = job(tensor_parallel_size=2)
    with pytest.raises(
        Refused, match=r"tensor_parallel_size 2 is not possible with this model .gpt2.: transformers [\d.]+ has no plan"
    ):
        parallel.distribute(Model(), asked)
    assert (Model.settings.tp_size, Model.settings.fsdp_size) == (2, 4)
    parts: dict[str, Any] = {}
    monkeypatch.setattr(Model, "maybe_distribute_model", lambda model, settings, mesh: parts["lm_head.weight"])
    with pytest.raises(Refused, match=r"not possible with this model .gpt2.: KeyError: 'lm_head.weight'\.$"):
        parallel.distribute(Model(), asked)
    model = object()
    assert parallel.distribute(model, job()) is model


def test_releases_without_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property, and the installed release."""
    import transformers

    with pytest.raises(
        BadInput, match=f"tensor_parallel_size 2 needs a transformers .*; {transformers.__version__} is"
    ):
        parallel.distribute(torch.nn.Linear(1, 1), job(tensor_parallel_size=2))
    monkeypatch.delitem(transformers.TrainingArguments.__dataclass_fields__, "parallelism_config")
    with pytest.raises(
        BadInput, match=f"context_parallel_size 4 .*transformers {transformers.__version__} is installed"
    ):
        parallel.options(workload(context_parallel_size=4))


def test_what_ran_is_read_back() -> None:
    """Model and accelerate's mesh say it; another size than the workload's is not stored under it."""
    sharded = type("FSDPLlamaForCausalLM", (type("FSDPModule", (), {}),), {"_tp_size": 2})()
    trainer: Any = SimpleNamespace(model=sharded, model_wrapped=sharded)
    assert fsdp.wrapper(trainer) == "FSDP2, tensor parallel 2"
    assert fsdp.mismatch(workload(tensor_parallel_size=2), 8, "FSDP2, tensor parallel 2") is None
    assert fsdp.mismatch(workload(tensor_parallel_size=8), 8, "tensor parallel 8") is None
    plain: Any = SimpleNamespace(model=SimpleNamespace(_tp_size=2), model_wrapped=None)
    assert fsdp.wrapper(plain) == "tensor parallel 2"
    mesh = SimpleNamespace(parallelism_config=SimpleNamespace(cp_size=4))
    one = type("FSDPLlamaForCausalLM", (type("FSDPModule", (), {}),), {})()
    assert fsdp.wrapper(SimpleNamespace(model=one, model_wrapped=one, accelerator=mesh)) == "FSDP2, context parallel 4"
    assert fsdp.mismatch(workload(context_parallel_size=4), 8, "FSDP2") == (
        "distributed_backend is FSDP2, context parallel 4, but the model was trained with the wrapper FSDP2."
    )
    assert not fsdp.is_whole("FSDP2, tensor parallel 2")
    assert not fsdp.is_whole("tensor parallel 2")


def test_estimates_say_why_there_is_none() -> None:
    """In one sentence."""
    for name in ("tensor_parallel_size", "context_parallel_size"):
        message = supported.untraceable(workload(**{name: 2}))
        assert message == (f"finetune_memory_estimate cannot trace {name} 2: what each device gathers is not known.")


def through(counts: Counts, batch: dict[str, Any], loss: float) -> dict[str, Any]:
    """Let a batch pass the hooks; return the counts of the step."""
    module = torch.nn.Identity()
    counts.before(module, (), batch)
    counts.after(module, (), {"num_items_in_batch": 1}, SimpleNamespace(loss=torch.tensor(loss)))
    counts.end_step()
    return counts.read()


def test_no_sample_counts_twice_with_tensor_parallelism() -> None:
    """All ranks of a group see the same batch; the first counts it."""
    batch = {"input_ids": torch.zeros(2, 6, dtype=torch.long)}
    first, second = (through(Counts(2, rank), batch, 3.0) for rank in (2, 3))
    assert (first["token_slots"], first["samples"], first["losses"]) == ([12], [2], [3.0])
    assert second == {**{name: [0] for name in second}, "losses": [0.0]}


def test_no_token_is_missed_with_context_parallelism() -> None:
    """Each rank sees a part of the rows; the first counts the whole rows, and the losses of the parts are added."""
    whole = {
        "input_ids": torch.zeros(2, 8, dtype=torch.long),
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
        "labels": torch.tensor([[7] * 8, [7] * 5 + [-100] * 3]),
    }
    part = {name: tensor[:, :4] for name, tensor in whole.items()}
    results = []
    for rank in (0, 1):
        counts = Counts(2, rank, divided=True)
        loader = SimpleNamespace(collate_fn=lambda samples: whole)
        counts.watch(loader)
        loader.collate_fn(["one", "two"])
        results.append(through(counts, part, 1.5))
    assert results[0] == {
        "samples": [2], "token_slots": [16], "real_tokens": [13], "trained_tokens": [7 + 4], "squared_lengths": [2 * 64],
        "losses": [1.5],
    }  # fmt: skip
    assert results[1]["token_slots"] == [0]
    assert results[1]["losses"] == [1.5]
