"""The figures of a report. A figure whose data are missing is left out, with a reason.

Imports matplotlib, so nothing that ado loads may import this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from . import answers, tables
from .figure_style import (
    GRID,
    INK,
    MUTED,
    SERIES,
    SIZE,
    STYLE,
    Drawing,
    legend,
    place,
    plain_axes,
    scale,
    style_of,
    tick,
)
from .rows import FIELDS, KEYS, MEMORY, Row, counted, differing, grouped_names, shown, workload_label

RATE = "real tokens per second"
# names of all drawings that a report can have
NAMES = (
    *("stacks", "memory", "frontier", "pareto", "scaling-strong", "scaling-weak", "cost", "energy", "traces"),
    *(f"throughput-{name.replace('_', '-')}" for name in (*KEYS, *FIELDS)),
)
MOST_TRACES = 6
# of thousands of points with intervals a page of 6 MB would be made, in which none is seen
MOST_POINTS = 300
MOST_BARS = 20
MOST_PAIRS = 16
# steps are drawn as points as well where there are fewer: a line through one step is not visible
FEWEST_OF_A_LINE = 10

T = TypeVar("T")


class LeftOut(Exception):
    """A figure cannot be drawn from these rows; the message says why."""


def draw(rows: Sequence[Row]) -> tuple[list[Drawing], list[tuple[str, str]]]:
    """Return the figures that can be drawn from these rows, and title and reason of each one that cannot."""
    drawn: list[Drawing] = []
    left_out: list[tuple[str, str]] = []
    with mpl.rc_context(STYLE):
        for title, make in KINDS.items():
            try:
                drawn += list(make(rows))
            except LeftOut as reason:
                left_out.append((title, str(reason)))
    return drawn, left_out


def _first(found: Sequence[T], most: int, noun: str) -> tuple[Sequence[T], str]:
    """Return at most ``most`` elements, and a note for the caption if there are more."""
    return found[:most], f" The first {most} of {len(found)} {noun}." if len(found) > most else ""


def _not_in_labels(names: Sequence[str]) -> str:
    """Return a note on the properties that do not fit the legend."""
    return f" Points of one colour differ in {', '.join(names)}." if names else ""


def _ring(axes: Axes, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Draw a ring around the points of rates that cannot be relied on."""
    points = [(x, y) for row, x, y in zip(rows, xs, ys, strict=True) if answers.doubt(row)]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=12, markerfacecolor="none", markeredgecolor=MUTED)


def _reliability(rows: Sequence[Row]) -> str:
    """Return the sentences of a caption on the bars of these rows, on rates without a bar, and on rings."""
    alone = sum(row.half_width is None for row in rows)
    bars = "Bars are 95 % confidence intervals." if alone < len(rows) else "No measurement has a confidence interval."
    if 0 < alone < len(rows):
        bars += f" {counted(alone, 'measurement')} {'has' if alone == 1 else 'have'} none."
    return bars + _rings(rows)


def _rings(rows: Sequence[Row]) -> str:
    return " A ring marks a rate that was not steady." if any(map(answers.doubt, rows)) else ""


def _throughput(rows: Sequence[Row]) -> Iterator[Drawing]:
    measured = tables.with_throughput(rows)
    if not measured:
        raise LeftOut("no workload was measured.")
    varied = [name for name in differing(measured) if name != "source" or len({row.source for row in measured}) > 1]
    if not varied:
        raise LeftOut("no property was varied among the measured workloads.")
    for name in varied:
        yield _throughput_against(measured, name, [other for other in varied if other != name])


def _thinned(rows: list[Row], value: Callable[[Row], float | None]) -> tuple[list[Row], str]:
    """Return at most ``MOST_POINTS`` of the rows, spread evenly over their values, the largest and smallest included, and a sentence."""
    if len(rows) <= MOST_POINTS:
        return rows, ""
    ordered = sorted(rows, key=lambda row: value(row) or 0.0)
    step = (len(ordered) - 1) / (MOST_POINTS - 1)
    return [ordered[round(index * step)] for index in range(MOST_POINTS)], f" {MOST_POINTS} of {len(rows)} are drawn."


def _throughput_against(rows: list[Row], name: str, others: list[str]) -> Drawing:
    rows, drawn = _thinned(rows, lambda row: row.throughput)
    figure, axes = plain_axes()
    series, unnamed = grouped_names(rows, others, len(SERIES))
    places = place(axes, name, list({row.value(name) for row in rows}))
    numeric = name in FIELDS and all(isinstance(value, int | float) and not isinstance(value, bool) for value in places)
    for index, (text, group) in enumerate(series.items()):
        ordered = sorted(group, key=lambda row: places[row.value(name)])
        # series in the same category are drawn side by side
        shift = 0.0 if numeric else (index - (len(series) - 1) / 2) * min(0.12, 0.5 / len(series))
        rates = [row.throughput or 0.0 for row in ordered]
        axes.errorbar(
            [places[row.value(name)] + shift for row in ordered],
            rates,
            yerr=_bars_of(ordered),
            linestyle="-" if numeric and not unnamed else "none",
            capsize=3,
            elinewidth=1,
            label=text,
            **style_of(index),
        )
        _ring(axes, ordered, [places[row.value(name)] + shift for row in ordered], rates)
    axes.set_ylabel(RATE)
    scale(axes.yaxis, axes.set_yscale, [_upper(row) for row in rows])
    legend(figure, axes)
    caption = _reliability(rows) + _not_in_labels(unnamed) + drawn
    return Drawing(f"throughput-{name.replace('_', '-')}", f"Throughput against {name}", caption, figure)


def _bars_of(rows: Sequence[Row]) -> list[list[float]]:
    """Return the lengths of the lower and the upper error bars of these rows; none reaches below zero."""
    half = [(row.throughput or 0.0, row.half_width or 0.0) for row in rows]
    return [[rate * min(width, 1.0) for rate, width in half], [rate * width for rate, width in half]]


def _upper(row: Row) -> float:
    """Return the upper end of a row's interval for the scale of an axis; a wide interval counts as 50 %."""
    return (row.throughput or 0.0) * (1 + min(row.half_width or 0.0, 0.5))


def _memory(rows: Sequence[Row]) -> Iterator[Drawing]:
    kind, having = tables.memory_and_rate(rows)
    if not kind or not having:
        raise LeftOut("no measurement has a memory value.")
    having, drawn = _thinned(having, lambda row: row.output(kind))
    figure, axes = plain_axes()
    tokens = {row.value("batch_size") * row.value("model_max_length") for row in having}
    places = place(axes, "batch_size × model_max_length (token slots per step)", sorted(tokens))
    others = [name for name in differing(having) if name not in ("batch_size", "model_max_length")]
    series, unnamed = grouped_names(having, others, len(SERIES))
    for index, (text, group) in enumerate(series.items()):
        points = sorted(
            (places[row.value("batch_size") * row.value("model_max_length")], row.output(kind)) for row in group
        )
        axes.plot(*zip(*points, strict=True), linestyle="none", label=text, **style_of(index))
    axes.set_ylabel(f"{MEMORY[kind]} (GiB)".replace("peak memory of the training processes", "peak resident memory"))
    scale(axes.yaxis, axes.set_yscale, [row.output(kind) or 0.0 for row in having])
    legend(figure, axes)
    caption = f"The {MEMORY[kind]}, {kind}." + _not_in_labels(unnamed) + tables.without_memory(rows) + drawn
    yield Drawing("memory", "Memory", caption, figure)


def _frontier(rows: Sequence[Row]) -> Iterator[Drawing]:
    found = tables.frontiers(rows)
    if not found:
        raise LeftOut("no workload ran out of memory.")
    figure, axes = plain_axes()
    lengths = sorted({one.length for one in found})
    places = place(axes, "model_max_length", lengths)
    whats, cut = _first(list(dict.fromkeys(one.what for one in found)), len(SERIES), "kinds of workload")
    sizes = []
    for index, what in enumerate(whats):
        mine = [one for one in found if one.what == what]
        fits = [(places[one.length], one.fits) for one in mine if one.fits is not None]
        too_large = [(places[one.length], one.too_large) for one in mine if one.too_large is not None]
        if fits:
            axes.plot(*zip(*fits, strict=True), label=what or "largest that fits", **style_of(index))
        if too_large:
            axes.plot(
                *zip(*too_large, strict=True), linestyle=":", color=SERIES[index], marker="x", markersize=8, markeredgewidth=2,
                label=f"{what}: out of memory" if what else "out of memory",
            )  # fmt: skip
        sizes += [size for _, size in (*fits, *too_large)]
    axes.set_ylabel("batch_size (samples)")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    legend(figure, axes)
    caption = (
        "Largest batch that ran, and smallest that ran out of memory or was predicted to; the limit lies between them."
    )
    yield Drawing("frontier", "Out-of-memory frontier", caption + cut, figure)


def _traces(rows: Sequence[Row]) -> Iterator[Drawing]:
    traced = [row for row in tables.with_throughput(rows) if row.metadata.get("step_s")]
    if not traced:
        raise LeftOut(
            "step times are in the metadata of results, which an exported CSV file lacks. Give the identifier of an operation, "
            "or a file that ado show trace wrote."
        )
    varied = differing(traced)
    shown_rows, cut = _first(traced, MOST_TRACES, "measurements")
    columns = min(3, len(shown_rows))
    lines = -(-len(shown_rows) // columns)
    figure = Figure(figsize=(SIZE[0] if columns < 3 else 7.4, 1.1 + 1.45 * lines), layout="constrained")
    for index, row in enumerate(shown_rows):
        axes = figure.add_subplot(lines, columns, index + 1)
        _trace(axes, row)
        axes.set_title(_broken(workload_label(row, varied)), fontsize=7.5, color=INK, loc="left")
        if index % columns == 0:
            axes.set_ylabel("time of a step (s)", fontsize=7.5)
        if index >= len(shown_rows) - columns:
            axes.set_xlabel("optimizer step", fontsize=7.5)
    caption = "Every optimizer step in order; shaded steps are warm-up and not measured. Each panel has its own scale."
    yield Drawing("traces", "Step times", caption + cut, figure)


def _trace(axes: Axes, row: Row) -> None:
    """Draw the times of one row's steps, with the warm-up steps shaded."""
    steps, counted_steps = row.metadata["step_s"], row.metadata.get("steps")
    warmup = int(counted_steps["warmup"]) if counted_steps else 0
    marker = "o" if len(steps) < FEWEST_OF_A_LINE else None
    axes.plot(range(1, len(steps) + 1), steps, color=SERIES[0], linewidth=1.1, marker=marker, markersize=3)
    if warmup:
        axes.axvspan(0.5, warmup + 0.5, color=GRID, linewidth=0)
    axes.set_xlim(0.5, len(steps) + 0.5)
    axes.set_ylim(0, max(steps) * 1.1)
    axes.grid(axis="y")
    axes.tick_params(length=3, width=0.7, labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _broken(text: str, longest: int = 34) -> str:
    """Return a label on at most three lines of about ``longest`` characters."""
    lines = [""]
    for part in text.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) > longest and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return ",\n".join(lines[:3])


def _scaling(rows: Sequence[Row]) -> Iterator[Drawing]:
    found = tables.scaling(rows)
    if not found:
        raise LeftOut("no workload was measured on different numbers of devices with all other properties equal.")
    for kind, title in (("strong", "same total batch"), ("weak", "same batch per device")):
        mine, cut = _first([one for one in found if one.kind == kind], len(SERIES), "kinds of workload")
        if not mine:
            continue
        figure, axes = plain_axes()
        devices = sorted({point[0] for one in mine for point in one.points})
        place(axes, "devices", devices)
        for index, one in enumerate(mine):
            axes.plot(
                *zip(*((n, 100 * share) for n, share in one.points), strict=True), label=one.what, **style_of(index)
            )
        axes.axhline(100, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_ylabel("scaling efficiency (%)")
        scale(axes.yaxis, axes.set_yscale, [100.0, *(100 * share for one in mine for _, share in one.points)])
        legend(figure, axes)
        caption = "Throughput per device, relative to the fewest devices; the dashed line is perfect scaling."
        yield Drawing(f"scaling-{kind}", f"Scaling efficiency, {title}", caption + cut, figure)


def _cost(rows: Sequence[Row]) -> Iterator[Drawing]:
    yield _bars(
        rows, "usd_per_million_tokens", 1.0, "cost", "Cost", "USD per million real tokens",
        "no price is known: set price_usd_per_device_hour in the actuator configuration.",
    )  # fmt: skip


def _energy(rows: Sequence[Row]) -> Iterator[Drawing]:
    # joules per token are megajoules per million tokens
    yield _bars(
        rows, "energy_joules_per_token", 1 / 3.6, "energy", "Energy", "kWh per million real tokens",
        "no measurement has an energy value, which needs a GPU and a measured phase of at least 2 s.",
    )  # fmt: skip


def _bars(rows: Sequence[Row], output: str, factor: float, name: str, title: str, unit: str, lacking: str) -> Drawing:
    having: Sequence[Row] = [row for row in tables.with_throughput(rows) if row.output(output) is not None]
    if not having:
        raise LeftOut(lacking)
    having, cut = _first(sorted(having, key=lambda row: row.output(output) or 0.0), MOST_BARS, "workloads")
    varied = differing(having)
    figure = Figure(figsize=(SIZE[0], 0.9 + 0.3 * max(4, len(having))), layout="constrained")
    axes = figure.add_subplot()
    values = [(row.output(output) or 0.0) * factor for row in having]
    axes.barh(range(len(having)), values, height=0.6, color=SERIES[0])
    upper = _cost_intervals(axes, having, values)
    axes.set_yticks(range(len(having)), [shown(workload_label(row, varied), 52) for row in having], fontsize=8)
    axes.invert_yaxis()
    axes.set_ylim(max(4, len(having)) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(0, max(upper) * 1.18 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")
    for line, (value, end, row) in enumerate(zip(values, upper, having, strict=True)):
        text = ", ".join(filter(None, (f"{value:.3g}", answers.doubt(row))))
        axes.annotate(text, (end, line), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlabel(unit)
    lines = " Lines are 95 % confidence intervals." if any(row.half_width is not None for row in having) else ""
    return Drawing(name, f"{title} per million tokens", f"In {unit}, lowest first.{lines}{cut}", figure)


def _cost_intervals(axes: Axes, rows: Sequence[Row], values: Sequence[float]) -> list[float]:
    """Draw the interval of what is proportional to the time of a token; return the right end of each row, at most twice its value."""
    ends = []
    for line, (row, value) in enumerate(zip(rows, values, strict=True)):
        half = min(row.half_width or 0.0, 0.5)
        ends.append(value / (1 - half))
        if half:
            axes.hlines(line, value / (1 + half), ends[-1], color=INK, linewidth=1)
    return ends


def _pareto(rows: Sequence[Row]) -> Iterator[Drawing]:
    kind, having = tables.memory_and_rate(rows)
    if not kind or len(having) < 2:
        raise LeftOut("two measurements with throughput and memory are needed.")
    points = [(row.output(kind) or 0.0, row.throughput or 0.0) for row in having]
    front = tables.pareto(points)
    figure, axes = plain_axes()
    if len(front) > 1:
        line = zip(*(points[index] for index in front), strict=True)
        axes.plot(*line, color=MUTED, linewidth=1, linestyle="--", label="front")
    series, unnamed = grouped_names(having, differing(having), len(SERIES))
    for index, (text, group) in enumerate(series.items()):
        places = [(row.output(kind), row.throughput) for row in group]
        axes.plot(*zip(*places, strict=True), linestyle="none", label=text, **style_of(index))
        _ring(axes, group, [row.output(kind) or 0.0 for row in group], [row.throughput or 0.0 for row in group])
    axes.set_xlabel(f"{MEMORY[kind]} (GiB)")
    axes.set_ylabel(RATE)
    scale(axes.yaxis, axes.set_yscale, [rate for _, rate in points])
    scale(axes.xaxis, axes.set_xscale, [memory for memory, _ in points])
    legend(figure, axes)
    caption = "Up and left is better. No workload is better in both than one on the dashed line."
    if len(front) == 1:
        best = workload_label(having[front[0]], differing(having))
        caption = f"Up and left is better. No other workload is better than {best} in either."
    caption += _rings(having) + _not_in_labels(unnamed) + tables.without_memory(rows)
    yield Drawing("pareto", "Throughput against memory", caption, figure)


def _stacks(rows: Sequence[Row]) -> Iterator[Drawing]:
    pairs, cut = _first(tables.stack_pairs(rows), MOST_PAIRS, "workloads")
    if not pairs:
        raise LeftOut("no workload was measured with both actuators.")
    figure = Figure(figsize=(SIZE[0], 1.2 + 0.32 * max(4, len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    varied = differing([row for row, _ in pairs])
    for side in (0, 1):
        mine = [pair[side] for pair in pairs]
        rates = [row.throughput or 0.0 for row in mine]
        axes.errorbar(
            rates, range(len(pairs)), xerr=_bars_of(mine),
            linestyle="none", capsize=3, elinewidth=1, label=mine[0].actuator, **style_of(side),
        )  # fmt: skip
        _ring(axes, mine, rates, range(len(pairs)))
    axes.set_yticks(range(len(pairs)), [shown(workload_label(row, varied), 52) for row, _ in pairs], fontsize=8)
    axes.set_ylim(max(4, len(pairs)) - 0.4, -0.6)
    axes.grid(axis="both")
    axes.tick_params(length=3, width=0.7)
    axes.set_xlabel(RATE)
    scale(axes.xaxis, axes.set_xscale, [_upper(row) for pair in pairs for row in pair])
    legend(figure, axes)
    caption = f"Each workload as both actuators measured it. {_reliability([row for pair in pairs for row in pair])}"
    yield Drawing("stacks", "Both stacks", caption + cut, figure)


KINDS: dict[str, Callable[[Sequence[Row]], Iterator[Drawing]]] = {
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
