"""What a set of measurements says in words: the fastest workload and those that may be as fast, the smallest, the cheapest. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from . import tables
from .rows import MEMORY, Row, differing, workload_label

COST = "usd_per_million_tokens"
# below this many steps an interval is not to be trusted
LEAST_STEPS = 10
MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Budget:
    """A number of tokens to train on, and the price of a device-hour.

    Attributes:
        tokens: real tokens.
        price_usd: price of one GPU (on CPU: one node) for an hour; None: the price that the measurements were given.
    """

    tokens: float
    price_usd: float | None = None


@dataclasses.dataclass(frozen=True)
class Expense:
    """What a budget takes with the rate of one workload; the ends are those of the rate's 95 % confidence interval, or None.

    Attributes:
        row: the measurement.
        hours: of all devices together running in parallel.
        usd: cost; None without a price.
        low: the smaller factor on both.
        high: the larger factor on both.
    """

    row: Row
    hours: float
    usd: float | None
    low: float | None
    high: float | None


def expenses(rows: Sequence[Row], budget: Budget) -> list[Expense]:
    """Return what the budget takes with each measured workload, the cheapest first; without a price the fastest first."""
    found = []
    for row in tables.with_throughput(rows):
        if not row.throughput:
            continue
        hours = budget.tokens / row.throughput / 3600
        usd = None if budget.price_usd is None else hours * budget.price_usd * row.devices
        known = row.output(COST)
        if budget.price_usd is None and known is not None:
            usd = known * budget.tokens / 1e6
        half = row.half_width
        factors = (None, None) if half is None else (1 / (1 + half), 1 / (1 - half) if half < 1 else None)
        found.append(Expense(row, hours, usd, *factors))
    return sorted(found, key=lambda one: (one.usd is None, one.usd if one.usd is not None else one.hours))


def sure(row: Row) -> bool:
    """Whether a rate was steady over enough steps; True where the outputs do not tell."""
    steps = row.output("measured_steps")
    return row.output("steady") != 0 and (steps is None or steps >= LEAST_STEPS)


def rate(row: Row) -> str:
    """Return a throughput in words, with its interval or the reason why it has none worth the name."""
    text = f"{_rounded(row.throughput or 0.0)} tokens/s"
    steps = row.output("measured_steps")
    if row.half_width is not None:
        text += f" ± {100 * row.half_width:.2g} %"
    if steps is not None and steps < LEAST_STEPS:
        return f"{text}, {steps:.0f} measured step{'s' if steps != 1 else ''} only"
    return f"{text}, not steady" if row.output("steady") == 0 else text


def summary(rows: Sequence[Row]) -> list[str]:
    """Return sentences about the fastest workloads, the least memory and the lowest cost; empty without a throughput."""
    measured = tables.with_throughput(rows)
    if not measured:
        return []
    varied = differing(measured)
    steady = [row for row in measured if sure(row)]
    fastest = max(steady or measured, key=lambda row: row.throughput or 0.0)
    kind = "steady workload" if steady else "workload, none of them steady"
    found = [f"Fastest {kind}: {workload_label(fastest, varied)}, with {rate(fastest)}."]
    rivals = [row for row in measured if row is not fastest and _may_be_faster(row, fastest)]
    if rivals:
        names = "; ".join(f"{workload_label(row, varied)} ({rate(row)})" for row in rivals[:MOST_NAMED])
        more = f"; and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
        found.append(f"It cannot be told whether these are faster: {names}{more}.")
    memory, having = tables.memory_and_rate(rows)
    if memory and having:
        least = min(having, key=lambda row: row.output(memory) or 0.0)
        found.append(
            f"Least memory: {workload_label(least, varied)}, with {_rounded(least.output(memory) or 0.0)} GiB, {MEMORY[memory]}."
        )
    priced = [row for row in measured if row.output(COST) is not None]
    if priced:
        cheapest = min(priced, key=lambda row: row.output(COST) or 0.0)
        found.append(
            f"Cheapest: {workload_label(cheapest, varied)}, with {_rounded(cheapest.output(COST) or 0.0)} USD per million real tokens."
        )
    return found


def _may_be_faster(row: Row, fastest: Row) -> bool:
    ratio = tables.ratio(row, fastest)
    if ratio is None:
        return False
    return ratio.value >= 1 if ratio.high is None or not sure(row) else ratio.high >= 1


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
