"""Two sets of measurements, before and after, workload by workload. Reads no files and plots nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from . import tables
from .rows import FAILED, MEASURED, Row, differing, workload_label

REGRESSION, IMPROVEMENT, SAME, UNKNOWN = "regression", "improvement", "same", "unknown"
NO_REASON = "no reason is known."
# allocators repeat to the byte; resident memory of processes and what a driver sees do not
STABLE_MEMORY = "torch_peak_allocated_gib"
# what stability experiments and memory estimates have instead of a throughput
ENDED_WELL, ESTIMATE = "f_no_error", "memory_estimate_gib"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a value may fall behind without being flagged, in percent.

    The interval of a measurement is that of one process while it was watched: two runs of the same differ by more, and
    ``throughput`` allows for that.
    """

    throughput: float = 3.0
    memory: float = 5.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A workload that was asked for on both sides.

    Attributes:
        what: its label among the workloads compared.
        before: the earlier row.
        after: the later row.
        ratio: throughput after over before, or None.
        verdict: ``regression``, ``improvement``, ``same``, or ``unknown`` where a side gives no answer.
        why: a message for everything but ``same`` by throughput.
    """

    what: str
    before: Row
    after: Row
    ratio: tables.Ratio | None
    verdict: str
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All workloads of both sides; ``only_before`` and ``only_after`` have no partner."""

    pairs: list[Pair]
    only_before: list[str]
    only_after: list[str]

    @property
    def regressions(self) -> list[Pair]:
        """The workloads that got worse beyond noise."""
        return [pair for pair in self.pairs if pair.verdict == REGRESSION]


def compare(before: Sequence[Row], after: Sequence[Row], tolerance: Tolerance) -> Comparison:
    """Join two sets on the workload and judge each; of repeated workloads the last one counts."""
    first, second = _by_key(before), _by_key(after)
    joined = [key for key in first if key in second]
    names = [name for name in differing([*before, *after]) if name != "source"]
    return Comparison(
        pairs=[_judge(workload_label(first[key], names), first[key], second[key], tolerance) for key in joined],
        only_before=[workload_label(row, names) for key, row in first.items() if key not in second],
        only_after=[workload_label(row, names) for key, row in second.items() if key not in first],
    )


def _by_key(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    return {row.key: row for row in rows}


def _judge(what: str, before: Row, after: Row, tolerance: Tolerance) -> Pair:
    states = (before.state, after.state)
    ratio = tables.ratio(after, before)
    if states == (MEASURED, MEASURED):
        return _judge_numbers(what, before, after, ratio, tolerance)
    if before.state == MEASURED:
        how = "failed" if after.state == FAILED else f"cannot run ({after.outputs.get('failure')})"
        return Pair(what, before, after, ratio, REGRESSION, f"ran before, {how} now: {after.message or NO_REASON}")
    if after.state == MEASURED:
        how = "failed" if before.state == FAILED else "could not run"
        return Pair(what, before, after, ratio, IMPROVEMENT, f"{how} before, runs now.")
    if FAILED in states:
        return Pair(what, before, after, ratio, UNKNOWN, f"{before.state} before, {after.state} now.")
    return Pair(what, before, after, ratio, SAME, "cannot run, as before.")


def _judge_numbers(what: str, before: Row, after: Row, ratio: tables.Ratio | None, tolerance: Tolerance) -> Pair:
    if before.output(ENDED_WELL) is not None and after.output(ENDED_WELL) is not None:
        return Pair(what, before, after, None, *_stability(before, after))
    if before.output(ESTIMATE) is not None and after.output(ESTIMATE) is not None:
        return Pair(what, before, after, None, *_estimate(before, after, tolerance))
    if ratio is None or ratio.low is None or ratio.high is None:
        return Pair(what, before, after, ratio, UNKNOWN, "a side lacks the throughput or its interval.")
    slack = tolerance.throughput / 100
    if ratio.high < 1 - slack:
        return Pair(what, before, after, ratio, REGRESSION, f"slower by {100 * (1 - ratio.value):.1f} %.")
    memory = _growth(before, after, STABLE_MEMORY)
    if memory is not None and memory > tolerance.memory:
        return Pair(what, before, after, ratio, REGRESSION, f"allocates {memory:.1f} % more memory.")
    if ratio.low > 1 + slack:
        return Pair(what, before, after, ratio, IMPROVEMENT, f"faster by {100 * (ratio.value - 1):.1f} %.")
    return Pair(what, before, after, ratio, SAME)


def _stability(before: Row, after: Row) -> tuple[str, str]:
    """Return verdict and reason of a stability experiment: the fraction of runs that ended well."""
    earlier, later = before.output(ENDED_WELL) or 0.0, after.output(ENDED_WELL) or 0.0
    if later == earlier:
        return SAME, f"{100 * later:.3g} % of the runs end well, as before."
    verdict = REGRESSION if later < earlier else IMPROVEMENT
    return verdict, f"{100 * earlier:.3g} % of the runs ended well before, {100 * later:.3g} % do now."


def _estimate(before: Row, after: Row, tolerance: Tolerance) -> tuple[str, str]:
    """Return verdict and reason of a memory estimate."""
    growth = _growth(before, after, ESTIMATE) or 0.0
    why = f"{before.output(ESTIMATE):.4g} GiB were predicted before, {after.output(ESTIMATE):.4g} GiB are now."
    if growth > tolerance.memory:
        return REGRESSION, why
    return (IMPROVEMENT if growth < -tolerance.memory else SAME), why


def _growth(before: Row, after: Row, name: str) -> float | None:
    """Return by how many percent an output grew, where both sides know it."""
    earlier, later = before.output(name), after.output(name)
    return None if not earlier or later is None else 100 * (later / earlier - 1)
