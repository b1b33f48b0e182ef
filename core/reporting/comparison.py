"""Compares two sets of measurements, before and after, workload by workload. No I/O."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..workload.outputs import LEAST_CPU_SHARE_PERCENT
from ..workload.wording import rounded
from . import answers, ibm, tables
from .rows import FAILED, MEASURED, Row, differing, worded, workload_label

REGRESSION, IMPROVEMENT, SAME, UNCLEAR, UNKNOWN = "regression", "improvement", "same", "unclear", "unknown"
NO_REASON = "the reason is not known."
# PyTorch's allocator gives the same peak in each run; resident memory and the driver's values vary
STABLE_MEMORY = "torch_peak_allocated_gib"
PER_CPU_SECOND = "dataset_tokens_per_cpu_second"
# stability experiments and memory estimates have these instead of a throughput
ENDED_WELL, ESTIMATE = "f_no_error", "memory_estimate_gib"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """By how many percent a value may get worse without being a regression.

    A confidence interval covers the variation within one run; runs of the same workload differ by more, which ``throughput``
    allows for.
    """

    throughput: float = 3.0
    memory: float = 5.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A workload that is in both sets.

    Attributes:
        what: its label among the workloads compared.
        before: the earlier row.
        after: the later row.
        ratio: throughput after over before, or None.
        verdict: ``regression``, ``improvement``, ``same``, ``unclear`` where the interval of the ratio is wider than the tolerance or a
            rate was not steady, or ``unknown`` where a side lacks the numbers.
        why: the reason of the verdict; empty where the throughput is the same.
        label: of one set, what both rows have in common; empty if nothing distinguishes the pair from others.
        reference: of one set, the value of ``before``; empty for a pair of two sets.
        other: of one set, the value of ``after``.
    """

    what: str
    before: Row
    after: Row
    ratio: tables.Ratio | None
    verdict: str
    why: str = ""
    label: str = ""
    reference: str = ""
    other: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All workloads of both sets; ``only_before`` and ``only_after`` are labels of those in one set only.

    With ``loose`` one set is of IBM's actuator, and the workloads of a pair may differ in ``ibm.IGNORED``. ``repeated`` is the
    number of rows that do not count, because a later row has the same workload.
    """

    pairs: list[Pair]
    only_before: list[str]
    only_after: list[str]
    loose: bool = False
    repeated: int = 0

    @property
    def regressions(self) -> list[Pair]:
        """The workloads that are worse by more than the tolerance."""
        return [pair for pair in self.pairs if pair.verdict == REGRESSION]


def compare(before: Sequence[Row], after: Sequence[Row], tolerance: Tolerance) -> Comparison:
    """Pair the rows of equal workloads and judge each pair; the last row of a repeated workload counts."""
    changed = any(map(ibm.is_from, before)) != any(map(ibm.is_from, after))
    first, second = _by_key(before, loosely=changed), _by_key(after, loosely=changed)
    joined = [key for key in first if key in second]
    unnamed = ("source", "actuator", *ibm.IGNORED) if changed else ("source",)
    names = [name for name in differing([*before, *after]) if name not in unnamed]
    return Comparison(
        pairs=[_judge(workload_label(first[key], names), first[key], second[key], tolerance) for key in joined],
        only_before=[workload_label(row, names) for key, row in first.items() if key not in second],
        only_after=[workload_label(row, names) for key, row in second.items() if key not in first],
        loose=changed,
        repeated=len(before) + len(after) - len(first) - len(second),
    )


def compare_by(rows: Sequence[Row], name: str, tolerance: Tolerance) -> Comparison:
    """Pair rows of one set that differ in one property only: the first value of the property with each other value.

    Args:
        rows: measurements; the last row of a repeated workload counts.
        name: a property of ``Workload``, ``method`` or ``actuator``.
        tolerance: by how much a value may get worse; the memory of training may differ by any amount.
    """
    groups: dict[Any, dict[Any, Row]] = {}
    for row in rows:
        groups.setdefault(_key_without(row, name), {})[row.value(name)] = row
    varied = [other for other in differing(rows) if other not in (name, "source")]
    pairs, alone = [], []
    for group in groups.values():
        first, *others = group.values()
        label = workload_label(first, varied) if varied else ""
        if not others:
            alone.append(f"{label}: {worded(name, first.value(name))}".removeprefix(": "))
        for other in others:
            reference, value = worded(name, first.value(name)), worded(name, other.value(name))
            what = f"{value} against {reference}"
            # another batch or method is expected to need other memory
            limits = tolerance if first.throughput is None else dataclasses.replace(tolerance, memory=math.inf)
            pair = _judge(f"{label}: {what}" if label else what, first, other, limits)
            if not first.state == other.state == MEASURED:
                pair = dataclasses.replace(pair, why=_states(name, first, other))
            pairs.append(dataclasses.replace(pair, label=label, reference=reference, other=value))
    return Comparison(pairs, alone, [])


def sentences(pair: Pair) -> list[str]:
    """Return whether one value of a property is faster than another, by how much and how sure; nothing where one has no rate."""
    ratio = pair.ratio
    if ratio is None or not pair.reference:
        return []
    prefix = f"{pair.label}: " if pair.label else ""
    how = {REGRESSION: "slower than", IMPROVEMENT: "faster than", SAME: "about as fast as"}.get(pair.verdict)
    begin = f"{pair.other} is {how} {pair.reference}: " if how else f"{pair.other} against {pair.reference}: unclear, "
    times = f"{rounded(ratio.value)} times its rate"
    if ratio.low is not None and ratio.high is not None:
        times += f", 95 % interval {rounded(ratio.low)} to {rounded(ratio.high)}"
    found = [f"{prefix}{begin}{times}."]
    rows = (pair.after, pair.before)
    busy = any((row.output("cpu_share_percent") or 100.0) < LEAST_CPU_SHARE_PERCENT for row in rows)
    later, earlier = (row.output(PER_CPU_SECOND) for row in rows)
    if pair.verdict == UNCLEAR and busy and later and earlier:
        found.append(
            f"{prefix}{pair.other} against {pair.reference}, per second of CPU time, which other work changes little: "
            f"{rounded(later)} and {rounded(earlier)} tokens, {rounded(later / earlier)} times as many, without an interval."
        )
    return found


def _states(name: str, *rows: Row) -> str:
    """Return which of two workloads of one set ran, and why the other did not."""
    found = []
    for row in rows:
        failure = f" ({row.outputs['failure']})" if "failure" in row.outputs else ""
        how = "failed" if row.state == FAILED else f"cannot run{failure}"
        reason = f": {(row.message or NO_REASON).rstrip('.')}"
        found.append(f"{worded(name, row.value(name))} {'runs' if row.state == MEASURED else how + reason}")
    return f"{'; '.join(found)}."


def _key_without(row: Row, name: str) -> tuple[Any, ...]:
    """Return a key that is equal for rows which differ only in ``name``; the experiment's name contains the method."""
    asked = sorted((one, row.value(one)) for one in row.workload if one != name and not row.is_default(one))
    return ("" if name == "actuator" else row.actuator, "" if name == "method" else row.experiment, *asked)


def _by_key(rows: Iterable[Row], *, loosely: bool) -> dict[tuple[Any, ...], Row]:
    """Return rows by workload; loosely: whichever actuator measured it, in which release, and when it ended."""
    return {ibm.key(row) if loosely else row.key: row for row in rows}


def _judge(what: str, before: Row, after: Row, tolerance: Tolerance) -> Pair:
    states = (before.state, after.state)
    ratio = tables.ratio(after, before)
    if states == (MEASURED, MEASURED):
        return _judge_numbers(what, before, after, ratio, tolerance)
    if before.state == MEASURED:
        failure = f" ({after.outputs['failure']})" if "failure" in after.outputs else ""
        how = "failed" if after.state == FAILED else f"cannot run{failure}"
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
    low, high = (ratio.low, ratio.high) if ratio is not None else (None, None)
    if ratio is not None and low is None and (ibm.is_from(before) or ibm.is_from(after)):
        # IBM's actuator gives no interval: the tolerance alone decides
        low = high = ratio.value
    if ratio is None or low is None or high is None:
        return Pair(what, before, after, ratio, UNKNOWN, "throughput or interval is missing on one side.")
    # no two measurements take equally long to the nanosecond
    if before.outputs == after.outputs and before.output("total_s") is not None:
        return Pair(
            what, before, after, None, UNCLEAR, "both are the same stored measurement; measure again to compare."
        )
    slack = tolerance.throughput / 100
    unsteady = [side for side, row in (("first", before), ("second", after)) if answers.unreliable_reason(row)]
    if high < 1 - slack and not unsteady:
        return Pair(what, before, after, ratio, REGRESSION, f"slower by {100 * (1 - ratio.value):.1f} %.")
    memory = _growth(before, after, STABLE_MEMORY)
    if memory is not None and memory > tolerance.memory:
        return Pair(what, before, after, ratio, REGRESSION, f"allocates {memory:.1f} % more memory.")
    if unsteady:
        # its interval covers the variation while it was measured, not the drift or other work that made it unsteady
        which = f"the {unsteady[0]} rate was" if len(unsteady) == 1 else "both rates were"
        return Pair(
            what, before, after, ratio, UNCLEAR, f"{which} not steady; measure again without other work, or longer."
        )
    if low > 1 + slack:
        return Pair(what, before, after, ratio, IMPROVEMENT, f"faster by {100 * (ratio.value - 1):.1f} %.")
    seen = (high - low) / 2 + slack
    if seen > 2 * slack:
        return Pair(
            what,
            before,
            after,
            ratio,
            UNCLEAR,
            f"changes of less than {100 * seen:.0f} % cannot be distinguished from noise; measure longer.",
        )
    return Pair(what, before, after, ratio, SAME)


def _stability(before: Row, after: Row) -> tuple[str, str]:
    """Return verdict and reason of a stability experiment, from the fraction of successful runs."""
    earlier, later = before.output(ENDED_WELL) or 0.0, after.output(ENDED_WELL) or 0.0
    if later == earlier:
        return SAME, f"{100 * later:.3g} % of the runs succeed, as before."
    verdict = REGRESSION if later < earlier else IMPROVEMENT
    return verdict, f"{100 * earlier:.3g} % of the runs succeeded before, {100 * later:.3g} % do now."


def _estimate(before: Row, after: Row, tolerance: Tolerance) -> tuple[str, str]:
    """Return verdict and reason of a memory estimate."""
    growth = _growth(before, after, ESTIMATE) or 0.0
    why = f"predicted memory: {before.output(ESTIMATE):.4g} GiB before, {after.output(ESTIMATE):.4g} GiB now."
    if growth > tolerance.memory:
        return REGRESSION, why
    return (IMPROVEMENT if growth < -tolerance.memory else SAME), why


def _growth(before: Row, after: Row, name: str) -> float | None:
    """Return by how many percent an output grew, or None where a side lacks it."""
    earlier, later = before.output(name), after.output(name)
    return None if not earlier or later is None else 100 * (later / earlier - 1)
