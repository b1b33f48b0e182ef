"""The files that the plan command writes for ado."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ado_actuators.sfttrainer.core.reporting import plan_page

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def test_ado_accepts_the_space_of_a_candidate(tmp_path: Path) -> None:
    """Its dry run finds the experiment and every property."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 64, "method": "full", "gradient_checkpointing": True}
    values |= {"number_gpus": 2, "gpu_model": "L40S", "batch_size": 8, "distributed_backend": "FSDP2"}
    candidate = plan_page.Candidate(values, (), {}, 44.0, fits=True, best=True)
    ((name, space),) = plan_page.spaces("sfttrainer", [candidate]).items()
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(space))
    words = [str(Path(sys.executable).parent / "ado"), "create", "space", "-f", str(path), "--dry-run"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "valid" in ended.stdout + ended.stderr
