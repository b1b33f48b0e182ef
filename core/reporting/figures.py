"""The figures of a report. A figure whose data are missing is left out, with a reason.

Imports matplotlib, so nothing that ado loads may import this.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..workload.wording import rounded
from . import answers, tables
from .figure_bars import LeftOut, draw_bars, draw_stacks, first, reliability, rings
from .figure_colours import SERIES, Colours, colours_of
from .figure_series import Points, draw_points
from .figure_style import (
    GRID,
    INK,
    MARKERS,
    MUTED,
    SIZE,
    STYLE,
    Drawing,
    Tips,
    legend,
    place,
    plain_axes,
    scale,
    tick,
)
from .rows import FIELDS, KEYS, MEMORY, Row, differing, workload_label

RATE = "real tokens per second"
# names of all drawings that a report can have
NAMES = (
    *("stacks", "memory", "frontier", "pareto", "scaling-strong", "scaling-weak", "cost", "energy", "traces"),
    *(f"throughput-{name.replace('_', '-')}" for name in (*KEYS, *FIELDS)),
)
MOST_TRACES = 6
# thousands of points with intervals would make a page of 6 MB, on which no point could be told from the others
MOST_POINTS = 300
# with fewer steps each is drawn as a point, too: a line through a single step is not visible
FEWEST_OF_A_LINE = 10
# characters of a line above one of two panels
PANEL_TITLE = 24


def draw(rows: Sequence[Row]) -> tuple[list[Drawing], list[tuple[str, str]]]:
    """Return the figures that can be drawn from these rows, and title and reason of each one that cannot."""
    drawn: list[Drawing] = []
    left_out: list[tuple[str, str]] = []
    colours = colours_of(rows)
    with mpl.rc_context(STYLE):
        for title, make in KINDS.items():
            try:
                drawn += list(make(rows, colours))
            except LeftOut as reason:
                left_out.append((title, str(reason)))
    return drawn, left_out


def _not_in_labels(names: Sequence[str]) -> str:
    """Return a note on the properties that do not fit the legend."""
    return f" Points of one colour and shape differ in {', '.join(names)}." if names else ""


def _throughput(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    measured = tables.with_throughput(rows)
    if not measured:
        raise LeftOut("no workload was measured.")
    varied = [name for name in differing(measured) if name != "source" or len({row.source for row in measured}) > 1]
    if not varied:
        raise LeftOut("no property was varied among the measured workloads.")
    for name in varied:
        yield _throughput_against(measured, name, varied, colours)


def _thinned(rows: list[Row], value: Callable[[Row], float | None]) -> tuple[list[Row], str]:
    """Return at most ``MOST_POINTS`` of the rows, spread evenly over their values, the largest and smallest included, and a sentence."""
    if len(rows) <= MOST_POINTS:
        return rows, ""
    ordered = sorted(rows, key=lambda row: value(row) or 0.0)
    step = (len(ordered) - 1) / (MOST_POINTS - 1)
    return [ordered[round(index * step)] for index in range(MOST_POINTS)], f" {MOST_POINTS} of {len(rows)} are drawn."


def _throughput_against(rows: list[Row], name: str, varied: list[str], colours: Colours) -> Drawing:
    rows, drawn = _thinned(rows, lambda row: row.throughput)
    figure, axes = plain_axes()
    places = place(axes, name, list({row.value(name) for row in rows}))
    numeric = name in FIELDS and all(isinstance(value, int | float) and not isinstance(value, bool) for value in places)
    how = Points(
        x=lambda row: places[row.value(name)],
        y=lambda row: row.throughput or 0.0,
        tip=lambda row: f"{workload_label(row, varied)}: {answers.rate(row)}",
        along=name,
        connected=numeric,
        side_by_side=not numeric,
        bars=True,
    )
    tips, unnamed = draw_points(axes, rows, varied, colours, how)
    axes.set_ylabel(RATE)
    scale(axes.yaxis, axes.set_yscale, [_upper(row) for row in rows])
    legend(figure, axes)
    caption = reliability(rows) + _not_in_labels(unnamed) + drawn
    return Drawing(f"throughput-{name.replace('_', '-')}", f"Throughput against {name}", caption, figure, tips)


def _upper(row: Row) -> float:
    """Return the upper end of a row's interval for the scale of an axis; a wide interval counts as 50 %."""
    return (row.throughput or 0.0) * (1 + min(row.half_width or 0.0, 0.5))


def _memory(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    kind, having = tables.memory_and_rate(rows)
    if not kind or not having:
        raise LeftOut("no measurement has a memory value.")
    having, drawn = _thinned(having, lambda row: row.output(kind))
    figure, axes = plain_axes()
    tokens = {row.value("batch_size") * row.value("model_max_length") for row in having}
    places = place(axes, "batch_size × model_max_length\n(token slots per step)", sorted(tokens))
    varied = differing(having)
    how = Points(
        x=lambda row: places[row.value("batch_size") * row.value("model_max_length")],
        y=lambda row: row.output(kind) or 0.0,
        tip=lambda row: f"{workload_label(row, varied)}: {rounded(row.output(kind) or 0.0)} GiB",
        rings=False,
    )
    others = [name for name in varied if name not in ("batch_size", "model_max_length")]
    tips, unnamed = draw_points(axes, having, others, colours, how)
    title = f"{MEMORY[kind]} (GiB)".replace("peak memory of the training processes", "peak resident memory")
    axes.set_ylabel(textwrap.fill(title, 28))
    scale(axes.yaxis, axes.set_yscale, [row.output(kind) or 0.0 for row in having])
    legend(figure, axes)
    caption = f"The {MEMORY[kind]}, {kind}." + _not_in_labels(unnamed) + tables.without_memory(rows) + drawn
    yield Drawing("memory", "Memory", caption, figure, tips)


def _frontier(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    found = tables.frontiers(rows)
    if not found:
        raise LeftOut("no workload ran out of memory.")
    figure, axes = plain_axes()
    tips = Tips()
    lengths = sorted({one.length for one in found})
    places = place(axes, "model_max_length", lengths)
    whats, cut = first(list(dict.fromkeys(one.what for one in found)), len(SERIES), "kinds of workload")
    sizes = []
    for index, what in enumerate(whats):
        mine = [one for one in found if one.what == what]
        colour = _of_group(mine[0].example, colours, ("batch_size", "model_max_length"))
        for ends, text, look in (
            ([(one.length, one.fits) for one in mine], what or "largest that fits", {"marker": MARKERS[index]}),
            (
                [(one.length, one.too_large) for one in mine],
                f"{what}: out of memory" if what else "out of memory",
                {"linestyle": ":", "marker": "x", "markersize": 8, "markeredgewidth": 2},
            ),
        ):
            points = [(length, size) for length, size in ends if size is not None]
            if points:
                xs, ys = [places[length] for length, _ in points], [size for _, size in points]
                (line,) = axes.plot(xs, ys, label=text, color=colour, **look)
                tips.add(line, [f"{text}, length {length}: batch {size}" for length, size in points])
                sizes += ys
    axes.set_ylabel("batch_size (samples)")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    legend(figure, axes)
    caption = (
        "Largest batch that ran, and smallest that ran out of memory or was predicted to; the limit lies between them."
    )
    yield Drawing("frontier", "Out-of-memory frontier", caption + cut, figure, tips)


def _of_group(example: Row | None, colours: Colours, along: Sequence[str]) -> str:
    """Return the colour of a curve; that of text where the property of the colours changes along it."""
    return INK if example is None or colours.name in along else colours.of(example)


def _traces(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    traced = [row for row in tables.with_throughput(rows) if row.metadata.get("step_s")]
    if not traced:
        raise LeftOut(
            "step times are in the metadata of results, which an exported CSV file lacks. Give the identifier of an operation, "
            "or a file that ado show trace wrote."
        )
    varied = differing(traced)
    shown_rows, cut = first(traced, MOST_TRACES, "measurements")
    titles = ["\n".join(_broken(workload_label(row, varied))) for row in shown_rows]
    columns = min(2, len(shown_rows))
    lines = -(-len(shown_rows) // columns)
    height = 1.35 + 0.17 * max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(SIZE[0], 0.4 + height * lines), layout="constrained")
    tips = Tips()
    for index, (row, title) in enumerate(zip(shown_rows, titles, strict=True)):
        axes = figure.add_subplot(lines, columns, index + 1)
        _trace(axes, row, colours.of(row))
        steps = row.metadata["step_s"]
        range_s = f"{len(steps)} steps, {rounded(min(steps))} to {rounded(max(steps))} s"
        tips.add(axes.patch, [f"{workload_label(row, varied)}: {range_s}"])
        axes.set_title(title, color=INK, loc="left")
        if index % columns == 0:
            axes.set_ylabel("step (s)")
        if index >= len(shown_rows) - columns:
            axes.set_xlabel("optimizer step")
    caption = "Every optimizer step in order; shaded steps are warm-up and not measured. Each panel has its own scale."
    yield Drawing("traces", "Step times", caption + cut, figure, tips)


def _trace(axes: Axes, row: Row, colour: str) -> None:
    """Draw the times of one row's steps, with the warm-up steps shaded."""
    steps, counted_steps = row.metadata["step_s"], row.metadata.get("steps")
    warmup = int(counted_steps["warmup"]) if counted_steps else 0
    marker = "o" if len(steps) < FEWEST_OF_A_LINE else None
    axes.plot(range(1, len(steps) + 1), steps, color=colour, linewidth=1.1, marker=marker, markersize=3)
    if warmup:
        axes.axvspan(0.5, warmup + 0.5, color=GRID, linewidth=0)
    axes.set_xlim(0.5, len(steps) + 0.5)
    axes.set_ylim(0, max(steps) * 1.1)
    axes.grid(axis="y")
    axes.tick_params(length=3, width=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _broken(text: str) -> list[str]:
    """Return a label on at most four lines that fit above a panel."""
    lines = textwrap.wrap(text, PANEL_TITLE)
    return [*lines[:3], "…"] if len(lines) > 4 else lines


def _scaling(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    found = tables.scaling(rows)
    if not found:
        raise LeftOut("no workload was measured on different numbers of devices with all other properties equal.")
    for kind, title in (("strong", "same total batch"), ("weak", "same batch per device")):
        mine, cut = first([one for one in found if one.kind == kind], len(SERIES), "kinds of workload")
        if not mine:
            continue
        figure, axes = plain_axes()
        tips = Tips()
        place(axes, "devices", sorted({point[0] for one in mine for point in one.points}))
        for index, one in enumerate(mine):
            colour = _of_group(one.example, colours, tables.DEVICES)
            xs, ys = [n for n, _ in one.points], [100 * share for _, share in one.points]
            (line,) = axes.plot(xs, ys, label=one.what, color=colour, marker=MARKERS[index])
            tips.add(line, [f"{one.what}, {n} devices: {share:.3g} %" for n, share in zip(xs, ys, strict=True)])
        axes.axhline(100, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_ylabel("scaling efficiency (%)")
        scale(axes.yaxis, axes.set_yscale, [100.0, *(100 * share for one in mine for _, share in one.points)])
        legend(figure, axes)
        caption = "Throughput per device, relative to the fewest devices; the dashed line is perfect scaling."
        yield Drawing(f"scaling-{kind}", f"Scaling efficiency, {title}", caption + cut, figure, tips)


def _cost(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    yield draw_bars(
        rows, colours, "usd_per_million_tokens", 1.0, "cost", "Cost", "USD per million real tokens",
        "the measurements have no price: give report --price USD, or set price_usd_per_device_hour when measuring.",
    )  # fmt: skip


def _energy(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    # joules per token are megajoules per million tokens
    yield draw_bars(
        rows, colours, "energy_joules_per_token", 1 / 3.6, "energy", "Energy", "kWh per million real tokens",
        "no measurement has an energy value, which needs a GPU and a measured phase of at least 2 s.",
    )  # fmt: skip


def _pareto(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    kind, having = tables.memory_and_rate(rows)
    if not kind or len(having) < 2:
        raise LeftOut("two measurements with throughput and memory are needed.")
    points = [(row.output(kind) or 0.0, row.throughput or 0.0) for row in having]
    front = tables.pareto(points)
    figure, axes = plain_axes()
    if len(front) > 1:
        line: Any = zip(*(points[index] for index in front), strict=True)
        axes.plot(*line, color=MUTED, linewidth=1, linestyle="--", label="front")
    varied = differing(having)
    how = Points(
        x=lambda row: row.output(kind) or 0.0,
        y=lambda row: row.throughput or 0.0,
        tip=lambda row: f"{workload_label(row, varied)}: {rounded(row.output(kind) or 0.0)} GiB, {answers.rate(row)}",
    )
    tips, unnamed = draw_points(axes, having, varied, colours, how)
    axes.set_xlabel(f"{MEMORY[kind]} (GiB)")
    axes.set_ylabel(RATE)
    scale(axes.yaxis, axes.set_yscale, [rate for _, rate in points])
    scale(axes.xaxis, axes.set_xscale, [memory for memory, _ in points])
    legend(figure, axes)
    caption = "Up and left is better. No workload is better in both than one on the dashed line."
    if len(front) == 1:
        best = workload_label(having[front[0]], varied)
        caption = f"Up and left is better. No other workload is better than {best} in either."
    caption += rings(having) + _not_in_labels(unnamed) + tables.without_memory(rows)
    yield Drawing("pareto", "Throughput against memory", caption, figure, tips)


def _stacks(rows: Sequence[Row], colours: Colours) -> Iterator[Drawing]:
    yield draw_stacks(rows, colours, RATE)


KINDS: dict[str, Callable[[Sequence[Row], Colours], Iterator[Drawing]]] = {
    "Throughput": _throughput,
    "Both stacks": _stacks,
    "Memory": _memory,
    "Out-of-memory frontier": _frontier,
    "Throughput against memory": _pareto,
    "Scaling efficiency": _scaling,
    "Cost": _cost,
    "Energy": _energy,
    "Step times": _traces,
}
