"""Which traces a further workload of a model needs: counted with a trace that is written by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.measurement.plan import make_plan  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import accounts, estimate, kept, tracing  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import UPDATE, Ledger  # noqa: E402

pytestmark = pytest.mark.torch

# the traces below use no stack
STACK: Any = None
VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 8192,
    "batch_size": 2,
    "number_gpus": 1,
    "gpu_model": "H100",
    "torch_dtype": "bfloat16",
}


def job(capacities: dict[str, int] | None = None, **change: Any) -> Job:
    """Return the job of a small workload on a GPU that is not here."""
    made = make_plan("sfttrainer", "finetune_memory_estimate", {**VALUES, **change})
    made = dataclasses.replace(made, quick=True, capacities=capacities or {})
    return made.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Return the list of the traces that are made: method, batch size, and whether with the update."""
    made: list[tuple[str, int, bool]] = []

    def trace(stack: Any, asked: Job, *, cuda: bool, update: bool, wrapping: Any) -> tuple[Ledger, torch.nn.Module]:
        workload = asked.workload
        made.append((workload.method, workload.batch_size, update))
        ledger, model = Ledger(), torch.nn.Linear(1024, 1024)
        model.config = SimpleNamespace(to_dict=dict, _attn_implementation="sdpa")
        ledger.name(ledger.allocate(2**21), "parameters")
        ledger.free(ledger.allocate(2**20 * workload.batch_size))
        if update:
            ledger.begin(UPDATE)
            ledger.free(ledger.allocate(2**20))
        ledger.end()
        return ledger, model

    monkeypatch.setattr(tracing, "trace", trace)
    monkeypatch.setattr(accounts, "depths", lambda asked: None)
    return made


def test_another_gpu_and_more_of_them_need_no_trace(traced: list[Any]) -> None:
    """Samples on a device, method and length decide what is traced; the results are those of a trace of its own."""
    shared = kept.Kept()
    first = estimate.record(STACK, job(), lambda message: None, shared)
    assert traced == [("full", 2, True)]
    further = job(number_gpus=4, batch_size=8, gpu_model="L40S", distributed_backend="DDP")
    found = estimate.record(STACK, further, lambda message: None, shared)
    assert traced == [("full", 2, True)]
    alone = estimate.record(STACK, further, lambda message: None)
    assert len(traced) == 2
    assert found["peaks_bytes"] == alone["peaks_bytes"] != first["peaks_bytes"]
    for change in ({"method": "lora"}, {"batch_size": 3}, {"model_max_length": 4096}, {"lora_alpha": 64}):
        before = len(traced)
        estimate.record(STACK, job(**change), lambda message: None, shared)
        assert len(traced) == before + 1, change


def test_what_files_decide_is_traced_again(traced: list[Any], tmp_path: Any) -> None:
    """A file of samples or a directory with a configuration may have changed since."""
    file = tmp_path / "samples.jsonl"
    file.write_text('{"text": "a"}\n')
    asked = job(dataset_id=str(file), dataset_text_field="text")
    for changed in (
        asked,
        dataclasses.replace(job(), architecture=None),
        dataclasses.replace(job(), trust_remote_code=True),
    ):
        assert kept.key(changed) is None
    shared = kept.Kept()
    for _ in range(2):
        estimate.record(STACK, asked, lambda message: None, shared)
    assert len(traced) == 2


def test_growth_is_traced_only_for_what_fits(traced: list[Any]) -> None:
    """Larger batches are of no use to devices that do not take the smallest."""
    estimate.record(STACK, job({"small": 2**20}), lambda message: None)
    assert traced == [("full", 2, True)]
    found = estimate.record(STACK, job({"small": 2**20, "large": 2**30}), lambda message: None)
    assert traced[2:] == [("full", 2, False), ("full", 4, False)]
    assert [one["largest_batch_size"] > 2 for one in found["devices"]] == [False, True]


def test_the_least_recently_used_is_dropped() -> None:
    """And made again when it is asked for."""
    few = kept.Kept(2)
    made: list[str] = []

    def asked(name: str) -> str:
        def make() -> str:
            made.append(name)
            return name

        return few.get(name, make)

    assert [asked(name) for name in ("a", "b", "a", "c", "a", "b")] == ["a", "b", "a", "c", "a", "b"]
    assert made == ["a", "b", "c", "b"]


def test_a_kept_trace_does_not_keep_its_model_alive() -> None:
    """Only shapes and types of its parameters, of which shared ones count once."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad = False
    model.config = None
    found = dict(kept.Outline(model).named_parameters())
    assert {name: (tuple(one.shape), one.requires_grad, one.is_meta) for name, one in found.items()} == {
        "0.weight": ((3, 3), True, True),
        "0.bias": ((3,), True, True),
        "1.bias": ((3,), False, True),
    }
