"""The HTML page of a report in one file that loads nothing; all text is escaped. Imports jinja2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from ..workload.outputs import OUTPUTS
from . import answers, repeat, tables
from .figure_colours import SERIES, colours_of
from .page_style import SHEET
from .rows import (
    CANNOT_RUN,
    FAILED,
    FIELDS,
    INTERVAL,
    MEASURED,
    MEMORY,
    THROUGHPUT,
    Row,
    counted,
    differing,
    shown,
    worded,
    workload_label,
    yes_or_no,
)
from .templates import template

MOST_ROWS = 5000
MOST_NAMED = 6
COLUMNS = (
    (THROUGHPUT, "real tokens / s"),
    (INTERVAL, "± %"),
    ("step_time_median_s", "step, s"),
    *((name, "memory, GiB") for name in MEMORY),
    ("mfu_percent", "MFU, %"),
    ("limit_percent", "of limit, %"),
    ("energy_joules_per_token", "J / token"),
    ("usd_per_million_tokens", "USD / M tokens"),
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on the page; ``svg`` is inserted as it is, the other fields are escaped."""

    name: str
    title: str
    caption: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        heads: of the columns; all empty: the table has no heads.
        lines: the texts of each line.
        numbers: indices of the right-aligned columns.
        long: index of a column whose cells scroll; None: there is none.
        commands: for each line what its button copies; empty: the table has no buttons.
    """

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    long: int | None = None
    commands: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page; its contents appear in the order of the fields.

    ``key`` explains the colours: what they show, and the index and the text of each.
    """

    name: str
    heading: str
    key: tuple[str, Sequence[tuple[int, str]]] | None = None
    pictures: Sequence[Picture] = ()
    before: Sequence[str] = ()
    table: Table | None = None
    after: Sequence[str] = ()
    items: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is below the heading."""
        return not (self.pictures or self.before or self.table or self.after or self.items)


def html(
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    left_out: Sequence[tuple[str, str]],
    made: str,
    tokens: float | None = None,
) -> str:
    """Return the page.

    Args:
        rows: the measurements.
        pictures: the figures, in order.
        left_out: title and reason of each figure that is missing.
        made: the first sentence of the footer: time, program and sources.
        tokens: real tokens whose hours and cost of training are shown; None leaves that section out.
    """
    sources = ", ".join(dict.fromkeys(row.source for row in rows))
    sections = [
        _budget(rows, tokens),
        Section("figures", "Figures", key=_key(rows) if pictures else None, pictures=pictures),
        Section("stacks", "Both stacks", table=_pairs(rows)),
        Section("failures", "Workloads that cannot run or failed", table=_problems(rows)),
        _measurements(rows),
        _environment(rows),
        Section("left-out", "Figures left out", items=[f"{title}: {reason}" for title, reason in left_out]),
    ]
    return template("page.html.jinja").render(
        sources=sources,
        sheet=SHEET,
        answers=answers.summary(rows),
        repeat=_repeat(rows),
        tiles=_tiles(rows),
        sections=[section for section in sections if not section.empty],
        made=made,
        throughput=THROUGHPUT,
    )


def _repeat(rows: Sequence[Row]) -> str:
    """Return the command that measures the fastest workload again; empty without a throughput."""
    measured = tables.with_throughput(rows)
    return repeat.command(answers.best(measured, lambda row: row.throughput or 0.0)) if measured else ""


def _key(rows: Sequence[Row]) -> tuple[str, Sequence[tuple[int, str]]] | None:
    """Return what the colours of all figures show, or None if they show nothing."""
    colours = colours_of(rows)
    if colours.name is None:
        return None
    values = [worded(colours.name, value) for value in colours.values]
    entries = list(enumerate(values[: len(SERIES)]))
    if len(values) > len(SERIES):
        entries[-1] = (len(SERIES) - 1, f"{entries[-1][1]} and others")
    return f"Colours of all figures, by {colours.name}", entries


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str]]:
    counts = {state: len(tables.in_state(rows, state)) for state in (MEASURED, CANNOT_RUN, FAILED)}
    tiles = [(str(counts[MEASURED]), f"of {counted(len(rows), 'workload')} measured")]
    if counts[CANNOT_RUN]:
        tiles.append((str(counts[CANNOT_RUN]), "cannot run"))
    if counts[FAILED]:
        tiles.append((str(counts[FAILED]), "failed"))
    measured = tables.with_throughput(rows)
    varied = differing(measured)
    if measured:
        best = answers.best(measured, lambda row: row.throughput or 0.0)
        kind_of = (
            f"the highest, {answers.unreliable_reason(best)}"
            if answers.unreliable_reason(best)
            else "the highest steady rate"
        )
        text = f"real tokens / s, {kind_of}: {workload_label(best, varied)}"
        tiles.append((f"{_number(best.throughput)}{answers.interval(best)}", text))
    kind, having = tables.memory_and_rate(rows)
    if kind and having:
        least = min(having, key=lambda row: row.output(kind) or 0.0)
        tiles.append(
            (f"{_number(least.output(kind))} GiB", f"{MEMORY[kind]}, the lowest: {workload_label(least, varied)}")
        )
    return tiles


def _budget(rows: Sequence[Row], tokens: float | None) -> Section:
    found = answers.expenses(rows, tokens) if tokens else []
    if not found or tokens is None:
        return Section("budget", "Budget")
    varied = differing([one.row for one in found])
    lines = [
        [
            workload_label(one.row, varied),
            _number(one.hours),
            one.interval(one.hours),
            _number(one.usd),
            "" if one.usd is None else one.interval(one.usd),
            answers.unreliable_reason(one.row),
        ]
        for one in found
    ]
    heads = ["workload", "hours", "95 % interval", "USD", "95 % interval", ""]
    return Section("budget", f"Training on {tokens:,.0f} tokens", table=Table(heads, lines, frozenset([1, 2, 3, 4])))


def _pairs(rows: Sequence[Row]) -> Table | None:
    pairs = tables.stack_pairs(rows)
    if not pairs:
        return None
    first, second = pairs[0][0].actuator, pairs[0][1].actuator
    varied = differing([row for row, _ in pairs])
    lines = []
    for left, right in pairs:
        ratio = tables.ratio(right, left)
        assert ratio is not None
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None and ratio.high is not None else ""
        lines.append(
            [
                workload_label(left, varied),
                _number(left.throughput),
                _number(right.throughput),
                f"{ratio.value:.3f}",
                interval,
                "; ".join(
                    f"{row.actuator}: {answers.unreliable_reason(row)}"
                    for row in (left, right)
                    if answers.unreliable_reason(row)
                ),
            ]
        )
    heads = ["workload", f"{first}, tokens / s", f"{second}, tokens / s", f"{second} / {first}", "95 % interval", ""]
    return Table(heads, lines, frozenset(range(1, 5)))


def _problems(rows: Sequence[Row]) -> Table | None:
    lines = []
    for problem in tables.problems(rows):
        lines.append(
            [
                problem.state,
                problem.kind,
                problem.message or "The message is in the metadata, which an exported CSV file lacks.",
                str(len(problem.workloads)),
                "; ".join(filter(None, problem.workloads)),
            ]
        )
    return Table(["state", "failure", "why", "workloads", "which"], lines, frozenset([3]), long=4) if lines else None


def _measurements(rows: Sequence[Row]) -> Section:
    """Return the table of the measured workloads; the others are in the table of failures."""
    measured = tables.in_state(rows, MEASURED)
    if not measured:
        return Section("measurements", "Measurements", before=_constants(rows, differing(rows)))
    names = differing(measured) or ["model_name"]
    outputs = [(name, head) for name, head in COLUMNS if any(row.output(name) is not None for row in measured)]
    outputs += [(name, name) for name in _others(measured)]
    # one column of memory is enough: the preferred metric
    kinds = [name for name, _ in outputs if name in MEMORY]
    outputs = [(name, head) for name, head in outputs if name not in kinds[1:]]
    shown_rows = measured[:MOST_ROWS]
    lines = [
        [
            *(_shown(row.value(name)) for name in names),
            *(_number(row.output(name)) for name, _ in outputs),
            _state(row),
        ]
        for row in shown_rows
    ]
    heads = [*names, *(head for _, head in outputs), "state"]
    numbers = frozenset(range(len(names), len(names) + len(outputs)))
    commands = [repeat.command(row) for row in shown_rows]
    table = Table(heads, lines, numbers, commands=commands if any(commands) else ())
    cut = f"The first {MOST_ROWS} of {len(measured)} measurements." if len(measured) > MOST_ROWS else ""
    after = [text for text in (cut, _other_memory(measured, kinds), answers.replayed(rows), answers.busy(rows)) if text]
    return Section("measurements", "Measurements", before=_constants(measured, names), table=table, after=after)


def _state(row: Row) -> str:
    doubt = answers.unreliable_reason(row) if row.throughput is not None else ""
    return ", ".join(filter(None, (row.state, doubt, "replayed" if row.replayed else "")))


def _other_memory(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """Return a note on the measurements whose memory is not in the table, which has the first of these metrics only."""
    lacking = [row for row in rows if kinds and row.output(kinds[0]) is None]
    others = sum(any(row.output(name) is not None for name in kinds[1:]) for row in lacking)
    if not others:
        return ""
    verb = "is" if others == 1 else "are"
    return (
        f"The memory is {kinds[0]}; {counted(others, 'measurement')} with another memory metric only {verb} left out."
    )


def _others(rows: Sequence[Row]) -> list[str]:
    """Return the numeric outputs that benchmarks lack, such as fractions of runs or predicted memory."""
    found = dict.fromkeys(
        name for row in rows for name in row.outputs if name not in OUTPUTS and row.output(name) is not None
    )
    return list(found)[:MOST_NAMED]


def _constants(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    given = [name for name in FIELDS if name not in varied and any(name in row.workload for row in rows)]
    same = ["method"] * ("method" not in varied) + given
    text = ", ".join(f"{name} {shown(rows[0].value(name), 60)}" for name in same)
    return [f"Equal in all measurements: {text}."] if text else []


def _environment(rows: Sequence[Row]) -> Section:
    found = tables.environment(rows)
    if not found:
        text = Markup(
            "An exported CSV file does not say where the measurements ran. Give the identifier of the operation, or a file "
            "that <code>ado show trace</code> wrote."
        )
        return Section("environment", "Environment", before=[text])
    lines = [
        [name, ", ".join(values[:MOST_NAMED]) + ("…" if len(values) > MOST_NAMED else "")] for name, values in found
    ]
    return Section("environment", "Environment", table=Table(["", ""], lines))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _shown(value: object) -> str:
    if value is None:
        return ""
    return yes_or_no(value) if isinstance(value, bool) else shown(value, 48)
