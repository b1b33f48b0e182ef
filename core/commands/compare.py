"""The ``compare`` command: two sets of measurements as a table, and an exit status for continuous integration."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

from ..reporting import comparison, read
from ..reporting.comparison import Comparison, Pair, Tolerance
from ..reporting.rows import counted

MARKS = {"regression": "- ", "improvement": "+ ", "same": "  ", "unknown": "? "}


def main(plugin: str, arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0 no regression, 1 a regression, 2 bad use or nothing to compare."""
    options = _parser(plugin).parse_args(arguments)
    try:
        before, after = read.rows(options.before), read.rows(options.after)
    except read.Unreadable as reason:
        print(reason, file=sys.stderr)
        return 2
    found = comparison.compare(before, after, Tolerance(options.tolerance, options.memory_tolerance))
    if not found.pairs:
        print(f"{options.before} and {options.after} have no workload in common.", file=sys.stderr)
        return 2
    try:
        print(as_json(found) if options.json else text(found), flush=True)
    except BrokenPipeError:  # the reader, say ``head``, has seen enough
        sys.stdout = None  # type: ignore[assignment]
    if all(pair.verdict == comparison.UNKNOWN for pair in found.pairs):
        print("No workload can be compared: each has a side without a throughput and its interval.", file=sys.stderr)
        return 2
    return 1 if found.regressions else 0


def text(found: Comparison) -> str:
    """Return the comparison for a terminal."""
    heads = ("workload", "before", "after", "ratio", "95 % interval", "verdict")
    table = [heads, *(_cells(pair) for pair in found.pairs)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(heads))]
    lines = ["  " + _line(heads, widths)]
    lines += [MARKS[pair.verdict] + _line(_cells(pair), widths) for pair in found.pairs]
    lines += ["", "Rates are real tokens per second of all devices.", _summary(found)]
    for side, labels in (("before", found.only_before), ("after", found.only_after)):
        if labels:
            lines.append(f"Only {side}: {'; '.join(labels[:8])}{'; ...' if len(labels) > 8 else ''}")
    return "\n".join(lines)


def as_json(found: Comparison) -> str:
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
        f"{pair.verdict}: {pair.why}" if pair.why else pair.verdict,
    )


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
    words = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    return f"{counted(len(found.pairs), 'workload')} compared: {', '.join(words)}."


def _parser(plugin: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m ado_actuators.{plugin}.compare",
        description="Compare two sets of measurements. Exit status: 0 no regression, 1 a regression, 2 nothing to compare.",
    )
    source = "an operation's or a space's identifier, latest, a CSV of ado show measurements, or a YAML file of ado show trace"
    parser.add_argument("before", help=source)
    parser.add_argument("after", help="the same, of later measurements")
    parser.add_argument(
        "--tolerance", type=_percent, default=Tolerance.throughput, metavar="PERCENT",
        help="flag when the whole interval of the throughput lies further below 1 than this (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--memory-tolerance", type=_percent, default=Tolerance.memory, metavar="PERCENT",
        help="flag when torch allocates, or is predicted to, more than this above before (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text} is no percentage from 0 to below 100.")
    return value
