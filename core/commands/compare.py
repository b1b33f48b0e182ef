"""The ``compare`` command: two sets of measurements as a table, and an exit status for continuous integration."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from ..reporting import comparison, ibm, read
from ..reporting.comparison import Comparison, Pair, Tolerance
from ..reporting.rows import GIVEN, MEASURED, counted
from .console import show

# more pairs are answered by the table alone
MOST_SENTENCES = 3
MARKS = {"regression": "- ", "improvement": "+ ", "same": "  ", "unclear": "~ ", "unknown": "? "}


def main(
    before: str, after: str | None, *, by: str | None, tolerance: float, memory_tolerance: float, as_json: bool
) -> int:
    """Run the command; return its exit status: 0 no regression, 1 a regression, 2 usage error or nothing to compare.

    Args:
        before: a source of measurements.
        after: another source; None with ``by``.
        by: property whose values are compared within ``before``; None: the two sources are compared.
        tolerance: of the throughput, percent.
        memory_tolerance: of memory, percent.
        as_json: print JSON.
    """
    if (after is None) == (by is None):
        print("Give two sources to compare, or one source and --by PROPERTY.", file=sys.stderr)
        return 2
    if by is not None and by not in (*GIVEN, "actuator"):
        print(
            f"--by {by:.60} is not a property of a workload; use method, model_name, batch_size or another one.",
            file=sys.stderr,
        )
        return 2
    limits = Tolerance(tolerance, memory_tolerance)
    try:
        rows = read.rows(before)
        others = None if after is None else read.rows(after)
    except read.Unreadable as reason:
        print(reason, file=sys.stderr)
        return 2
    found = comparison.compare_by(rows, str(by), limits) if others is None else comparison.compare(rows, others, limits)
    if not found.pairs:
        what = (
            f"{before} has no two workloads that differ in {by} only."
            if by
            else f"{before} and {after} have no workload in common."
        )
        print(what, file=sys.stderr)
        return 2
    show(json_text(found) if as_json else text(found))
    if all(pair.verdict == comparison.UNKNOWN for pair in found.pairs):
        print("No workload can be compared: throughput or interval is missing on one side of each.", file=sys.stderr)
        return 2
    return 1 if found.regressions and by is None else 0


def text(found: Comparison) -> str:
    """Return the comparison for a terminal."""
    sides = ("reference", "other") if within(found) else ("before", "after")
    heads = ("workload", *sides, "ratio", "95 % interval", "verdict")
    table = [heads, *(_cells(pair) for pair in found.pairs)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(heads))]
    lines = (
        [] if len(found.pairs) > MOST_SENTENCES else [one for pair in found.pairs for one in comparison.sentences(pair)]
    )
    lines += ["", "  " + _line(heads, widths)] if lines else ["  " + _line(heads, widths)]
    lines += [MARKS[pair.verdict] + _line(_cells(pair), widths) for pair in found.pairs]
    lines += ["", "Rates are real tokens per second of all devices.", _summary(found)]
    if found.loose:
        lines += [f"One side is of IBM's actuator, which gives no interval. Not compared: {', '.join(ibm.IGNORED)}."]
    if found.repeated:
        lines += [f"{counted(found.repeated, 'measurement')} left out: of equal workloads the last counts."]
    alone = "Without another value" if within(found) else "Only before"
    for what, labels in ((alone, found.only_before), ("Only after", found.only_after)):
        if labels:
            lines.append(f"{what}: {'; '.join(labels[:8])}{'; ...' if len(labels) > 8 else ''}")
    return "\n".join(lines)


def json_text(found: Comparison) -> str:
    """Return the comparison as JSON."""
    pairs = [
        {
            "workload": pair.what,
            "before": pair.before.throughput,
            "after": pair.after.throughput,
            "ratio": pair.ratio and pair.ratio.value,
            "ratio_low": pair.ratio and pair.ratio.low,
            "ratio_high": pair.ratio and pair.ratio.high,
            "verdict": pair.verdict,
            "why": pair.why,
        }
        for pair in found.pairs
    ]
    return json.dumps({"pairs": pairs, "only_before": found.only_before, "only_after": found.only_after}, indent=2)


def _cells(pair: Pair) -> tuple[str, ...]:
    ratio = pair.ratio
    interval = (
        f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio and ratio.low is not None and ratio.high is not None else ""
    )
    return (
        pair.what,
        _rate(pair.before.throughput),
        _rate(pair.after.throughput),
        f"{ratio.value:.3f}" if ratio else "",
        interval,
        _reason(pair),
    )


def _reason(pair: Pair) -> str:
    """Return the verdict with its reason; of one set the reason alone where it says which of both is better."""
    if pair.reference and pair.verdict in (comparison.REGRESSION, comparison.IMPROVEMENT):
        return pair.why
    return f"{pair.verdict}: {pair.why}" if pair.why else pair.verdict


def _word(pair: Pair) -> str:
    """Return the verdict as it is counted; within one set nothing regresses or improves."""
    if not pair.reference or pair.verdict not in (comparison.REGRESSION, comparison.IMPROVEMENT):
        return pair.verdict
    if not pair.before.state == pair.after.state == MEASURED:
        return "of which one does not run"
    words = ("slower", "faster") if pair.ratio is not None else ("worse", "better")
    return words[pair.verdict == comparison.IMPROVEMENT]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    right = (1, 2, 3)
    padded = [
        cell.rjust(width) if at in right else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _summary(found: Comparison) -> str:
    counts = {verdict: sum(pair.verdict == verdict for pair in found.pairs) for verdict in MARKS}
    # in the order of the verdicts
    pairs = sorted(found.pairs, key=lambda pair: [*MARKS].index(pair.verdict))
    words = [f"{count} {word}" for word, count in Counter(map(_word, pairs)).items()]
    text = f"{counted(len(found.pairs), 'workload')} compared: {', '.join(words)}."
    return text if within(found) else f"{text} {_verdict(counts)}"


def within(found: Comparison) -> bool:
    """Whether the pairs are of one set, which differ in a property."""
    return bool(found.pairs and found.pairs[0].reference)


def _verdict(counts: Mapping[str, int]) -> str:
    """Return whether the later set is worse, as far as that can be told."""
    worse, unsure = counts["regression"], counts["unclear"] + counts["unknown"]
    if worse:
        return f"{worse} got worse."
    if unsure == sum(counts.values()):
        return "Whether any got worse cannot be told."
    return "None got worse." if not unsure else f"None got worse, but for {unsure} that cannot be told."
