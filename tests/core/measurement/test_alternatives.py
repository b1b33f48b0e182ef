"""Changes that a memory estimate tries, and an unknown GPU: before anything is traced."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.measurement import alternatives
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.protocol.messages import Job

ESTIMATE = "finetune_memory_estimate"
VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 128,
    "batch_size": 8,
    "number_gpus": 2,
    "gpu_model": "H100",
}


def job(**change: Any) -> Job:
    """Return the job of an estimate."""
    made = make_plan("sfttrainer", ESTIMATE, {**VALUES, **change})
    return made.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)


def test_single_changes_come_before_combinations() -> None:
    """A value that the workload already has is not a change."""
    first, *together = job().alternatives
    for change in (
        {"gradient_checkpointing": True},
        {"torch_dtype": "bfloat16"},
        {"batch_size": 2},
        {"model_max_length": 64},
        {"method": "lora"},
        {"method": "qlora"},
    ):
        assert change in first
    assert together[0] == [{"gradient_checkpointing": True, "torch_dtype": "bfloat16"}]
    small = job(gradient_checkpointing=True, torch_dtype="bfloat16", method="qlora", batch_size=2)
    assert small.alternatives[0] == [{"model_max_length": 64}]


def test_every_change_is_a_workload_that_could_be_asked_for() -> None:
    """One GPU and several, with the same samples on each."""
    asked = job(number_nodes=2, distributed_backend="FSDP", fsdp_sharding_strategy="HYBRID_SHARD")
    one, several = asked.counts
    assert (one["number_gpus"], one["batch_size"]) == (1, 4)
    assert (several["number_gpus"], several["batch_size"], several["distributed_backend"]) == (2, 8, "FSDP")
    for change in (*asked.counts, *(one for group in asked.alternatives for one in group)):
        values = {**VALUES, "number_nodes": 2, "distributed_backend": "FSDP", **change}
        make_plan("sfttrainer", ESTIMATE, values)


def test_nothing_else_is_tried_where_only_the_peak_is_asked_for() -> None:
    """Before a measurement, and for a device whose memory is not known."""
    quick = make_plan("sfttrainer", "finetune_full_benchmark", VALUES).estimate()
    assert quick is not None
    found = quick.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
    assert (found.alternatives, found.counts) == ([], [])
    assert (
        alternatives.counts(make_plan("sfttrainer", ESTIMATE, VALUES | {"number_gpus": 0, "gpu_model": "any"}).workload)
        == []
    )
    assert job(gpu_model="any").counts == []


@pytest.mark.parametrize(
    ("name", "similar"),
    [("H10O", "similar known ones are H100"), ("Abacus 3", "the command plan lists the known ones")],
)
def test_an_unknown_gpu_is_rejected_before_tracing(name: str, similar: str) -> None:
    """With what is known, and how to state the memory of any other."""
    with pytest.raises(failures.InvalidConfiguration, match="gpu_memory_gib") as raised:
        make_plan("sfttrainer", ESTIMATE, {**VALUES, "gpu_model": name})
    assert f"gpu_model '{name}' is not known; {similar}" in str(raised.value)
    assert job(gpu_model=name, gpu_memory_gib=40).capacity_bytes == int((0.988 * 40 - 0.85) * 2**30)


def test_benchmarks_have_no_gpu_memory_gib() -> None:
    """They measure on the GPU that is there."""
    with pytest.raises(
        failures.InvalidConfiguration, match="gpu_memory_gib is not a property of finetune_full_benchmark"
    ):
        make_plan("sfttrainer", "finetune_full_benchmark", {**VALUES, "gpu_memory_gib": 40})


@pytest.mark.parametrize(
    ("gpu_model", "end"),
    [
        ("NVIDIA-A100-80GB-PCIe", "needs compute capability 9.0 or higher; gpu_model 'NVIDIA-A100-80GB-PCIe' has 8.0."),
        ("MI300X", "needs compute capability 9.0 or higher; gpu_model 'MI300X' is not a GPU of NVIDIA."),
        ("H100", ""),
        ("any", ""),
    ],
)
def test_a_gpu_without_8_bit_products_is_refused_before_it_is_requested(gpu_model: str, end: str) -> None:
    """The table of devices knows it."""
    values = {**VALUES, "gpu_model": gpu_model, "torch_dtype": "bfloat16", "fp8_recipe": "rowwise"}
    if not end:
        assert make_plan("sfttrainer", "finetune_full_benchmark", values).workload.fp8_recipe == "rowwise"
        return
    with pytest.raises(failures.InvalidConfiguration) as refused:
        make_plan("sfttrainer", "finetune_full_benchmark", values)
    assert str(refused.value).endswith(end)
