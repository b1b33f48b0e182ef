"""Draws measurements as points: the colour shows the report's property, the shape the other properties. Imports matplotlib."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from . import answers
from .figure_colours import SERIES, Colours
from .figure_style import MARKERS, MUTED, Tips
from .rows import Row, grouped_names, worded

# most entries of a legend: colours times shapes
MOST_SERIES = 12


@dataclasses.dataclass(frozen=True)
class Points:
    """Where and how to draw rows.

    Attributes:
        x: position of a row.
        y: height of a row.
        tip: what hovering over a row's point shows.
        along: the property on the x axis, if any.
        connected: draw lines along the x axis, where a line has one point for each x.
        side_by_side: shift series against each other, on an axis of categories.
        bars: draw confidence intervals of throughputs.
        rings: mark throughputs that cannot be relied on.
    """

    x: Callable[[Row], float]
    y: Callable[[Row], float]
    tip: Callable[[Row], str]
    along: str | None = None
    connected: bool = False
    side_by_side: bool = False
    bars: bool = False
    rings: bool = True


def draw_points(
    axes: Any, rows: Sequence[Row], names: Sequence[str], colours: Colours, how: Points
) -> tuple[Tips, list[str]]:
    """Draw rows, and name colours and shapes for the legend.

    Args:
        axes: where to draw.
        rows: measurements.
        names: the properties that colour and shape are to show.
        colours: of the report.
        how: positions.

    Returns:
        What hovering shows, and the properties that neither colour nor shape shows.
    """
    coloured = colours.groups(rows)
    most = min(len(MARKERS), max(1, MOST_SERIES // len(coloured)))
    shapes, unnamed = grouped_names(rows, [name for name in names if name not in (colours.name, how.along)], most)
    single = len(shapes) == 1
    series = [
        (MARKERS[index if single else shape], index, mine)
        for shape, group in enumerate(shapes.values())
        for index, mine in colours.groups(group).items()
    ]
    tips = Tips()
    along_colour = colours.name is not None and colours.name == how.along
    if how.connected and not unnamed and along_colour:
        for group in shapes.values():
            ordered = sorted(group, key=how.x)
            axes.plot([how.x(row) for row in ordered], [how.y(row) for row in ordered], color=MUTED, linewidth=1)
    for place, (marker, index, mine) in enumerate(series):
        shift = (
            (place - (len(series) - 1) / 2) * min(0.12, 0.5 / len(series))
            if how.side_by_side and not along_colour
            else 0.0
        )
        ordered = sorted(mine, key=how.x)
        line = "-" if how.connected and not unnamed and not along_colour else "none"
        _draw(axes, ordered, shift, how, tips, color=SERIES[index], marker=marker, linestyle=line)
    _name(axes, coloured, list(shapes), colours, along_colour=along_colour)
    return tips, unnamed


def _draw(axes: Any, rows: Sequence[Row], shift: float, how: Points, tips: Tips, **style: Any) -> None:
    xs, ys = [how.x(row) + shift for row in rows], [how.y(row) for row in rows]
    if how.bars:
        line = axes.errorbar(xs, ys, yerr=bars_of(rows), capsize=3, elinewidth=1, **style)[0]
    else:
        (line,) = axes.plot(xs, ys, **style)
    tips.add(line, [how.tip(row) for row in rows])
    if how.rings:
        ring(axes, rows, xs, ys)


def _name(
    axes: Any, coloured: dict[int, list[Row]], shapes: Sequence[str], colours: Colours, *, along_colour: bool
) -> None:
    """Add the entries of the legend."""
    if colours.name is not None and len(coloured) > 1 and not along_colour:
        for index, group in coloured.items():
            values = dict.fromkeys(worded(colours.name, row.value(colours.name)) for row in group)
            text = ", ".join(values) if len(values) <= 2 else "others"
            look = {"marker": MARKERS[index], "linestyle": "none"} if len(shapes) == 1 else {"linewidth": 4}
            axes.plot([], [], color=SERIES[index], label=text, **look)
    if len(shapes) > 1:
        for shape, text in enumerate(shapes):
            axes.plot([], [], color=MUTED, linestyle="none", marker=MARKERS[shape], label=text)


def ring(axes: Any, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Draw a ring around the points of rates that cannot be relied on."""
    points = [(x, y) for row, x, y in zip(rows, xs, ys, strict=True) if answers.unreliable_reason(row)]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=12, markerfacecolor="none", markeredgecolor=MUTED)


def bars_of(rows: Sequence[Row]) -> list[list[float]]:
    """Return the lengths of the lower and the upper error bars of these rows; none reaches below zero."""
    half = [(row.throughput or 0.0, row.half_width or 0.0) for row in rows]
    return [[rate * min(width, 1.0) for rate, width in half], [rate * width for rate, width in half]]
