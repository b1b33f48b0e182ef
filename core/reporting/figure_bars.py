"""Figures with one line for each workload: cost and energy as bars, both stacks as points. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..workload.wording import rounded
from . import answers, tables
from .figure_colours import Colours
from .figure_series import bars_of, ring
from .figure_style import INK, MARKERS, PER_INCH, SIZE, Drawing, Tips, legend, scale
from .rows import Row, counted, differing, shown, workload_label

MOST_BARS = 20
MOST_PAIRS = 16
# height of a line with a workload's label above its bar, inches; characters of a label
LINE, LABEL = 0.46, int(SIZE[0] * PER_INCH) - 3

T = TypeVar("T")


class LeftOut(Exception):
    """A figure cannot be drawn from these rows; the message says why."""


def first(found: Sequence[T], most: int, noun: str) -> tuple[Sequence[T], str]:
    """Return at most ``most`` elements, and a note for the caption if there are more."""
    return found[:most], f" The first {most} of {len(found)} {noun}." if len(found) > most else ""


def reliability(rows: Sequence[Row]) -> str:
    """Return the sentences of a caption on the bars of these rows, on rates without a bar, and on rings."""
    alone = sum(row.half_width is None for row in rows)
    bars = "Bars are 95 % confidence intervals." if alone < len(rows) else "No measurement has a confidence interval."
    if 0 < alone < len(rows):
        bars += f" {counted(alone, 'measurement')} {'has' if alone == 1 else 'have'} none."
    return bars + rings(rows)


def rings(rows: Sequence[Row]) -> str:
    """Return the sentence of a caption on rings, if there are any."""
    return " A ring marks a rate that was not steady." if any(map(answers.unreliable_reason, rows)) else ""


def draw_bars(
    rows: Sequence[Row], colours: Colours, output: str, factor: float, name: str, title: str, unit: str, lacking: str
) -> Drawing:
    """Return the figure of an output that is proportional to the time of a token.

    Args:
        rows: measurements.
        colours: of the report.
        output: its identifier.
        factor: from the output to ``unit``.
        name: of the drawing.
        title: of the figure, without the unit.
        unit: on the axis.
        lacking: why the figure is left out where no row has the output.

    Raises:
        LeftOut: no row has the output.
    """
    having: Sequence[Row] = [row for row in tables.with_throughput(rows) if row.output(output) is not None]
    if not having:
        raise LeftOut(lacking)
    having, cut = first(sorted(having, key=lambda row: row.output(output) or 0.0), MOST_BARS, "workloads")
    varied = differing(having)
    figure, axes = _lines(len(having))
    values = [(row.output(output) or 0.0) * factor for row in having]
    bars = axes.barh(range(len(having)), values, height=0.34, color=[colours.of(row) for row in having])
    upper = _cost_intervals(axes, having, values)
    tips = Tips()
    for line, (bar, value, row) in enumerate(zip(bars, values, having, strict=True)):
        head = ", ".join(filter(None, (f"{value:.3g}", answers.unreliable_reason(row))))
        _label(axes, line, f"{head}: {shown(workload_label(row, varied), max(12, LABEL - len(head)))}")
        tips.add(bar, [f"{workload_label(row, varied)}: {rounded(value)} {unit}{answers.interval(row)}"])
    axes.set_xlim(0, max(upper) * 1.05 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x")
    axes.set_xlabel(unit)
    lines = " Lines are 95 % confidence intervals." if any(row.half_width is not None for row in having) else ""
    return Drawing(name, f"{title} per million tokens", f"In {unit}, lowest first.{lines}{cut}", figure, tips)


def _lines(count: int) -> tuple[Figure, Any]:
    """Return a figure for ``count`` lines, and its axes."""
    figure = Figure(figsize=(SIZE[0], 0.7 + LINE * max(3, count)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_ylim(max(3, count) - 0.6, -0.8)
    return figure, axes


def _label(axes: Any, line: int, text: str) -> None:
    """Write a workload's label above its bar: a narrow screen has no room beside the bar."""
    axes.text(0, line - 0.2, text, va="bottom", ha="left", transform=axes.get_yaxis_transform())


def _cost_intervals(axes: Any, rows: Sequence[Row], values: Sequence[float]) -> list[float]:
    """Draw the interval of what is proportional to the time of a token; return the right end of each row, at most twice its value."""
    ends = []
    for line, (row, value) in enumerate(zip(rows, values, strict=True)):
        half = min(row.half_width or 0.0, 0.5)
        ends.append(value / (1 - half))
        if half:
            axes.hlines(line, value / (1 + half), ends[-1], color=INK, linewidth=1)
    return ends


def draw_stacks(rows: Sequence[Row], colours: Colours, unit: str) -> Drawing:
    """Return the figure of the workloads that both actuators measured; ``unit`` is on the axis.

    Raises:
        LeftOut: there are none.
    """
    pairs, cut = first(tables.stack_pairs(rows), MOST_PAIRS, "workloads")
    if not pairs:
        raise LeftOut("no workload was measured with both actuators.")
    figure, axes = _lines(len(pairs))
    varied = differing([row for row, _ in pairs])
    tips = Tips()
    for side in (0, 1):
        mine = [pair[side] for pair in pairs]
        rates = [row.throughput or 0.0 for row in mine]
        line = axes.errorbar(
            rates, range(len(pairs)), xerr=bars_of(mine), linestyle="none", capsize=3, elinewidth=1,
            label=mine[0].actuator, color=colours.of(mine[0]), marker=MARKERS[side],
        )[0]  # fmt: skip
        tips.add(line, [f"{row.actuator}, {workload_label(row, varied)}: {answers.rate(row)}" for row in mine])
        ring(axes, mine, rates, range(len(pairs)))
    for index, (row, _) in enumerate(pairs):
        _label(axes, index, shown(workload_label(row, varied), LABEL))
    axes.grid(axis="x")
    axes.set_xlabel(unit)
    ends = [(row.throughput or 0.0) * (1 + min(row.half_width or 0.0, 0.5)) for pair in pairs for row in pair]
    scale(axes.xaxis, axes.set_xscale, ends)
    legend(figure, axes)
    caption = f"Each workload as both actuators measured it. {reliability([row for pair in pairs for row in pair])}"
    return Drawing("stacks", "Both stacks", caption + cut, figure, tips)
