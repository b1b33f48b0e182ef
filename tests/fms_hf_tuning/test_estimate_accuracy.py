"""Predicted and real memory of the same steps of fms-hf-tuning, in its own environment."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.fms_hf_tuning import environments
from ado_actuators.fms_hf_tuning.core.host import environment
from ado_actuators.fms_hf_tuning.core.host.local import Local
from ado_actuators.fms_hf_tuning.core.measurement.plan import make_plan

from ..workloads import SMALL, TWO_LAYERS
from .test_stack import VERSIONS

pytestmark = [
    pytest.mark.torch,
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("local", VERSIONS[-1:], indirect=True),
]

SHORT = {**SMALL, "max_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "qlora, checkpointing": {
        "method": "qlora",
        "mixed_precision": "bf16",
        "torch_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "batch_size": 4,
    },
    # accelerate keeps the mixed precision of an earlier trace unless it is reset
    "lora, no mixed precision": {"method": "lora", "torch_dtype": "bfloat16"},
}


def test_predictions_are_within_half_a_percent_of_reality(local: Local, tmp_path: Path) -> None:
    """The trace runs the plugin's own preparation and adapters, and finds what training with quantised weights allocates."""
    lines = [_line(tmp_path, change) for change in CASES.values()]
    (tmp_path / "jobs").write_text("\n".join(lines))
    # the plugin without what is installed beside it, such as another transformers
    (tmp_path / "ado_actuators").symlink_to(environments.HERE.parents[1])
    root = Path(__file__).parents[2]
    requirements = environments.HERE / environments.FILE_NAME.format(version=local.version, variant="cpu")  # type: ignore[attr-defined]
    python = environment.resolve(
        "managed", requirements=requirements, cache_dir=local._state_dir / "environments", progress=print
    )
    done = subprocess.run(
        [python, "-m", "tests.fms_hf_tuning.accuracy", tmp_path / "jobs"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(peaks) for peaks in re.findall(r"^peaks (.*)$", done.stdout, re.MULTILINE)]
    errors = {name: predicted / real - 1 for name, (predicted, real) in zip(CASES, found, strict=True)}
    assert {name: error for name, error in errors.items() if abs(error) > 0.005} == {}


def _line(directory: Path, change: dict[str, Any]) -> str:
    plan = make_plan("fms_hf_tuning", "finetune_memory_estimate", {**SHORT, **change})
    asked = plan.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
    own: dict[str, Any] = {
        "architecture": TWO_LAYERS,
        "run_dir": str(directory / "run"),
        "cache_dir": str(directory / "cache"),
    }
    return dataclasses.replace(asked, **own).to_line()
