"""One self-contained HTML page of a report: no script, no request, every text escaped. Knows nothing of plotting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from html import escape

from ..workload.outputs import OUTPUTS
from . import tables
from .page_style import SHEET
from .rows import (
    CANNOT_RUN,
    FAILED,
    FIELDS,
    INTERVAL,
    KEYS,
    MEASURED,
    MEMORY,
    THROUGHPUT,
    Row,
    counted,
    differing,
    shown,
    workload_label,
)

MOST_ROWS = 500
MOST_NAMED = 6
COLUMNS = (
    (THROUGHPUT, "real tokens / s"),
    (INTERVAL, "± %"),
    ("step_time_median_s", "step, s"),
    *((name, "memory, GiB") for name in MEMORY),
    ("mfu_percent", "MFU, %"),
    ("energy_joules_per_token", "J / token"),
    ("usd_per_million_tokens", "USD / M tokens"),
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as the page needs it; ``svg`` is trusted, the rest is text."""

    name: str
    title: str
    caption: str
    svg: str


def html(rows: Sequence[Row], pictures: Sequence[Picture], left_out: Sequence[tuple[str, str]], made: str) -> str:
    """Return the page.

    Args:
        rows: the measurements.
        pictures: the figures, in order.
        left_out: title and reason of each figure that the measurements do not give.
        made: when and by what the page was made.
    """
    sources = ", ".join(dict.fromkeys(row.source for row in rows))
    title = f"Fine-tuning measurements of {sources}"
    sections = [
        ("figures", "Figures", _figures(pictures)),
        ("stacks", "Both stacks", _pairs(rows)),
        ("failures", "What cannot run, and what failed", _problems(rows)),
        ("measurements", "All measurements", _measurements(rows)),
        ("environment", "Measured in", _environment(rows)),
        ("left-out", "Left out", _left_out(left_out)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}-section">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}-section"><h2>{escape(heading)}</h2>{content}</section>'
        for name, heading, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{SHEET}</style>
</head>
<body>
<header>
<h1>Fine-tuning measurements</h1>
<p class="quiet">{escape(sources)}</p>
<nav>{links}</nav>
{_tiles(rows)}
</header>
{body}
<footer>{escape(made)} Throughput is <code>{THROUGHPUT}</code>: real tokens, padding left out, of all devices.</footer>
</body>
</html>
"""


def _tiles(rows: Sequence[Row]) -> str:
    counts = {state: len(tables.in_state(rows, state)) for state in (MEASURED, CANNOT_RUN, FAILED)}
    tiles = [(str(counts[MEASURED]), f"of {counted(len(rows), 'workload')} measured")]
    if counts[CANNOT_RUN]:
        tiles.append((str(counts[CANNOT_RUN]), "cannot run"))
    if counts[FAILED]:
        tiles.append((str(counts[FAILED]), "failed"))
    measured = tables.with_throughput(rows)
    varied = differing(measured)
    if measured:
        best = max(measured, key=lambda row: row.throughput or 0.0)
        tiles.append((_number(best.throughput), f"real tokens / s at most: {workload_label(best, varied)}"))
    kind, having = tables.memory_and_rate(rows)
    if kind and having:
        least = min(having, key=lambda row: row.output(kind) or 0.0)
        tiles.append(
            (f"{_number(least.output(kind))} GiB", f"{MEMORY[kind]} at least: {workload_label(least, varied)}")
        )
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    ) + "</div>"  # fmt: skip


def _figures(pictures: Sequence[Picture]) -> str:
    drawn = "".join(
        f'<figure id="{escape(one.name)}"><h3 id="{escape(one.name)}-title">{escape(one.title)}</h3>{one.svg}'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in pictures
    )
    return f'<div class="figures">{drawn}</div>' if drawn else ""


def _pairs(rows: Sequence[Row]) -> str:
    pairs = tables.stack_pairs(rows)
    if not pairs:
        return ""
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
            ]
        )
    heads = ["workload", f"{first}, tokens / s", f"{second}, tokens / s", f"{second} / {first}", "95 % interval"]
    return _table(heads, lines, numbers=range(1, 5))


def _problems(rows: Sequence[Row]) -> str:
    lines = []
    for problem in tables.problems(rows):
        named = "; ".join(filter(None, problem.workloads[:MOST_NAMED]))
        more = len(problem.workloads) - MOST_NAMED
        lines.append(
            [
                problem.state,
                problem.kind,
                problem.sentence or "The sentence is in the metadata, which an exported CSV lacks.",
                str(len(problem.workloads)),
                named + (f"; and {more} more" if more > 0 else ""),
            ]
        )
    return _table(["state", "failure", "why", "workloads", "which"], lines, numbers=[3]) if lines else ""


def _measurements(rows: Sequence[Row]) -> str:
    names = [name for name in (*KEYS, *FIELDS) if name in differing(rows)] or ["model_name"]
    outputs = [(name, head) for name, head in COLUMNS if any(row.output(name) is not None for row in rows)]
    outputs += [(name, name) for name in _others(rows)]
    # one column of memory is enough: the kind that decides
    kinds = [name for name, _ in outputs if name in MEMORY]
    outputs = [(name, head) for name, head in outputs if name not in kinds[1:]]
    lines = [
        [*(_shown(row.value(name)) for name in names), *(_number(row.output(name)) for name, _ in outputs), row.state]
        for row in rows[:MOST_ROWS]
    ]
    heads = [*names, *(head for _, head in outputs), "state"]
    table = _table(heads, lines, numbers=range(len(names), len(names) + len(outputs)))
    if len(rows) > MOST_ROWS:
        table += f'<p class="quiet">The first {MOST_ROWS} of {len(rows)} measurements.</p>'
    return _constants(rows, names) + table + _other_memory(rows, kinds)


def _other_memory(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """Return a paragraph on the measurements whose memory is not in the table, which has the first of these kinds only."""
    lacking = [row for row in rows if kinds and row.output(kinds[0]) is None]
    others = sum(any(row.output(name) is not None for name in kinds[1:]) for row in lacking)
    if not others:
        return ""
    return f'<p class="quiet">The memory is {kinds[0]}; that of {counted(others, "measurement")} without it is left out.</p>'


def _others(rows: Sequence[Row]) -> list[str]:
    """Return the numbers that only other experiments than benchmarks have: fractions of runs, predicted memory."""
    found = dict.fromkeys(
        name for row in rows for name in row.outputs if name not in OUTPUTS and row.output(name) is not None
    )
    return list(found)[:MOST_NAMED]


def _constants(rows: Sequence[Row], varied: Sequence[str]) -> str:
    given = [name for name in FIELDS if name not in varied and any(name in row.workload for row in rows)]
    same = ["method"] * ("method" not in varied) + given
    text = ", ".join(f"{name} {shown(rows[0].value(name), 60)}" for name in same)
    return f'<p class="quiet">The same in all: {escape(text)}.</p>' if text else ""


def _environment(rows: Sequence[Row]) -> str:
    found = tables.environment(rows)
    if not found:
        return (
            '<p class="quiet">An exported CSV does not say where it was measured: give the identifier of the operation, or a file '
            "that <code>ado show trace</code> wrote.</p>"
        )
    lines = [
        [name, ", ".join(values[:MOST_NAMED]) + ("…" if len(values) > MOST_NAMED else "")] for name, values in found
    ]
    return _table(["", ""], lines, numbers=())


def _left_out(left_out: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li>{escape(title)}: {escape(reason)}</li>" for title, reason in left_out)
    return f"<ul>{items}</ul>" if items else ""


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    right = set(numbers)

    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{' class=number' if index in right else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", index, text) for index, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td" if index else "th", index, text) for index, text in enumerate(line)) + "</tr>"
        for line in lines
    )
    return f'<div class="table"><table>{f"<thead><tr>{head}</tr></thead>" if any(heads) else ""}<tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _shown(value: object) -> str:
    return "" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value, 48)
