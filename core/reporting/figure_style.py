"""The style of the figures: colours, axes and scales; and their output as PNG files or as SVG for the page.

Imports matplotlib, so nothing that ado loads may import this. ``render`` replaces colours by CSS variables in SVG, so that a
drawing fits both the light and the dark page.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .figure_colours import SERIES
from .rows import shown, yes_or_no

MARKERS = "os^Dv*"
INK, MUTED, GRID, SURFACE = "#1b1f25", "#5c6671", "#dfe3e8", "#fefefe"
ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    colour: f"s{index}" for index, colour in enumerate(SERIES, 1)
}
# a figure is as wide as a narrow screen, 353 pixels, and text has the same size on all screens
FONT_PT = 11
SIZE = (4.9, 3.0)
# characters of this size in an inch
PER_INCH = 10.8
PNG_DPI = 200
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_PT,
    "axes.labelsize": FONT_PT,
    "axes.titlesize": FONT_PT,
    "xtick.labelsize": FONT_PT,
    "ytick.labelsize": FONT_PT,
    "legend.fontsize": FONT_PT,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": SURFACE,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    # a $ in a name does not begin a formula
    "text.parse_math": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
# least distance of two tick labels, as a fraction of the axis
CLOSEST_LABELS = 0.13
# characters that fit side by side below an axis, and labels that fit when they are turned
MOST_LEVEL, MOST_LABELS = 40, 18
# an axis is logarithmic if the largest value is more than this many times the smallest
LOG_FROM = 20.0


class Tips:
    """What hovering over marks shows: texts by the identifier that a mark has in the SVG."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}

    def add(self, artist: Any, texts: Sequence[str]) -> None:
        """Give a line with markers one text for each marker, or another artist its only text."""
        name = f"tip{len(self.texts)}"
        artist.set_gid(name)
        self.texts[name] = list(texts)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure; ``name`` is used for its file and for its anchor on the page, ``caption`` explains it, ``tips`` its marks."""

    name: str
    title: str
    caption: str
    figure: Figure
    tips: Tips = dataclasses.field(default_factory=Tips)


def render(drawing: Drawing, form: str) -> bytes:
    """Return a drawing as ``png``, or as ``svg`` with the colours of the page's style sheet."""
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": drawing.name}):
        if form == "png":
            drawing.figure.savefig(buffer, format="png", dpi=PNG_DPI)
            return buffer.getvalue()
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue().decode(), drawing).encode()


def _themed(svg: str, drawing: Drawing) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, role in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    svg = _with_tips(svg, drawing.tips)
    # all figures are on one page: prefixes keep their identifiers unique
    svg = re.sub(r'\bid="', f'id="{drawing.name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{drawing.name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-labelledby="{drawing.name}-title" xmlns="http://www.w3.org/2000/svg" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
        count=1,
    )


def _with_tips(svg: str, tips: Tips) -> str:
    """Insert the texts that browsers show on hovering, as SVG titles."""
    for name, texts in tips.texts.items():
        head, start, rest = svg.partition(f'<g id="{name}">')
        end = rest.find('<g id="') if '<g id="' in rest else len(rest)
        mark, rest = rest[:end], rest[end:]
        titles = [f"<title>{html.escape(text)}</title>" for text in texts]
        if mark.count("<use ") == len(texts):
            before, *uses = mark.split("<use ")
            marks = (use.replace("/>", f">{title}</use>", 1) for use, title in zip(uses, titles, strict=True))
            mark = "<use ".join([before, *marks])
            # hundreds of equal styles are most of the file
            styles = set(re.findall(r'<use [^>]*? style="([^"]*)">', mark))
            if len(styles) == 1:
                mark = re.sub(r'(<use [^>]*?) style="[^"]*">', r"\1>", mark)
                start = f'<g id="{name}" style="{styles.pop()}">'
        elif len(texts) == 1:
            mark = titles[0] + mark
        svg = head + start + mark + rest
    return svg


def plain_axes() -> tuple[Figure, Any]:
    """Return an empty figure of the usual size, and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.tick_params(length=3, width=0.7)
    return figure, axes


def style_of(index: int) -> dict[str, Any]:
    """Return colour and marker of the ``index``-th series."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def legend(figure: Figure, axes: Any) -> None:
    """Put a legend below the axes, which keep their height, unless the only series has no name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or (labels and labels[0]):
        width = int(figure.get_figwidth() * PER_INCH)
        labels = [textwrap.fill(label, width - 8) for label in labels]
        widest = max(len(line) for label in labels for line in label.splitlines())
        columns = max(1, min(len(labels), width // (widest + 6)))
        lines = -(-sum(label.count("\n") + 1 for label in labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.22 * lines)
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, borderaxespad=0.2)


def tick(value: float) -> str:
    """Return a tick's label, without powers of ten."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def scale(axis: Any, set_scale: Callable[..., None], values: Sequence[float]) -> None:
    """Set a linear scale from zero, or a logarithmic one where the values differ by more than a factor of ``LOG_FROM``."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    if min(values) > 0 and max(values) / min(values) > LOG_FROM:
        set_scale("log")
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_formatter(NullFormatter())
        # up to three decades, powers of ten alone give too few labels
        axis.set_major_locator(LogLocator(subs=(1,) if max(values) / min(values) > 1000 else (1, 2, 5)))
        return
    axis.set_major_locator(MaxNLocator(6))
    (axis.axes.set_ylim if axis.axis_name == "y" else axis.axes.set_xlim)(0.0, max(values) * 1.12 or 1)


def place(axes: Any, name: str, values: Sequence[Any]) -> dict[Any, float]:
    """Prepare the x axis for the values of a property, and return the position of each value."""
    axes.set_xlabel(_axis_title(name))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _place_numbers(axes, sorted(values))
    return _place_categories(axes, sorted(values, key=str))


def _place_numbers(axes: Any, ordered: Sequence[float]) -> dict[Any, float]:
    logarithmic = ordered[0] > 0 and ordered[-1] / ordered[0] >= 4
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sparse(ordered, math.log if logarithmic else float)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.margins(x=0.08)
    return {value: float(value) for value in ordered}


def _place_categories(axes: Any, ordered: Sequence[Any]) -> dict[Any, float]:
    labels = [yes_or_no(value) if isinstance(value, bool) else shown(value, 26) for value in ordered]
    turned = sum(map(len, labels)) > MOST_LEVEL
    # where there are very many, hovering shows the others
    every = -(-len(labels) // MOST_LABELS)
    axes.set_xticks(
        range(0, len(ordered), every), labels[::every], rotation=50 * turned, ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )  # fmt: skip
    if turned:
        axes.figure.set_figheight(axes.figure.get_figheight() + 0.07 * max(map(len, labels)))
    axes.set_xlim(-0.6, len(ordered) - 0.4)
    return {value: float(index) for index, value in enumerate(ordered)}


def sparse(ordered: Sequence[float], position: Callable[[float], float]) -> list[float]:
    """Return the first value, and those whose labels do not overlap the label before them."""
    width = position(ordered[-1]) - position(ordered[0])
    kept = [ordered[0]]
    for value in ordered[1:]:
        if position(value) - position(kept[-1]) >= CLOSEST_LABELS * width:
            kept.append(value)
    return kept


def _axis_title(name: str) -> str:
    units = {"model_max_length": "tokens", "batch_size": "samples", "num_virtual_tokens": "tokens"}
    return f"{name} ({units[name]})" if name in units else name
