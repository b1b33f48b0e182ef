"""``run --vary``: measures a workload with several values of one property, and compares them."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterator

from ..metrics.report import headline
from ..reporting import answers, comparison
from ..reporting.comparison import Tolerance
from ..reporting.rows import FIELDS, MEASURED, Row, worded
from . import compare
from .console import show

# properties that can be doubled as long as that pays
DOUBLED = ("batch_size", "gradient_accumulation_steps")
# doubling ends where the rate grows by less than this
LEAST_GAIN = 1.03
LARGEST = 65536

# a further word of the command line, property=value -> the measurement
Measure = Callable[[str], Row]


class BadVary(Exception):
    """The option ``--vary`` cannot be used; the message says why."""


def parse(vary: str) -> tuple[str, list[str]]:
    """Return the property that ``--vary`` names, and its values; none for a property that is to be doubled.

    Raises:
        BadVary: the property does not exist, or it has fewer than two values.
    """
    name, equals, listed = vary.partition("=")
    if name not in (*FIELDS, "method"):
        close = difflib.get_close_matches(name[:60], (*FIELDS, "method"), n=3, cutoff=0.6)
        use = " or ".join(close) or "method, batch_size or another one"
        raise BadVary(f"--vary {name:.60} is not a property of a workload; use {use}.")
    if not equals:
        if name not in DOUBLED:
            raise BadVary(
                f"--vary {name} needs values, such as --vary {name}=V1,V2; {' and '.join(DOUBLED)} can do without."
            )
        return name, []
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if len(set(values)) < 2:
        raise BadVary(f"--vary {vary:.60} has fewer than two values; expected {name}=V1,V2.")
    return name, list(dict.fromkeys(values))


def main(name: str, values: list[str], first: int, measure: Measure, *, as_json: bool) -> int:
    """Measure all values, print the comparison and return the exit status: 0 something was measured, else 1.

    Args:
        name: the property.
        values: its values; empty: ``first``, then twice the value as long as the rate grows.
        first: the value to begin with where ``values`` is empty.
        measure: measures the workload of the command line with a further word.
        as_json: print JSON.
    """
    rows: list[Row] = []
    for value in values or _doubled(first, rows):
        row = measure(f"{name}={value}")
        rows.append(row)
        text = headline(row.outputs) if row.state == MEASURED else row.message
        lines = [f"{worded(name, row.value(name))}: {text}", *(f"  {note}" for note in row.metadata.get("notes", ()))]
        print("\n".join(lines), file=sys.stderr, flush=True)
    show(_json(rows) if as_json else _text(rows, name))
    return 0 if any(row.state == MEASURED for row in rows) else 1


def _doubled(value: int, rows: list[Row]) -> Iterator[str]:
    """Yield a value, then its double as long as the latest row ran and was faster than those before."""
    while value <= LARGEST:
        yield str(value)
        *before, latest = [row.throughput or 0.0 for row in rows]
        if rows[-1].state != MEASURED or (before and latest < LEAST_GAIN * max(before)):
            return
        value *= 2


def _text(rows: list[Row], name: str) -> str:
    found = comparison.compare_by(rows, name, Tolerance())
    lines = answers.summary(rows)
    if found.pairs:
        lines += ["", compare.text(found)]
    return "\n".join(lines or ["Nothing was measured."])


def _json(rows: list[Row]) -> str:
    return json.dumps(
        [{"workload": row.workload, "properties": row.outputs, "message": row.message} for row in rows], indent=2
    )
