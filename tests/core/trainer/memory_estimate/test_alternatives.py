"""Which changes are estimated, and the fewest devices: with an estimator of given numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.protocol.messages import Job
from ado_actuators.sfttrainer.core.trainer.errors import Refused
from ado_actuators.sfttrainer.core.trainer.memory_estimate import alternatives

pytestmark = pytest.mark.torch

VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 128,
    "batch_size": 8,
    "number_gpus": 1,
    "gpu_model": "H100",
}


class Known:
    """An estimator whose workload needs 100 bytes, fewer with each change; its model fits on four devices."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012 - the test reads and empties it

    def __init__(self, job: Job) -> None:
        workload = job.workload
        self.processes = workload.number_gpus
        self.bytes = (
            100 // (2 if workload.gradient_checkpointing else 1) // (2 if workload.torch_dtype == "bfloat16" else 1)
        )
        self.asked.append({"gpus": workload.number_gpus, "method": workload.method})
        if workload.method == "qlora":
            raise Refused("cannot be traced")

    def needed(self, batch: int) -> int:
        """Return the number for the workload."""
        return self.bytes

    def peaks(self, batch: int) -> None:
        """Nothing to do."""

    def devices(self, batch: int, *, with_largest: bool) -> list[dict[str, Any]]:
        """Answer about one device, or about several that share the model."""
        return [{"fits": self.processes > 1, "number_gpus": 4 if self.processes > 1 else 1}]


def job(capacity: int, **change: Any) -> Job:
    """Return a job for devices of ``capacity`` bytes."""
    Known.asked.clear()
    made = make_plan("sfttrainer", "finetune_memory_estimate", {**VALUES, **change})
    asked = made.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
    return dataclasses.replace(asked, capacity_bytes=capacity)


def test_combinations_are_tried_only_if_no_single_change_is_enough() -> None:
    """A change that cannot be traced is left out."""
    found = alternatives.tried(job(50), 20, Known)
    assert [one["change"] for one in found if one["fits"]] == [
        {"gradient_checkpointing": True},
        {"torch_dtype": "bfloat16"},
    ]
    found = alternatives.tried(job(30), 20, Known)
    assert found[-1] == {
        "change": {"gradient_checkpointing": True, "torch_dtype": "bfloat16"},
        "needed_bytes": 25,
        "fits": True,
    }
    assert not any("qlora" in one["change"].values() for one in found)


def test_what_leaves_the_update_as_it_is_cannot_help_where_the_update_does_not_fit() -> None:
    """Changes that only reduce activations are not traced."""
    found = alternatives.tried(job(30), 90, Known)
    assert not any(set(one["change"]) <= alternatives.ACTIVATIONS for one in found)


def test_the_fewest_devices() -> None:
    """One if it fits and holds the whole model, without a trace; else as many as share it."""
    assert alternatives.fewest(job(50), fits=True, estimator_of=Known) == 1
    assert Known.asked == []
    assert alternatives.fewest(job(50), fits=False, estimator_of=Known) == 4
    assert [one["gpus"] for one in Known.asked] == [2]
    shared = job(50, number_gpus=8, distributed_backend="FSDP2")
    assert alternatives.fewest(shared, fits=True, estimator_of=Known) == 4
    assert [one["gpus"] for one in Known.asked] == [1, 2]
    assert alternatives.fewest(job(50, method="qlora"), fits=False, estimator_of=Known) is None


def test_what_cannot_hold_its_weights_is_not_traced() -> None:
    """Weights of 8 parameters take 32 bytes in float32, 4 as QLoRA; with full fine-tuning gradients and two states come on top."""
    found = alternatives.tried(job(63), 20, Known, parameters=8)
    assert {"torch_dtype": "bfloat16"} not in [one["change"] for one in found]
    assert {one["method"] for one in Known.asked} == {"lora", "qlora"}
    assert (
        alternatives.fewest(
            shared := job(63, number_gpus=8, distributed_backend="FSDP2"), fits=True, estimator_of=Known
        )
        == 4
    )
    Known.asked.clear()
    assert alternatives.fewest(shared, fits=True, estimator_of=Known, parameters=8) == 4
    assert [one["gpus"] for one in Known.asked] == [2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 8 * 4 * 4),
        ({"torch_dtype": "bfloat16", "optim": "adafactor"}, 8 * 2 * 2),
        ({"method": "lora", "torch_dtype": "bfloat16"}, 8 * 2),
        ({"method": "qlora"}, 4),
        ({"number_gpus": 4, "distributed_backend": "FSDP2"}, 8 * 4),
        ({"number_gpus": 4, "distributed_backend": "DDP"}, 8 * 4 * 4),
        ({"number_gpus": 4, "distributed_backend": "FSDP2", "fsdp_cpu_offload": True}, 0),
    ],
)
def test_the_least_that_a_workload_needs(change: dict[str, Any], expected: int) -> None:
    """Weights by type, divided under FSDP, on no GPU with offload."""
    assert alternatives.least_bytes(job(1, **change).workload, 8) == expected
