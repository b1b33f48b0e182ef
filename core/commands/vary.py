"""``run --vary``: measures a workload with several values of one property, or with both actuators, and compares them."""

from __future__ import annotations

import contextlib
import difflib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..measurement.plugin import Plugin
from ..metrics.report import headline
from ..reporting import answers, comparison, tables
from ..reporting.comparison import Tolerance
from ..reporting.rows import FIELDS, MEASURED, Row, worded
from . import compare
from .arguments import BadUse, read_workload
from .bench import Bench, other
from .console import show
from .options import Actuator
from .progress import Bar, Changes, terminated_as_interrupted

# a word of --vary that is no property
ACTUATOR = "actuator"
NAMES = (*FIELDS, "method", ACTUATOR)
# properties that can be doubled as long as that pays
DOUBLED = ("batch_size", "gradient_accumulation_steps")
# doubling ends where the rate grows by less than this
LEAST_GAIN = 1.03
LARGEST = 65536

# a further word of the command line, property=value -> the measurement
Measure = Callable[[str], Row]


def parse(vary: str) -> tuple[str, list[str]]:
    """Return the property that ``--vary`` names, and its values; none for a property that is to be doubled.

    Raises:
        BadUse: the property does not exist, or it has fewer than two values.
    """
    name, equals, listed = vary.partition("=")
    if name not in NAMES:
        close = difflib.get_close_matches(name[:60], NAMES, n=3, cutoff=0.6)
        use = " or ".join(close) or "method, batch_size or another one"
        raise BadUse(f"--vary {name:.60} is not a property of a workload; use {use}.")
    if not equals:
        if name not in DOUBLED:
            raise BadUse(
                f"--vary {name} needs values, such as --vary {name}=V1,V2; {' and '.join(DOUBLED)} can do without."
            )
        return name, []
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if len(set(values)) < 2:
        raise BadUse(f"--vary {vary:.60} has fewer than two values; expected {name}=V1,V2.")
    return name, list(dict.fromkeys(values))


def run(
    vary: str,
    plugin: Plugin,
    parameters_class: type[Any],
    words: list[str],
    *,
    experiment: str | None,
    config: Path | None,
    as_json: bool,
) -> int:
    """Measure the workload of a command line with each value, and return the exit status; the arguments are those of ``run.main``.

    Raises:
        BadUse: a word or a value cannot be used; nothing was measured.
        KeyboardInterrupt: no value had been measured yet.
    """
    name, listed = parse(vary)
    progress = Bar() if sys.stderr.isatty() else Changes()
    options: dict[str, Any] = {"experiment": experiment, "config": config, "progress": progress}
    # both measure the experiment that a point file names for one of them
    options["of_any_actuator"] = name == ACTUATOR
    with terminated_as_interrupted(), contextlib.ExitStack() as ends:
        bench = ends.enter_context(Bench(plugin, parameters_class, words, **options))
        benches = {plugin.identifier: bench}
        if name == ACTUATOR:
            if unknown := [value for value in listed if value not in tuple(Actuator)]:
                raise BadUse(f"--vary actuator: {unknown[0]!r:.60} does not exist; use {' or '.join(Actuator)}.")
            for value in listed:
                if value not in benches:
                    benches[value] = ends.enter_context(other(value, words, **options))
        for value in listed:  # before the first is measured
            used, word = (benches[value], "") if name == ACTUATOR else (bench, f"{name}={value}")
            if fault := used.fault(word):
                raise BadUse(f"--vary {name}: nothing was measured. {fault}")
        ends.enter_context(progress)

        def measure(word: str) -> Row:
            if name != ACTUATOR:
                return Row(*bench.measure(word))
            used = benches[word.partition("=")[2]]
            row = Row(*used.measure(""))
            # idle trainers of one stack would keep memory from the other
            used.end_trainers()
            return row

        first = _first(name, words, experiment, plugin) if name in DOUBLED else 1
        return main(name, listed, first, measure, as_json=as_json)


def _first(name: str, words: list[str], experiment: str | None, plugin: Plugin) -> int:
    """Return the value to begin with where the option names none: that of the workload, else one for each device."""
    values, _ = read_workload(words, experiment, plugin)
    devices = values.get("number_gpus") or values.get("number_nodes") or 1
    first = values.get(name) or (devices if name == "batch_size" else 1)
    return first if isinstance(first, int) else 1


def main(name: str, values: list[str], first: int, measure: Measure, *, as_json: bool) -> int:
    """Measure all values, print the comparison and return the exit status: 0 something was measured, else 1.

    An interruption ends the measuring; what was measured before is compared, and the exit status is that of the signal.

    Args:
        name: the property.
        values: its values; empty: ``first``, then twice the value as long as the rate grows.
        first: the value to begin with where ``values`` is empty.
        measure: measures the workload of the command line with a further word.
        as_json: print JSON.

    Raises:
        KeyboardInterrupt: no value had been measured yet.
    """
    rows: list[Row] = []
    interrupted: int | None = None
    try:
        for value in values or _doubled(first, rows):
            row = measure(f"{name}={value}")
            rows.append(row)
            text = headline(row.outputs) if row.state == MEASURED else row.message
            notes = (f"  {note}" for note in row.metadata.get("notes", ()))
            print("\n".join([f"{worded(name, row.value(name))}: {text}", *notes]), file=sys.stderr, flush=True)
    except KeyboardInterrupt as interruption:
        if not rows:
            raise
        interrupted = signal.SIGTERM if interruption.args else signal.SIGINT
        print("Interrupted. What was measured before is compared.", file=sys.stderr, flush=True)
    show(_json(rows) if as_json else _text(rows, name, "" if values or interrupted else _end_of_doubling(rows, name)))
    if interrupted is not None:
        return 128 + interrupted
    return 0 if any(row.state == MEASURED for row in rows) else 1


def _doubled(value: int, rows: list[Row]) -> Iterator[str]:
    """Yield a value, then its double as long as the latest row ran and was faster than those before."""
    while value <= LARGEST:
        yield str(value)
        *before, latest = [row.throughput or 0.0 for row in rows]
        if rows[-1].state != MEASURED or (before and latest < LEAST_GAIN * max(before)):
            return
        value *= 2


def _end_of_doubling(rows: list[Row], name: str) -> str:
    """Return why no larger value was measured."""
    *before, latest = rows
    value = worded(name, latest.value(name))
    if latest.state != MEASURED:
        return f"Larger values were not measured, since {value} did not run."
    if not before:
        return ""
    best = max(before, key=lambda row: row.throughput or 0.0)
    if (latest.throughput or 0.0) >= LEAST_GAIN * (best.throughput or 0.0):
        return f"Larger values than {LARGEST} are not measured."
    gain = f"{100 * (LEAST_GAIN - 1):.0f} % faster than {worded(name, best.value(name))}"
    text = f"Larger values were not measured, since {value} was not {gain}"
    ratio = tables.ratio(latest, best)
    sure = ratio is not None and ratio.high is not None and ratio.high < LEAST_GAIN
    if sure and not any(map(answers.unreliable_reason, (latest, best))):
        return f"{text}."
    return f"{text}; their intervals do not exclude it. --vary {name}={best.value(name)},{latest.value(name)},... measures given values."


def _text(rows: list[Row], name: str, end: str) -> str:
    found = comparison.compare_by(rows, name, Tolerance())
    lines = [*answers.summary(rows, [name]), *filter(None, [end])]
    if found.pairs:
        lines += ["", compare.text(found)]
    return "\n".join(lines or ["Nothing was measured."])


def _json(rows: list[Row]) -> str:
    return json.dumps(
        [{"workload": row.workload, "properties": row.outputs, "message": row.message} for row in rows], indent=2
    )
