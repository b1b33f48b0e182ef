"""The training arguments that both stacks share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import arguments  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

VALUES: dict[str, Any] = {"model_name": "m", "model_max_length": 16, "batch_size": 6, "number_gpus": 0}


def job(**change: Any) -> Job:
    """Return the job of one of two processes on CPU."""
    workload = Workload.model_validate({**VALUES, "number_nodes": 2, **change})
    return Job(id="test", workload=JobWorkload(**workload.model_dump()), world_size=2)


def test_each_process_gets_its_share_of_the_batch_and_gloo() -> None:
    """On CPU; without num_train_epochs the number of steps ends the training."""
    shared = arguments.shared(job(), 1)
    names = ("per_device_train_batch_size", "use_cpu", "ddp_backend", "max_steps", "dataloader_pin_memory")
    assert [shared[name] for name in names] == [3, True, "gloo", 100, False]
    alone = dataclasses.replace(job(number_nodes=1), world_size=1)
    assert arguments.shared(alone, 1)["ddp_backend"] is None


def test_epochs_replace_steps() -> None:
    """With num_train_epochs, the passes over the data end the training."""
    shared = arguments.shared(job(num_train_epochs=4), 5)
    assert (shared["max_steps"], shared["num_train_epochs"]) == (-1, 5)


def test_transformers_takes_all_of_them(tmp_path: Path) -> None:
    """The names exist in the installed release, and mixed precision is passed on."""
    single = dataclasses.replace(job(number_nodes=1, mixed_precision="bf16"), world_size=1)
    made = transformers.TrainingArguments(output_dir=str(tmp_path), **arguments.shared(single, 1))
    assert (made.bf16, made.fp16, str(made.logging_strategy.value)) == (True, False, "no")
