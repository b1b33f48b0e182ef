"""What the trainer process sets up around a job, and takes back: variables of the ranks and of NCCL."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

import itertools

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
from ado_actuators.sfttrainer.core.trainer import memory, serve, timing
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = pytest.mark.torch


def job(**change: Any) -> Job:
    """Return what of a job of two ranks on two nodes matters here."""
    values = {"model_name": "m", "model_max_length": 8, "batch_size": 2, "number_gpus": 2, "number_nodes": 2, **change}
    return Job(
        id="test",
        workload=JobWorkload(**parse(values).model_dump()),
        rank=1,
        world_size=2,
        master_addr="192.0.2.1",
        master_port=12345,
    )


@pytest.mark.parametrize(
    ("roce", "nccl"),
    [(True, {"NCCL_IB_DISABLE": "0", "NCCL_IB_GID_INDEX": "3"}), (False, {"NCCL_IB_DISABLE": "1", "NCCL_IB_GID_INDEX": "7"})],
)  # fmt: skip
def test_enable_roce_sets_the_variables_of_nccl(
    roce: bool, nccl: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between nodes the property decides, whatever the node's own variables say, which are back afterwards."""
    monkeypatch.setenv("NCCL_IB_GID_INDEX", "7")
    before = dict(os.environ)
    with serve._distributed(job(enable_roce=roce)):
        assert {name: os.environ[name] for name in nccl} == nccl
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]) == ("1", "2", "12345")
        # as accelerate does, for FSDP
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    assert dict(os.environ) == before


def test_a_peak_that_cannot_be_reset_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not forget, the peak is that of the process's whole life, and is left out."""
    assert timing._reset_peaks() is memory.reset_peak_resident()
    assert "rss_peak_bytes" in timing._peaks(resident=True)
    assert "rss_peak_bytes" not in timing._peaks(resident=False)


class Event:
    """A CUDA event that has happened; times are as coarse as CUDA's, float32 milliseconds since another event."""

    def __init__(self, at_s: float = 0.0) -> None:
        self.at_s = at_s

    def query(self) -> bool:
        """Every event has happened."""
        return True

    def elapsed_time(self, later: Event) -> float:
        """Return milliseconds as float32."""
        import numpy

        return float(numpy.float32(1e3 * (later.at_s - self.at_s)))


def test_steps_stay_fine_an_hour_after_training_began() -> None:
    """Steps of 10 ms in their second hour: each is known to a microsecond, not to a quarter of a millisecond."""
    import torch

    ends = timing.StepEnds(torch.device("cpu"))
    ends.begin_s, ends._last_event = 0.0, Event(3599.0)
    ends._pending = [Event(3600 + 0.01 * step) for step in range(100)]
    known = ends.known()
    steps = [after - before for before, after in itertools.pairwise(known)]
    assert max(abs(step - 0.01) for step in steps) < 1e-6
