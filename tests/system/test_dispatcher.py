"""Several measurements in flight on a real Ray instance of two CPUs; the trainers are looked up in the process table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ado.modules.actuators.measurement_queue import MeasurementQueue
from ado.schema.point import SpacePoint

from ado_actuators.sfttrainer.actuator import SFTTrainer

from ..processes import limit_s, start_ray
from .conftest import unsupervised

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 32, "batch_size": 2, "number_gpus": 0, "max_steps": 10}


@pytest.fixture
def queue(own_home: Path) -> Iterator[MeasurementQueue]:
    """Start Ray with two CPUs, and give the queue of an operation."""
    start_ray(lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False))
    yield MeasurementQueue()
    ray.shutdown()


def threads_of_trainers() -> list[str]:
    """Return OMP_NUM_THREADS of each live trainer of Ray's hosts in this test run."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status", "ppid"]):
        environ = process.info["environ"] or {}
        ours = environ.get("HOME") == os.environ["HOME"] and process.info["ppid"] != os.getpid()
        ours = ours and process.info["status"] != psutil.STATUS_ZOMBIE
        if ours and any(word.endswith("core/trainer") for word in process.info["cmdline"] or []):
            found.append(environ["OMP_NUM_THREADS"])
    return found


def test_four_in_flight_share_two_cpus(queue: MeasurementQueue, tmp_path: Path) -> None:
    """With one CPU each, two train at the same time with one thread each; their trainers are reused for the other two."""
    settings = SFTTrainer.parameters_class(state_dir=str(tmp_path), max_retries=0)
    actuator = unsupervised(SFTTrainer(queue=queue, params=settings))
    entities = [SpacePoint(entity={**SMALL, "cpus_per_process": 1, "seed": seed}).to_entity() for seed in range(4)]
    reference = SFTTrainer.catalog().experiments[0].reference
    for number, entity in enumerate(entities):
        actuator.submit([entity], reference, "test", number)
    seen: list[list[str]] = []
    results: list[Any] = []
    deadline = time.monotonic() + limit_s(240)
    while len(results) < 4 and time.monotonic() < deadline:
        seen.append(threads_of_trainers())
        if not queue.empty():
            results += queue.get().measurements
        time.sleep(0.2)
    ray.get(actuator._dispatch().cleanup.remote())
    values = [{one.property.targetProperty.identifier: one.value for one in result.measurements} for result in results]
    assert [one["is_valid"] for one in values] == [1] * 4
    assert max(seen, key=len) == ["1", "1"]
    assert len({result.metadata["log"] for result in results}) == 2
    assert sorted(result.metadata["reused"] for result in results) == [False, False, True, True]
