"""The environment variables of ranks and of NCCL during a job, and the clock's use of CUDA events and of memory peaks."""

from __future__ import annotations

import os
import subprocess
import sys
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
    """Return the job of rank 1 of two ranks on two nodes."""
    values = {"model_name": "m", "model_max_length": 8, "batch_size": 2, "number_gpus": 2, "number_nodes": 2, **change}
    return Job(
        id="test",
        workload=JobWorkload(**parse(values).model_dump()),
        rank=1,
        world_size=2,
        master_addr="192.0.2.1",
        master_port=12345,
    )


ORPHAN = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from ado_actuators.sfttrainer.core.trainer import serve
serve._adopt_orphans()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        parent = os.getppid()
        os.write(writer, b"x")
        while os.getppid() == parent:
            time.sleep(0.01)
        os.write(writer, str(os.getppid()).encode())
        os._exit(0)
    os.read(reader, 1)
    os._exit(0)
os.waitpid(child, 0)
print(os.read(reader, 99).decode() == str(os.getpid()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_a_trainer_adopts_what_its_children_leave() -> None:
    """So that the host finds it below the trainer."""
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("roce", "nccl"),
    [(True, {"NCCL_IB_DISABLE": "0", "NCCL_IB_GID_INDEX": "3"}), (False, {"NCCL_IB_DISABLE": "1", "NCCL_IB_GID_INDEX": "7"})],
)  # fmt: skip
def test_enable_roce_sets_the_variables_of_nccl(
    roce: bool, nccl: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several nodes the property overrides the node's own variables, which are restored afterwards."""
    monkeypatch.setenv("NCCL_IB_GID_INDEX", "7")
    before = dict(os.environ)
    with serve._distributed(job(enable_roce=roce)):
        assert {name: os.environ[name] for name in nccl} == nccl
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]) == ("1", "2", "12345")
        # as accelerate does, for FSDP
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    assert dict(os.environ) == before


def test_a_peak_that_cannot_be_reset_is_omitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot reset the peak, it is that of the process's whole life."""
    assert timing._reset_peaks() is memory.reset_peak_resident()
    assert "rss_peak_bytes" in timing._peaks(resident=True)
    assert "rss_peak_bytes" not in timing._peaks(resident=False)


class Event:
    """A CUDA event that has completed. Like CUDA, it returns float32 milliseconds since another event."""

    def __init__(self, at_s: float = 0.0) -> None:
        self.at_s = at_s

    def query(self) -> bool:
        """Return True: the event has completed."""
        return True

    def elapsed_time(self, later: Event) -> float:
        """Return milliseconds as float32."""
        import numpy

        return float(numpy.float32(1e3 * (later.at_s - self.at_s)))


def test_steps_are_precise_an_hour_after_training_began() -> None:
    """Steps of 10 ms in the second hour are precise to a microsecond; from the beginning, float32 would give a quarter of a millisecond."""
    import torch

    ends = timing.StepEnds(torch.device("cpu"))
    ends.begin_s, ends._last_event = 0.0, Event(3599.0)
    ends._pending = [Event(3600 + 0.01 * step) for step in range(100)]
    known = ends.known()
    steps = [after - before for before, after in itertools.pairwise(known)]
    assert max(abs(step - 0.01) for step in steps) < 1e-6
