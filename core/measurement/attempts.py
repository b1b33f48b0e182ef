"""The procedure of a measurement: predicted out-of-memory, runs, retries with back-off, verdict. Pure: it neither waits nor measures.

``procedure`` is a generator. It yields a step, and its driver sends back the result of that step: the dispatcher drives it with
``await``, the local runner with blocking calls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from typing import Protocol

from .. import failures
from ..metrics import stability
from ..workload.fields import Workload
from . import verdict
from .outcome import Outcome, Run
from .plan import Plan
from .verdict import Verdict

LONGEST_BACKOFF_S = 300.0
# with all other properties equal, memory grows with each of these
GROWING = ("batch_size", "model_max_length")


class Settings(Protocol):
    """The parameters of an actuator configuration that the procedure reads."""

    max_retries: int
    retry_backoff_s: float
    price_usd_per_device_hour: float | None
    skip_predicted_oom: bool


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Step: run ``plan`` once on its hosts. The driver sends back their outcomes."""

    plan: Plan


@dataclasses.dataclass(frozen=True)
class Backoff:
    """Step: wait for ``seconds``. The driver sends back None."""

    seconds: float


Step = Attempt | Backoff
Steps = Generator[Step, list[Outcome] | None, Verdict]
RunSteps = Generator[Step, list[Outcome] | None, Run]


class KnownOutOfMemory:
    """Workloads of an operation that ran out of GPU memory."""

    def __init__(self) -> None:
        self._workloads: dict[str, list[Workload]] = {}

    def add(self, workload: Workload) -> None:
        """Remember that ``workload`` ran out of GPU memory."""
        self._workloads.setdefault(_fixed_properties(workload), []).append(workload)

    def message_for(self, workload: Workload) -> str | None:
        """Return a message if a workload with equal or smaller values ran out of memory, or None."""
        for known in self._workloads.get(_fixed_properties(workload), ()):
            if all(getattr(workload, name) >= getattr(known, name) for name in GROWING):
                return (
                    "The workload cannot fit: a smaller one ran out of GPU memory in this operation, with batch_size "
                    f"{known.batch_size} and model_max_length {known.model_max_length}."
                )
        return None


def procedure(plan: Plan, settings: Settings, known: KnownOutOfMemory, *, same_gpus: bool) -> Steps:
    """Yield the steps of a measurement; return its verdict.

    Args:
        plan: what to measure.
        settings: retries, price, and whether predicted out-of-memory is skipped.
        known: workloads that ran out of memory before; this workload is added if it runs out of memory.
        same_gpus: whether every GPU the workload may get is of one type, so that ``known`` applies.

    Raises:
        failures.PredictedOutOfMemory: the workload is predicted not to fit and was not run.
    """
    if settings.skip_predicted_oom and plan.kind.task == "benchmark":
        yield from _check_memory(plan, settings, known if same_gpus else KnownOutOfMemory())
    runs: list[Run] = []
    while _needs_run(plan, runs):
        runs.append((yield from _run(plan, settings)))
    result = verdict.conclude(plan, runs, price=settings.price_usd_per_device_hour)
    if result.properties.get("failure") == "gpu_oom":
        known.add(plan.workload)
    return result


def _check_memory(
    plan: Plan, settings: Settings, known: KnownOutOfMemory
) -> Generator[Step, list[Outcome] | None, None]:
    message = known.message_for(plan.workload)
    estimate = plan.estimate()
    if message is None and estimate is not None:
        message = verdict.too_large(estimate, (yield from _run(estimate, settings)))
    if message is not None:
        raise failures.PredictedOutOfMemory(message)


def _needs_run(plan: Plan, runs: list[Run]) -> bool:
    return not runs or (len(runs) < plan.kind.runs and not stability.verdict_is_known(runs[-1].cause))


def _run(plan: Plan, settings: Settings) -> RunSteps:
    """Attempt a run until it succeeds, fails for good, or has used all retries."""
    attempts = 0
    while True:
        attempts += 1
        outcomes = yield Attempt(plan)
        assert outcomes is not None
        run = Run(outcomes, attempts)
        if not _may_be_retried(plan, run) or attempts > settings.max_retries:
            return run
        yield Backoff(backoff_s(settings.retry_backoff_s, attempts))


def _may_be_retried(plan: Plan, run: Run) -> bool:
    """Whether the failure is transient; a stability experiment counts crashes, so only the loss of a host is retried there."""
    lost = any(outcome.host_lost for outcome in run.outcomes)
    return run.cause is not None and run.cause.group == "transient" and (plan.kind.task != "stability" or lost)


def backoff_s(first_s: float, attempt: int) -> float:
    """Return the seconds to wait after ``attempt`` (from 1): ``first_s`` doubled with each attempt, at most ``LONGEST_BACKOFF_S``."""
    return min(LONGEST_BACKOFF_S, first_s * 2.0 ** (attempt - 1))


def _fixed_properties(workload: Workload) -> str:
    """Return the properties that must be equal for ``GROWING`` to be compared, as JSON."""
    return json.dumps(workload.model_dump(exclude=set(GROWING)), sort_keys=True)
