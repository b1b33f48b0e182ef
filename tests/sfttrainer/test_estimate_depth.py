"""Estimates of deep models from shallow ones against traces of every layer: equal to the byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ado_actuators.sfttrainer import stack  # noqa: E402
from ado_actuators.sfttrainer.core.measurement.plan import make_plan  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import accelerate_state  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import accounts, depth, estimate  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

VALUES = {"model_name": "tiny-llama-5m", "model_max_length": 1024, "batch_size": 2, "number_gpus": 1}
LAYERS = 8
LLAMA = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def _forget_ranks() -> Iterator[None]:
    """What accelerate keeps of one run must not reach the next."""
    with accelerate_state.restored():
        yield


def job(directory: Path, architecture: dict[str, Any] = LLAMA, **change: Any) -> Job:
    """Return the job of a small workload on a GPU that is not here."""
    made = make_plan("sfttrainer", "finetune_memory_estimate", {**VALUES, **change})
    asked = made.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
    return dataclasses.replace(asked, architecture=architecture, run_dir=str(directory / "run"))


@pytest.mark.parametrize(
    ("change", "shallow"),
    [
        ({"gradient_checkpointing": True, "torch_dtype": "bfloat16"}, 2),
        ({"method": "lora", "lora_dropout": 0.1, "mixed_precision": "bf16"}, 2),
        ({"optim": "adafactor", "gradient_accumulation_steps": 2}, 2),
        ({"number_gpus": 4, "batch_size": 8, "distributed_backend": "FSDP2", "gradient_checkpointing": True}, 3),
    ],
    ids=["full", "lora", "accumulation", "fsdp2"],
)
def test_two_depths_give_what_all_layers_do(
    change: dict[str, Any], shallow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peaks of both phases, under FSDP2 also of the passes with a larger batch, and counts of parameters."""
    asked = job(tmp_path, **change)
    found = depth.depths(asked)
    assert found is not None
    assert (found.shallow["num_hidden_layers"], found.times) == (shallow, LAYERS - shallow)
    quick = estimate.Estimator(stack, asked, lambda message: None)
    got = quick.peaks(2)
    passes = quick._accounts.passes() if "distributed_backend" in change else None
    assert quick._accounts._depths is not None, "all layers were traced after all"
    monkeypatch.setattr(accounts, "depths", lambda job: None)
    whole = estimate.Estimator(stack, asked, lambda message: None)
    assert got == whole.peaks(2)
    if passes is not None:
        larger, expected = passes.at(passes.base), whole._accounts.traced(passes.base, update=False)[0]
        assert larger.peaks(quick._sharing)[PASSES] == expected.peaks(quick._sharing)[PASSES]
    for name in ("model_parameters", "trainable_parameters", "facts"):
        assert quick.description[name] == whole.description[name]
    assert quick.description["architecture"]["num_hidden_layers"] == LAYERS


def test_the_largest_batch_is_the_last_that_fits(tmp_path: Path) -> None:
    """As traced itself, with every layer of the model, and one more sample does not fit."""
    asked = job(tmp_path, torch_dtype="bfloat16", gradient_checkpointing=True, model_max_length=8192)
    estimator = estimate.Estimator(stack, asked, lambda message: None)
    capacity = int(1.5 * estimator.peaks(2)[PASSES].total)
    largest = estimator.largest(2, capacity, 4096)
    assert largest > 2
    for batch, fits in ((largest, True), (largest + 1, False)):
        assert (estimator.peaks(batch)[PASSES].total <= capacity) == fits


def test_a_plan_counts_what_the_allocator_needs_as_an_estimate_does(tmp_path: Path) -> None:
    """One byte less than it needs does not fit, and the largest batch is that of the estimate."""
    asked = job(tmp_path, torch_dtype="bfloat16", gradient_checkpointing=True, model_max_length=8192)
    first = estimate.Estimator(stack, asked, lambda message: None)
    needed = first.needed(1)
    total = max(peak.total for peak in first.peaks(1).values())
    assert needed > total
    sizes = {"exact": needed, "small": needed - 1, "large": 4 * needed}
    (workspaces,) = asked.workspaces.values()
    first._job = dataclasses.replace(asked, capacities=sizes, workspaces=dict.fromkeys(sizes, workspaces))
    found = {one["gpu_model"]: one for one in first.devices(1)}
    assert {name: one["fits"] for name, one in found.items()} == {"exact": True, "small": False, "large": True}
    assert sum(found["exact"]["parts_bytes"].values()) == needed
    assert found["large"]["largest_batch_size"] == first.largest(1, 4 * needed - (needed - total), 4096)


def test_layers_of_several_kinds_repeat_with_a_period(tmp_path: Path) -> None:
    """Two sliding layers before each full one; what is left over at the end stays."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    gemma = {**LLAMA, "model_type": "gemma3_text", "head_dim": 16, "num_hidden_layers": 19}
    gemma |= {"layer_types": (kinds * 7)[:19], "sliding_window": 64}
    found = depth.depths(job(tmp_path, gemma))
    assert found is not None
    assert (found.shallow["num_hidden_layers"], found.deep["num_hidden_layers"], found.times) == (7, 10, 4)
    assert found.deep["layer_types"] == (kinds * 7)[:10]


def test_few_layers_are_traced_as_they_are(tmp_path: Path) -> None:
    """There is nothing to gain."""
    assert depth.depths(job(tmp_path, {**LLAMA, "num_hidden_layers": 4})) is None
