"""``skip_predicted_oom`` through Ray, on a node that has a GPU for scheduling only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ado.modules.actuators.measurement_queue import MeasurementQueue
from ado.schema.point import SpacePoint

from ado_actuators.sfttrainer.actuator import SFTTrainer

from ..processes import limit_s, start_ray
from .conftest import unsupervised

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

TOO_LARGE = {
    "model_name": "llama3.2-1b",
    "model_max_length": 64,
    "batch_size": 1,
    "number_gpus": 1,
    "gpu_model": "T4",
    "cpus_per_process": 1,
}


@pytest.fixture
def queue(own_home: Path) -> Iterator[Any]:
    """Start a node with one CPU, and a GPU that exists for scheduling only."""
    resources = {"T4": 1.0}
    start_ray(
        lambda: ray.init(num_cpus=1, num_gpus=1, resources=resources, include_dashboard=False, log_to_driver=False)
    )
    yield MeasurementQueue()
    ray.shutdown()


def test_a_predicted_out_of_memory_uses_no_gpu(queue: Any, tmp_path: Path) -> None:
    """The result is a finished measurement with both numbers in its reason; no trainer with a GPU is started."""
    settings = SFTTrainer.parameters_class(state_dir=str(tmp_path), skip_predicted_oom=True)
    actuator = unsupervised(SFTTrainer(queue=queue, params=settings))
    reference = SFTTrainer.catalog().experiments[0].reference
    actuator.submit([SpacePoint(entity=TOO_LARGE).to_entity()], reference, "test", 0)
    result = queue.get(timeout=limit_s(240)).measurements[0]
    ray.get(actuator._dispatch().cleanup.remote())
    values = {one.property.targetProperty.identifier: one.value for one in result.measurements}
    assert values == {"is_valid": 0, "failure": "predicted_oom"}
    assert "of which T4 can give 14.3 GiB" in result.metadata["reason"]
    assert len(list((tmp_path / "logs").iterdir())) == 1
