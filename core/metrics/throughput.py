"""Computes step times and rates from the step ends and counts of every rank. Pure: standard library only, no clock.

The functions raise ``ImpossibleRecord`` for input that contradicts itself instead of returning a wrong number.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from ..failures import Broken
from ..protocol.confidence import half_width_percent


class ImpossibleRecord(Broken):
    """The records contradict time, arithmetic or each other, so every rate would be wrong."""


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Statistics of the measured steps.

    Attributes:
        count: measured steps.
        total_s: their sum, seconds.
        mean_s: arithmetic mean, seconds.
        median_s: median, seconds.
        p95_s: 95th percentile with linear interpolation between order statistics, seconds.
        cv: sample standard deviation over mean; None with a single step.
        ci95_percent: half-width of the 95 % confidence interval of the mean, percent of it; None with a single step.
    """

    count: int
    total_s: float
    mean_s: float
    median_s: float
    p95_s: float
    cv: float | None
    ci95_percent: float | None


def durations(begin_s: float, step_end_s: Sequence[float]) -> list[float]:
    """Return the durations of one rank's steps in seconds, step end to step end.

    Args:
        begin_s: when training began, on the same clock as ``step_end_s``.
        step_end_s: end of each optimizer step, seconds.

    Raises:
        ImpossibleRecord: an end is not finite or not later than the one before.
    """
    edges = [begin_s, *step_end_s]
    for step, (before, after) in enumerate(itertools.pairwise(edges), start=1):
        if not (math.isfinite(before) and math.isfinite(after)):
            raise ImpossibleRecord(f"The end of step {step} is {after} s; a finite number is needed.")
        if after <= before:
            raise ImpossibleRecord(
                f"Step {step} ended at {after} s, not after the step before it, which ended at {before} s."
            )
    return [after - before for before, after in itertools.pairwise(edges)]


def slowest(per_rank: Sequence[Sequence[float]]) -> list[float]:
    """Return the duration of each step as the maximum over ranks.

    Args:
        per_rank: durations in seconds, one sequence per rank, of equal length.

    Raises:
        ImpossibleRecord: no rank, or ranks that disagree on the number of steps.
    """
    lengths = sorted({len(rank) for rank in per_rank})
    if len(lengths) != 1:
        raise ImpossibleRecord(f"The ranks report different numbers of steps: {lengths or 'there is no rank'}.")
    return [max(step) for step in zip(*per_rank, strict=True)]


def total(name: str, per_rank: Sequence[Sequence[int]], steps: int, skip: int) -> int:
    """Return a count summed over ranks and measured steps.

    Args:
        name: what is counted, for the error.
        per_rank: counts per step, one sequence per rank.
        steps: optimizer steps that ran.
        skip: leading steps that are not measured.

    Raises:
        ImpossibleRecord: a count is negative, or there is not one per step.
    """
    for counts in per_rank:
        if len(counts) != steps:
            raise ImpossibleRecord(f"{name} has {len(counts)} entries for {steps} steps.")
        if any(count < 0 for count in counts):
            raise ImpossibleRecord(f"{name} is negative: {min(counts)}.")
    return sum(sum(counts[skip:]) for counts in per_rank)


def summarise(measured: Sequence[float]) -> StepTimes:
    """Return the statistics of measured step durations in seconds.

    Raises:
        ImpossibleRecord: there is no step, or a duration is not positive.
    """
    if not measured:
        raise ImpossibleRecord("No step was measured.")
    if min(measured) <= 0:
        raise ImpossibleRecord(f"A step cannot take {min(measured)} s.")
    mean = math.fsum(measured) / len(measured)
    several = len(measured) > 1
    return StepTimes(
        count=len(measured),
        total_s=math.fsum(measured),
        mean_s=mean,
        median_s=statistics.median(measured),
        p95_s=percentile(measured, 95),
        cv=statistics.stdev(measured) / mean if several else None,
        ci95_percent=half_width_percent(measured) if several else None,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile with linear interpolation between order statistics (Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def rate(count: float, seconds: float) -> float:
    """Return ``count`` per second.

    Raises:
        ImpossibleRecord: a negative count, or a time that is not positive.
    """
    if count < 0 or not seconds > 0:
        raise ImpossibleRecord(
            f"A rate of {count} in {seconds} s is undefined; the count must not be negative, and the time must be positive."
        )
    return count / seconds
