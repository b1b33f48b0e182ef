"""Sentences about a set of measurements: the fastest workload and those that may be as fast, least memory, lowest cost. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ..protocol.stopping import LEAST_MEASURED
from ..workload.outputs import LEAST_CPU_SHARE_PERCENT
from ..workload.wording import plus_minus, rounded
from . import tables
from .rows import MEASURED, MEMORY, Row, counted, differing, workload_label

COST = "usd_per_million_tokens"
MOST_NAMED = 4
# up to so many models are answered one by one: among all of them the smallest would always be the fastest
MOST_MODELS = 3


@dataclasses.dataclass(frozen=True)
class Expense:
    """Time and cost of training on a number of tokens at the rate of one workload.

    Attributes:
        row: the measurement.
        hours: duration, with all devices of the workload in parallel.
        usd: cost; None without a price.
        low: ``low * hours`` and ``low * usd`` are the lower ends of the 95 % confidence intervals; None without an interval.
        high: the same for the upper ends.
    """

    row: Row
    hours: float
    usd: float | None
    low: float | None
    high: float | None

    def interval(self, value: float) -> str:
        """Return the 95 % interval of ``value``, which is its hours or its cost; empty if none is known. Its ends are not equally far."""
        if self.low is None:
            return ""
        return f"{rounded(value * self.low)} to {'no limit' if self.high is None else rounded(value * self.high)}"


def priced(rows: Sequence[Row], usd_per_device_hour: float | None) -> list[Row]:
    """Return the rows with the cost at another price of a GPU (on CPU: of a process) for an hour; None leaves them as they are."""
    if usd_per_device_hour is None:
        return list(rows)
    found = []
    for row in rows:
        if row.state == MEASURED and row.throughput:
            usd = usd_per_device_hour * row.devices / 3600 / row.throughput * 1e6
            row = dataclasses.replace(row, outputs={**row.outputs, COST: usd})
        found.append(row)
    return found


def expenses(rows: Sequence[Row], tokens: float) -> list[Expense]:
    """Return time and cost of training on real tokens for each measured workload, the cheapest first; without prices the fastest."""
    found = []
    for row in tables.with_throughput(rows):
        if not row.throughput:
            continue
        hours = tokens / row.throughput / 3600
        known = row.output(COST)
        usd = None if known is None else known * tokens / 1e6
        half = row.half_width
        factors = (None, None) if half is None else (1 / (1 + half), 1 / (1 - half) if half < 1 else None)
        found.append(Expense(row, hours, usd, *factors))
    return sorted(found, key=lambda one: (one.usd is None, one.usd if one.usd is not None else one.hours))


def first_choice(found: Sequence[Expense]) -> Expense:
    """Return the first of these expenses whose rate was steady; the first where none was."""
    return next((one for one in found if not unreliable_reason(one.row)), found[0])


def unreliable_reason(row: Row) -> str:
    """Return why a rate cannot be relied on: ``1 step, not steady`` or ``not steady``; empty if it can, or if this is unknown."""
    steps = row.output("measured_steps")
    if steps is not None and steps < LEAST_MEASURED:
        return f"{counted(int(steps), 'step')}, not steady"
    return "not steady" if row.output("steady") == 0 else ""


def rate(row: Row) -> str:
    """Return a throughput in words, with its interval and the reason why it cannot be relied on."""
    return ", ".join(
        filter(None, (f"{rounded(row.throughput or 0.0)} tokens/s{interval(row)}", unreliable_reason(row)))
    )


def interval(row: Row) -> str:
    """Return the half-width of a rate's interval, such as `` ± 3 %``, or nothing."""
    return plus_minus(None if row.half_width is None else 100 * row.half_width)


def best(rows: Sequence[Row], value: Callable[[Row], float]) -> Row:
    """Return the row with the highest value among the steady ones; among all where none is steady."""
    return max([row for row in rows if not unreliable_reason(row)] or rows, key=value)


def summary(rows: Sequence[Row], varied: Sequence[str] = ()) -> list[str]:
    """Return sentences about the fastest workloads, the least memory and the lowest cost; empty without a throughput.

    Args:
        rows: the measurements.
        varied: properties that name a workload; empty: those in which the measured ones differ, or all of them, where one was measured.
    """
    measured = tables.with_throughput(rows)
    if not measured:
        return []
    if not varied and 1 < len(models := by_model(measured)) <= MOST_MODELS:
        shared = [name for name in differing(measured) if name != "source"]
        return [sentence for group in models.values() for sentence in summary(group, shared)]
    varied = varied or differing(measured) or [name for name in differing(rows) if name != "source"]
    fastest = best(measured, lambda row: row.throughput or 0.0)
    kind = "workload, none of them steady" if unreliable_reason(fastest) else "steady workload"
    found = [f"Fastest {kind}: {workload_label(fastest, varied)}, with {rate(fastest)}."]
    rivals = [row for row in measured if row is not fastest and _may_be_faster(row, fastest)]
    if rivals:
        names = "; ".join(f"{workload_label(row, varied)} ({rate(row)})" for row in rivals[:MOST_NAMED])
        more = f"; and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
        found.append(f"These may be faster: {names}{more}.")
    memory, having = tables.memory_and_rate(rows)
    if memory and having:
        least = min(having, key=lambda row: row.output(memory) or 0.0)
        found.append(
            f"Least memory: {workload_label(least, varied)}, with {rounded(least.output(memory) or 0.0)} GiB, {MEMORY[memory]}."
        )
    priced = [row for row in measured if row.output(COST) is not None]
    if priced:
        cheapest = best(priced, lambda row: -(row.output(COST) or 0.0))
        cost = f"{rounded(cheapest.output(COST) or 0.0)} USD per million real tokens{interval(cheapest)}"
        found.append(
            f"Cheapest: {workload_label(cheapest, varied)}, with {', '.join(filter(None, (cost, unreliable_reason(cheapest))))}."
        )
    return found


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each model."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.value("model_name")), []).append(row)
    return found


def _may_be_faster(row: Row, fastest: Row) -> bool:
    ratio = tables.ratio(row, fastest)
    if ratio is None:
        return False
    # where none is steady, their intervals are the least that can be said
    wide = unreliable_reason(row) and not unreliable_reason(fastest)
    return ratio.value >= 1 if ratio.high is None or wide else ratio.high >= 1


def replayed(rows: Sequence[Row]) -> str:
    """Return a sentence on the rows that ado did not measure anew; empty where there are none."""
    count = sum(row.replayed for row in rows)
    if not count:
        return ""
    return (
        f"{count} of {counted(len(rows), 'workload')} {'is' if count == 1 else 'are'} replayed: measured by an earlier operation, "
        "stored, and shown again by ado. To measure anew: ado create operation … --set operation.parameters.singleMeasurement=false"
    )


def busy(rows: Sequence[Row]) -> str:
    """Return a sentence on the rows that were measured while other work took CPU time from training; empty where there are none."""
    known = [share for row in tables.with_throughput(rows) if (share := row.output("cpu_share_percent")) is not None]
    low = [share for share in known if share < LEAST_CPU_SHARE_PERCENT]
    if not low:
        return ""
    least, most = f"{min(low):.0f}", f"{max(low):.0f}"
    got = least if least == most else f"{least} to {most}"
    return (
        f"The machine was busy during {len(low)} of {counted(len(known), 'workload')}: the training processes got {got} % of the CPU time "
        "that they could have used. Measure again without other work."
    )
