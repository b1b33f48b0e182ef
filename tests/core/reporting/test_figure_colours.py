"""One colour for one thing in all figures of a report, and what their points say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from matplotlib.colors import to_hex

from ado_actuators.sfttrainer.core.reporting import figure_style, figures, page
from ado_actuators.sfttrainer.core.reporting.figure_colours import SERIES, Colours, colours_of
from ado_actuators.sfttrainer.core.reporting.rows import Row

Make = Callable[..., Row]
FULL, LORA = "finetune_full_benchmark", "finetune_lora_benchmark"


@pytest.fixture(scope="module")
def methods(row: Make) -> list[Row]:
    """Two methods, of which LoRA comes first in one source of rows and last in the other, at two batches."""
    priced = {"usd_per_million_tokens": 1.0}
    return [
        row(100.0 * batch, memory=float(batch), experiment=experiment, batch_size=batch, outputs=priced,
            metadata={"step_s": [1.0, 2.0]})
        for batch, experiments in ((4, (LORA, FULL)), (8, (FULL, LORA))) for experiment in experiments
    ]  # fmt: skip


def drawn_colours(axes: Any) -> Iterator[str]:
    """Yield the colours of the lines, points and bars that stand for data."""
    for artist in (*axes.lines, *axes.patches):
        colour = to_hex(artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor())
        if colour in SERIES:
            yield colour


def test_a_method_has_its_colour_in_every_figure(methods: list[Row]) -> None:
    """The points of a method have its colour in all figures, whichever method comes first there."""
    colours = colours_of(methods)
    assert (colours.name, colours.values) == ("method", ("lora", "full"))
    for method, expected in (("lora", SERIES[0]), ("full", SERIES[1])):
        rows = [row for row in methods if row.method == method]
        assert {colours.of(row) for row in rows} == {expected}
    for drawing in figures.draw(methods)[0]:
        assert {one for axes in drawing.figure.axes for one in drawn_colours(axes)} == set(SERIES[:2]), drawing.name
    (cost,) = [one for one in figures.draw(methods)[0] if one.name == "cost"]
    axes: Any = cost.figure.axes[0]
    # the text above a bar names the method that its colour stands for
    for bar, text in zip(axes.patches, axes.texts, strict=True):
        assert to_hex(bar.get_facecolor()) == SERIES[0 if "lora" in text.get_text() else 1]


def test_shapes_tell_what_colours_do_not(methods: list[Row]) -> None:
    """The legend has an entry for each colour and one for each shape; on the axis of the methods the ticks are enough."""
    by_name = {one.name: one for one in figures.draw(methods)[0]}
    labels = {
        name: by_name[name].figure.axes[0].get_legend_handles_labels()[1]
        for name in ("throughput-method", "throughput-batch-size", "pareto")
    }
    assert labels == {
        "throughput-method": ["batch 4", "batch 8"],
        "throughput-batch-size": ["lora", "full"],
        "pareto": ["front", "lora", "full", "batch 4", "batch 8"],
    }


def test_the_page_explains_its_colours_once(methods: list[Row]) -> None:
    """The key is above the figures, in the colours of the style sheet."""
    text = page.html(methods, [page.Picture("a", "A", "", "<svg></svg>")], [], "")
    (key,) = re.findall(r'<p class="key">(.*?)</p>', text)
    assert key.startswith("Colours of all figures, by method: ")
    assert re.findall(r"var\(--(s\d)\)\"></span>(\w+)", key) == [("s1", "lora"), ("s2", "full")]


@pytest.mark.parametrize(
    ("given", "name", "values"),
    [
        ([{"actuator": "b"}, {"actuator": "a", "batch_size": 4}], "actuator", ("b", "a")),
        (
            [{"batch_size": 8}, {"batch_size": 4, "gradient_checkpointing": True}],
            "gradient_checkpointing",
            (False, True),
        ),
        ([{"batch_size": 8}, {"batch_size": 4}], "batch_size", (4, 8)),
        ([{"batch_size": size} for size in range(1, 8)], None, ()),
        ([{}, {}], None, ()),
    ],
)
def test_words_give_the_colour_before_numbers(
    row: Make, given: list[Any], name: str | None, values: tuple[Any, ...]
) -> None:
    """Seven values have no colours of their own; nor has a report in which nothing varies."""
    assert colours_of([row(1.0, **one) for one in given]) == Colours(name, values)


def test_points_carry_their_values(row: Make) -> None:
    """Each point of an SVG has the title of its own workload, in the order of the points."""
    rows = [row(100.0 * batch, 2.0, batch_size=batch) for batch in (8, 4, 2)]
    drawing = next(one for one in figures.draw(rows)[0] if one.name == "throughput-batch-size")
    svg = figure_style.render(drawing, "svg").decode()
    found = re.findall(r'<use [^>]*x="([\d.]+)"[^>]*><title>(.*?)</title></use>', svg)
    assert [title for _, title in sorted(found, key=lambda one: float(one[0]))] == [
        "batch 2: 200 tokens/s ± 2 %", "batch 4: 400 tokens/s ± 2 %", "batch 8: 800 tokens/s ± 2 %",
    ]  # fmt: skip
