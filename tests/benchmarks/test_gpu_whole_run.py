"""The whole run of ``benchmarks/gpu.py`` on a CPU: the code that a GPU is measured with, in processes that have neither ado nor Ray."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from ..processes import run
from .conftest import ROOT, h100

from gpu_checks import report  # isort: skip
from gpu_checks.bench import Bench, Failed  # isort: skip
from gpu_checks.workloads import Choice  # isort: skip

# six trainers start, on a machine that may be busy
pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(4500)]

# refuses what a GPU machine need not have, in every process of the run
BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ado", "ray"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_the_whole_run_on_a_cpu_without_ado_and_ray(tmp_path: Path) -> None:
    """All parts end; every measurement was made, and no process imported ado or Ray."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    output = tmp_path / "gpu-cpu.json"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--device",
        "cpu",
        "--quick",
        "--output",
        str(output),
    ]
    # however busy the machine, no part may be left out
    done = run([*command, "--limit", "2400"], cwd=tmp_path, env=environ, timeout_s=700)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["complete"]
    parts = results["parts"]
    assert {name: (part["state"], part["reason"]) for name, part in parts.items()} == dict.fromkeys(
        report.PARTS, ("ran", "")
    )
    doctor = {one["what"]: one for one in parts["device"]["found"]["doctor"]}
    # the blocker works: doctor could not load the actuator, if it is installed at all
    assert doctor["ado-sfttrainer"]["state"] == "missing" or "No module named" in doctor["actuator"]["text"]
    assert parts["device"]["found"]["matrix_product"]["tflops"] > 0
    rows = parts["memory"]["found"]["rows"]
    assert len(rows) == 2
    assert all(row["predicted"]["memory_estimate_gib"] > 0.01 and row["host_gib"] > 0.1 for row in rows)
    assert parts["edge"]["found"] == {"reason": "there is no GPU"}
    result = parts["fidelity"]["found"]["result"]
    assert result["differences"] == []
    assert result["clock_over_timer"] == pytest.approx(1.0, abs=0.05)
    assert [one["exact"] for one in result["identity"]] == [True]
    assert parts["rates"]["found"]["rows"][0]["tflops"] > 0
    assert parts["energy"]["found"]["seconds"] > 0
    assert len(parts["adaptive"]["found"]["result"]["adaptive"]) == 2
    reuse = parts["reuse"]
    assert len(reuse["found"]["rows"]) == 4
    assert reuse["checks"][0]["state"] == reuse["checks"][1]["state"] == "met"
    assert output.with_suffix(".md").read_text().strip() in done.stdout
    assert results["versions"]["trl"]


def test_the_matrix_product_lasts_as_long_as_a_recording() -> None:
    """Reading many GPUs may take longer than the product would."""
    from gpu_checks import matrix_product

    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    matrix_product.multiply("cpu", 0.0, "float32", 8, stop)
    assert stop.is_set()


def test_a_torch_without_cuda_is_said_at_once(tmp_path: Path) -> None:
    """A matrix product for a GPU is not computed on the CPU, where it would take minutes; nothing is recorded as under load."""
    choice = Choice("gpu", 79.6)
    bench = Bench(choice=choice, device=h100(), state_dir=tmp_path, absent={}, name="NVIDIA H100 80GB HBM3")
    recorded: list[bool] = []
    with pytest.raises(Failed, match=r"torch .* sees no CUDA device"):
        bench.load(lambda: recorded.append(True))
    assert not recorded
