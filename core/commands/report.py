"""The ``report`` command: writes an HTML page and image files from ado operations, spaces or exported files.

Imports matplotlib and jinja2 when it is called, and ado only to read its store.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..measurement.distribution import installed_version
from ..reporting import answers, autoconf, read
from ..reporting.rows import Row, counted, differing, workload_label
from ..workload.command import distribution
from ..workload.wording import rounded
from .console import show

if TYPE_CHECKING:
    from ..reporting.figure_style import Drawing

LACKS_PACKAGE = "The report needs {}, which is not installed. Run: pip install './{}[report]'"


def main(
    plugin: str,
    sources: list[str],
    *,
    output: Path,
    form: str,
    tokens: float | None = None,
    price: float | None = None,
) -> int:
    """Run the command; return its exit status: 0 written, 2 usage error.

    Args:
        plugin: identifier of the plugin.
        sources: where to read measurements.
        output: the directory to write.
        form: ``html``, ``png``, ``both``, or ``autoconf``.
        tokens: real tokens whose hours and cost of training the page and the terminal show; None leaves that out.
        price: USD of a GPU (on CPU: of a process) for an hour; None: the price that the measurements were given.
    """
    try:
        # an operation and its space hold the same measurements
        rows = answers.priced(_distinct([read.rows(source) for source in sources]), price)
        if form == "autoconf":
            return _export(output, rows)
        from ..reporting import figures, page  # noqa: F401
    except read.Unreadable as reason:
        print(reason, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("matplotlib", "jinja2"):
            raise
        print(LACKS_PACKAGE.format(package, plugin), file=sys.stderr)
        return 2
    drawn, left_out = figures.draw(rows)
    try:
        written = _write(output, form, rows, drawn, left_out, _origin(plugin, sources), tokens)
    except OSError as error:
        print(f"{output} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    show(
        "\n".join(
            [
                *answers.summary(rows),
                *_spent(rows, tokens),
                *filter(None, [answers.replayed(rows), answers.busy(rows)]),
                *map(str, written),
                *(f"{title}: left out; {reason}" for title, reason in left_out),
            ]
        )
    )
    return 0


def _spent(rows: list[Row], tokens: float | None) -> list[str]:
    """Return a line for the workload of each model that trains on the tokens at the lowest cost, or else in the shortest time."""
    found = answers.expenses(rows, tokens) if tokens else []
    models = answers.by_model([one.row for one in found])
    if len(models) > answers.MOST_MODELS:
        return _best(found, found, tokens)
    return [
        line
        for model in models
        for line in _best([one for one in found if one.row.value("model_name") == model], found, tokens)
    ]


def _best(some: list[answers.Expense], among: list[answers.Expense], tokens: float | None) -> list[str]:
    """Return the line of the best of ``some`` expenses, with a label that distinguishes it from the others."""
    if not some:
        return []
    first = answers.first_choice(some)
    label = workload_label(first.row, [name for name in differing([one.row for one in among]) if name != "source"])
    parts = [label, f"{rounded(first.hours)} hours{_range(first.hours, first)}"]
    if first.usd is not None:
        parts[1] += f" and {rounded(first.usd)} USD{_range(first.usd, first)}"
    what = "Fastest" if first.usd is None else "Cheapest"
    return [
        f"{what} for {tokens:,.0f} tokens: {', '.join(filter(None, (*parts, answers.unreliable_reason(first.row))))}."
    ]


def _range(value: float, expense: answers.Expense) -> str:
    interval = expense.interval(value)
    return f" ({interval})" if interval else ""


def _export(directory: Path, rows: list[Row]) -> int:
    """Write the file that ado-autoconf trains on, and return the exit status."""
    made = autoconf.export(rows)
    path = directory / "autoconf.csv"
    reasons = [f"{count} left out: {reason}" for reason, count in made.left_out.items()]
    if not made.count:
        print("\n".join(["No measurement can be used by AutoConf.", *reasons]), file=sys.stderr)
        return 2
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(made.text, encoding="utf-8")
    except OSError as error:
        print(f"{directory} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    show("\n".join([f"{path}: {counted(made.count, 'measurement')}", *reasons]))
    return 0


def _distinct(sources: list[list[Row]]) -> list[Row]:
    """Leave out rows that an earlier source has as well: no two measurements are equal to the last digit."""
    first: dict[str, int] = {}
    return [
        row
        for number, rows in enumerate(sources)
        for row in rows
        if first.setdefault(repr((row.key, sorted(row.outputs.items()), row.message)), number) == number
    ]


def _origin(plugin: str, sources: list[str]) -> str:
    package = " ".join((distribution(plugin), installed_version(plugin) or "")).rstrip()
    now = datetime.datetime.now().astimezone()
    return f"Made {now:%Y-%m-%d %H:%M %Z} by {package} from {', '.join(sources)}."


def _write(
    directory: Path,
    form: str,
    rows: list[Row],
    drawn: list[Drawing],
    left_out: list[tuple[str, str]],
    made: str,
    tokens: float | None,
) -> list[Path]:
    from ..reporting import figure_style, figures, page

    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if form in ("html", "both"):
        pictures = [
            page.Picture(one.name, one.title, one.caption, figure_style.render(one, "svg").decode()) for one in drawn
        ]
        written.append(directory / "report.html")
        written[-1].write_text(page.html(rows, pictures, left_out, made, tokens), encoding="utf-8")
    if form in ("png", "both"):
        # an earlier report may have figures that this one lacks; they must not be taken for figures of this one
        for name in figures.NAMES:
            (directory / f"{name}.png").unlink(missing_ok=True)
        for one in drawn:
            written.append(directory / f"{one.name}.png")
            written[-1].write_bytes(figure_style.render(one, "png"))
    return written
