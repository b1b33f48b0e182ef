"""The clock of a measurement with given step ends: when it stops, and which peaks it reports."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import timing  # noqa: E402
from ado_actuators.sfttrainer.core.workload.validation import parse  # noqa: E402

pytestmark = pytest.mark.torch

VALUES = {"model_name": "m", "model_max_length": 8, "batch_size": 1, "number_gpus": 0}
LIMITS = {"max_steps": 10, "target_ci_percent": 0.0, "stop_after_seconds": 0.0}
WORKLOAD = JobWorkload(**parse({**VALUES, **LIMITS}).model_dump())


class Ends:
    """Steps of one second each. Their ends are known ``lag`` steps after they were issued, as on a device that works asynchronously."""

    begin_s = 0.0
    lag = 0

    def __init__(self, device: Any) -> None:
        self._issued = 0

    def mark(self) -> None:
        """Record that the work of a step has been issued."""
        self._issued += 1

    def known(self) -> list[float]:
        """Return the ends of the steps that have ended."""
        return self.all()[: max(0, self._issued - self.lag)]

    def all(self) -> list[float]:
        """Return all ends."""
        return [float(step) for step in range(1, self._issued + 1)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> timing.Clock:
    """Return a clock that has begun."""
    monkeypatch.setattr(timing, "StepEnds", Ends)
    monkeypatch.setattr(Ends, "lag", 0)
    clock_of_job = timing.Clock(Job(id="test", workload=WORKLOAD), lambda message: None)
    clock_of_job.begin(torch.nn.Linear(2, 2))
    return clock_of_job


def train(clock: timing.Clock) -> int:
    """Train until the clock stops; return the number of steps."""
    steps = next(step for step in range(1, 100) if clock.end_step())
    clock.end()
    return steps


@pytest.mark.parametrize("lag", [0, 3])
def test_no_more_than_max_steps_are_issued(clock: timing.Clock, monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """This holds also when the ends of the last steps are not known yet."""
    monkeypatch.setattr(Ends, "lag", lag)
    assert train(clock) == 10
    record = clock.record()
    assert (len(record["step_end_s"]), record["stopped_by"]) == (10, "max_steps")


def test_peaks_of_warm_up_are_excluded(clock: timing.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of four warm-up steps has a peak of 900, as with autotuning. The six measured steps have one peak, read at the end."""
    peaks = iter([900, 100, 100, 100, 200])
    monkeypatch.setattr(timing, "_peaks", lambda **kinds: {"rss_peak_bytes": next(peaks)})
    train(clock)
    record = clock.record()
    assert (record["warmup_steps"], record["rss_peak_bytes"]) == (4, 200)


def test_after_training_the_results_are_read_back() -> None:
    """A failure then is not one of a further step; one in a step is."""
    clock = timing.Clock(Job(id="test", workload=WORKLOAD), lambda message: None)
    with pytest.raises(ValueError, match="now"), clock.phase("train"):
        raise ValueError("now")
    assert clock.doing == "training step 1"
    with clock.phase("train"):
        pass
    assert clock.doing == "reading back what was trained"
