"""Many measurements in one trainer: as fast as in a fresh one, and without a growing use of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 32, "number_gpus": 0}
SETTLED = 10

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(600)]


def plan(**change: Any) -> Plan:
    """Return a small measurement."""
    return make_plan("sfttrainer", "finetune_full_benchmark", {**SMALL, "batch_size": 2, **change})


def test_fifty_measurements_leave_nothing_behind(tmp_path: Path) -> None:
    """One process runs them all; from the tenth to the fiftieth its resident memory grows by less than 5 %.

    The first measurements create what is kept: allocators, threads, and modules that are imported on first use.
    """
    with Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0), tmp_path) as local:
        resident, pids = [], set()
        for number in range(50):
            verdict = local.measure(plan(batch_size=1 + number % 4, max_steps=3, seed=number))
            assert verdict.properties["is_valid"] == 1, verdict.message
            assert local._host is not None
            pids.add(local._host._trainers[0].pid)
            resident.append(psutil.Process(local._host._trainers[0].pid).memory_info().rss)
    assert len(pids) == 1
    assert max(resident) < 1.25 * resident[0]
    assert max(resident[SETTLED:]) < 1.05 * resident[SETTLED - 1]
    assert list((tmp_path / "runs").iterdir()) == []


def test_fresh_and_reused_trainers_agree(tmp_path: Path) -> None:
    """A step of the same workload is as fast in a fresh process as in a reused one.

    Compares the fastest of many steps in one thread, because the machine may be busy during some of them. The bound excludes a
    systematic cost of reuse.
    """
    steps: dict[bool, list[float]] = {True: [], False: []}
    reusing = Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0), tmp_path)
    fresh = Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0, reuse_workers=False), tmp_path)
    with reusing, fresh:
        reusing.measure(plan(max_steps=3, cpus_per_process=1))
        for _ in range(3):
            for local in (reusing, fresh):
                verdict = local.measure(
                    plan(max_steps=30, target_ci_percent=0, model_max_length=64, cpus_per_process=1)
                )
                steps[verdict.metadata["reused"]] += verdict.metadata["step_s"]
    assert [len(steps[True]), len(steps[False])] == [90, 90]
    assert 0.7 < min(steps[True]) / min(steps[False]) < 1.4
