"""Predicted and real memory of the same step; PyTorch's profiler counts the bytes that are really allocated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer import stack  # noqa: E402
from ado_actuators.sfttrainer.core.measurement.plan import make_plan  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import accelerate_state  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import tracing  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import Sharing  # noqa: E402

from .. import memory  # noqa: E402
from ..workloads import SMALL, TWO_LAYERS  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

SHORT = {**SMALL, "max_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, longer batch": {"batch_size": 4, "model_max_length": 64},
    "full, checkpointing": {"gradient_checkpointing": True, "batch_size": 4},
    "full, every second layer": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_every_n_layers": 2,
        "batch_size": 4,
    },
    "full, bfloat16": {"torch_dtype": "bfloat16"},
    "full, autocast": {"mixed_precision": "bf16"},
    "full, adafactor": {"optim": "adafactor"},
    "full, sgd": {"optim": "sgd", "batch_size": 4},
    "full, accumulation": {"gradient_accumulation_steps": 2},
    "full, eager attention": {"attn_implementation": "eager"},
    "full, padding": {"dataset_id": "synthetic-uniform", "batch_size": 3},
    "full, packing": {"packing": True, "dataset_id": "synthetic-uniform"},
    "lora": {"method": "lora"},
    "lora, checkpointing": {"method": "lora", "gradient_checkpointing": True, "batch_size": 4},
    "lora, bfloat16": {"method": "lora", "torch_dtype": "bfloat16", "mixed_precision": "bf16", "r": 16},
    "prompt tuning": {"method": "prompt_tuning"},
}


@pytest.fixture(autouse=True)
def _reset_accelerate() -> Iterator[None]:
    """Reset accelerate's global state after each test."""
    with accelerate_state.restored():
        yield


def job(directory: Path, **change: Any) -> Job:
    """Return the job of a small workload."""
    plan = make_plan("sfttrainer", "finetune_memory_estimate", {**SHORT, **change})
    address = ("127.0.0.1", 0)
    asked = plan.job(trust_remote_code=False, address=address, rank=0, threads=1)
    return dataclasses.replace(asked, architecture=TWO_LAYERS, run_dir=str(directory / "run"))


def real_peak_bytes(asked: Job) -> int:
    """Train, and return the peak of allocated bytes since training began."""
    begun_ns = []

    class Begin(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            begun_ns.append(time.time_ns())

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        stack.train(asked, tracing.QuietClock(Begin()))
    return max(allocated for at_ns, allocated in memory.held(profile) if at_ns >= begun_ns[0])


# both too high: a trace takes the longest packed rows as its batch, which real batches seldom are; for prompts the reason is not known
LARGER_ERRORS = {"full, packing": 0.05, "prompt tuning": 0.02}


@pytest.mark.parametrize("name", CASES)
def test_prediction_is_within_half_a_percent_of_reality(name: str, tmp_path: Path) -> None:
    """The predicted peak is that of the real stack, model, loss and optimizer."""
    asked = job(tmp_path, **CASES[name])
    ledger, _ = tracing.trace(stack, asked, cuda=False)
    predicted = max(peak.total for peak in ledger.peaks(Sharing()).values())
    real = real_peak_bytes(asked)
    allowed = LARGER_ERRORS.get(name, 0.005)
    assert abs(predicted / real - 1) <= allowed, f"predicted {predicted / 2**20:.2f} MiB, real {real / 2**20:.2f} MiB"
