"""The report: figures, page and files."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.commands import report
from ado_actuators.sfttrainer.core.reporting import figure_style, figures, page, read
from ado_actuators.sfttrainer.core.reporting.rows import Row

from .conftest import FIGURES, RECORDINGS, html_of

Make = Callable[..., Row]
ONE_STEP = {"measured_steps": 1, "steady": 0}


def tables_of(rows: list[Row]) -> str:
    """Return the HTML page for these rows without its figures, which take most of the time."""
    return page.html(rows, [], [], "Made by a test.")


def test_full_data_give_every_figure_and_titles_to_every_axis(everything: list[Row]) -> None:
    """Names are different. Titles include units; the vertical axis of horizontal bars has labels instead."""
    drawn, left_out = figures.draw(everything)
    assert left_out == []
    assert sorted(one.name for one in drawn) == sorted(FIGURES)
    assert set(FIGURES) <= set(figures.NAMES)
    titles = {one.name: (axes.get_xlabel(), axes.get_ylabel()) for one in drawn for axes in one.figure.axes[-1:]}
    assert titles["throughput-batch-size"] == ("batch_size (samples)", "real tokens per second")
    assert titles["pareto"] == ("peak memory of a GPU (GiB)", "real tokens per second")
    assert titles["energy"] == ("kWh per million real tokens", "")
    assert all(x for x, _ in titles.values())


def test_the_energy_of_a_million_tokens_is_in_kilowatt_hours(row: Make) -> None:
    """3.6 J per token are 3.6 MJ per million tokens: 1 kWh."""
    rows = [row(1.0, outputs={"energy_joules_per_token": 3.6}), row(1.0, batch_size=4)]
    (drawing,) = [one for one in figures.draw(rows)[0] if one.name == "energy"]
    axes: Any = drawing.figure.axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0]
    assert drawing.caption == "In kWh per million real tokens, lowest first. Lines are 95 % confidence intervals."


def test_costs_have_the_intervals_of_their_rates(row: Make) -> None:
    """4 USD at a rate with 20 % are 3.33 to 5 USD; a rate of one step has no line, and its label says why."""
    priced = {"usd_per_million_tokens": 4.0}
    rows = [row(1.0, 20.0, outputs=priced), row(1.0, None, batch_size=4, outputs={**priced, **ONE_STEP})]
    (drawing,) = [one for one in figures.draw(rows)[0] if one.name == "cost"]
    axes: Any = drawing.figure.axes[0]
    (line,) = [line.get_segments()[0].tolist() for line in axes.collections]
    assert line == [[pytest.approx(4 / 1.2), 0.0], [5.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["4: batch 8", "4, 1 step, not steady: batch 4"]


def test_the_share_of_the_bound_stands_beside_mfu(row: Make) -> None:
    """Only where a measurement has it."""
    measured = row(1.0, outputs={"mfu_percent": 41.5, "limit_percent": 57.25})
    text = page.html([measured], [], [], "Made by a test.")
    assert text.index("MFU, %") < text.index("of limit, %") < text.index("57.2")
    assert "of limit, %" not in page.html([row(1.0)], [], [], "Made by a test.")


def test_unsteady_rates_have_a_ring_and_rates_without_a_bar_are_counted(row: Make) -> None:
    """One of two measurements has a single step."""
    drawn = figures.draw([row(200.0, 5.0, batch_size=4), row(300.0, None, outputs=ONE_STEP)])[0]
    throughput = next(one for one in drawn if one.name == "throughput-batch-size")
    assert throughput.caption == (
        "Bars are 95 % confidence intervals. 1 measurement has none. A ring marks a rate that was not steady."
    )
    axes: Any = throughput.figure.axes[0]
    rings = [line.get_xydata().tolist() for line in axes.lines if line.get_markersize() == 12]
    assert rings == [[[8.0, 300.0]]]
    steady = figures.draw([row(200.0, 5.0, batch_size=4), row(300.0, 5.0)])[0]
    assert next(one for one in steady if one.name == "throughput-batch-size").caption == (
        "Bars are 95 % confidence intervals."
    )
    alone = figures.draw([row(200.0, None, batch_size=4, outputs=ONE_STEP), row(300.0, None, outputs=ONE_STEP)])[0]
    assert alone[0].caption.startswith("No measurement has a confidence interval. A ring")


def test_tiles_and_tables_say_what_is_not_steady(row: Make) -> None:
    """The highest rate is that of one step: the tile has the highest steady one, and the table the reason."""
    rows = [row(200.0, 5.0, batch_size=4), row(300.0, None, outputs=ONE_STEP)]
    shown = tables_of(rows)
    assert "200.0 ± 5 %" in shown
    assert "the highest steady rate: batch 4" in shown
    assert "measured, 1 step, not steady" in shown
    assert "the highest, 1 step, not steady: m, length 1024, batch 8" in tables_of(rows[1:])


def test_bars_of_a_point_are_its_confidence_interval(row: Make) -> None:
    """5 % of 200 is 10, above and below."""
    drawing = next(one for one in figures.draw([row(200.0, 5.0, batch_size=4), row(300.0, 0.0)])[0])
    axes: Any = drawing.figure.axes[0]
    segments = [segment.tolist() for line in axes.collections for segment in line.get_segments()]
    assert segments[0] == [[4.0, 190.0], [4.0, 210.0]]


def test_a_caption_counts_what_the_figure_has_no_room_for(row: Make) -> None:
    """Figures show a limited number of frontiers, curves, bars and pairs; the caption gives the total number."""
    prices = {"usd_per_million_tokens": 1.0}
    rows = [
        row(1.0, model_name=f"m{index}", number_gpus=gpus, actuator=actuator, outputs=prices)
        for index in range(17) for gpus in (1, 2) for actuator in ("sfttrainer", "fms_hf_tuning")
    ]  # fmt: skip
    rows += [row(oom=True, model_name=f"m{index}", batch_size=16) for index in range(17)]
    ends = {one.name: one.caption.rpartition(". ")[2] for one in figures.draw(rows)[0]}
    assert ends["frontier"] == "The first 6 of 17 kinds of workload."
    assert ends["scaling-strong"] == "The first 6 of 34 kinds of workload."
    assert ends["cost"] == "The first 20 of 68 workloads."
    assert ends["stacks"] == "The first 16 of 34 workloads."


def test_measurements_with_another_memory_metric_are_counted(row: Make) -> None:
    """Memory of a GPU and of a process cannot be compared; captions and the table say how many measurements are left out."""
    rows = [row(1.0, memory=10.0), row(2.0, memory=20.0, batch_size=4)]
    resident = [row(3.0, number_gpus=0, outputs={"cpu_memory_peak_gib": size}) for size in (1.0, 2.0)]
    captions = {one.name: one.caption for one in figures.draw([*rows, *resident])[0]}
    for name in ("memory", "pareto"):
        assert captions[name].endswith(" 2 measurements without gpu_memory_peak_gib are left out.")
    table = "The memory is gpu_memory_peak_gib; 2 measurements with another memory metric only are left out."
    assert table in tables_of([*rows, *resident])
    captions = {one.name: one.caption for one in figures.draw(rows)[0]}
    assert captions["memory"] == "The peak memory of a GPU, gpu_memory_peak_gib."
    assert "another memory metric" not in tables_of(rows)


def test_stacks_from_two_sources_are_compared(row: Make) -> None:
    """Each stack is in a file of its own; the labels do not include the file."""
    rows = [row(1.0, source="a", batch_size=4), row(1.0, source="a", batch_size=8)]
    rows += [row(2.0, source="b", actuator="fms_hf_tuning", batch_size=batch) for batch in (4, 8)]
    (drawing,) = (one for one in figures.draw(rows)[0] if one.name == "stacks")
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["batch 4", "batch 8"]
    assert "<th>batch 4</th>" in tables_of(rows)


def test_a_name_with_dollars_is_no_formula(row: Make) -> None:
    """Matplotlib must not read the text between two dollar signs as mathematics, where it could fail."""
    drawn, _ = figures.draw([row(1.0, model_name=r"$\nothing$"), row(2.0, model_name="m", batch_size=4)])
    for one in drawn:
        figure_style.render(one, "png")
    assert r"$\nothing$" in figure_style.render(drawn[0], "svg").decode()


def test_a_single_step_can_be_seen(row: Make) -> None:
    """A line through one point is not visible, so few steps have markers, and the axis leaves space for them."""
    drawing = next(one for one in figures.draw([row(1.0, metadata={"step_s": [2.0]})])[0] if one.name == "traces")
    (axes,) = drawing.figure.axes
    assert [line.get_marker() for line in axes.lines] == ["o"]
    assert axes.get_xlim() == (0.5, 1.5)


def test_a_front_of_one_workload_is_not_a_line(row: Make) -> None:
    """If one workload is the best in both memory and throughput, the caption names it instead."""
    rows = [row(200.0, memory=1.0, batch_size=4), row(100.0, memory=2.0)]
    (drawing,) = [one for one in figures.draw(rows)[0] if one.name == "pareto"]
    (axes,) = drawing.figure.axes
    assert "front" not in [line.get_label() for line in axes.lines]
    assert drawing.caption == "Up and left is better. No other workload is better than batch 4 in either."


def test_figures_without_data_are_left_out_with_a_reason() -> None:
    """A CSV from a CPU has no step times, no energy, no second stack and no out-of-memory."""
    rows = read.rows(str(RECORDINGS / "operation.csv"))
    assert [title for title, _ in figures.draw(rows)[1]] == [
        "Both stacks", "Out-of-memory frontier", "Energy", "Step times",
    ]  # fmt: skip


def test_rows_without_any_number_still_make_a_page(row: Make) -> None:
    """If everything failed the page has no figure, but the message."""
    text = html_of([row(failed="the disk is full."), row(failed="the disk is full.", batch_size=1)])
    assert "<figure" not in text
    assert "the disk is full." in text


def test_labels_of_an_axis_do_not_overlap() -> None:
    """Labels too close to the one before are left out; a logarithmic scale leaves out others than a linear one."""
    assert figure_style.sparse([1, 2, 50, 51, 100], float) == [1, 50, 100]
    assert figure_style.sparse([1, 2, 4, 8, 15, 16], math.log) == [1, 2, 4, 8, 15]


def test_numbers_of_other_experiments_are_in_the_table() -> None:
    """Such as the fractions of a stability experiment."""
    outputs = {"is_valid": 1, "failure": "none", "f_gpu_oom": 0.4, "f_no_error": 0.6}
    text = tables_of([Row("s", "sfttrainer", "finetune_full_stability", {"batch_size": 4}, outputs)])
    assert "<th class=number>f_no_error</th>" in text
    assert "<td class=number>0.6</td>" in text


def test_one_workload_is_counted_in_the_singular(row: Make) -> None:
    """The first tile of the page says 1 workload, 2 workloads."""
    assert "<b>1</b><span>of 1 workload measured</span>" in tables_of([row(1.0)])
    assert "<b>2</b><span>of 2 workloads measured</span>" in tables_of([row(1.0), row(2.0)])


def test_the_report_shows_answers_and_budget(report_of_recorded: tuple[Path, list[str]]) -> None:
    """On the terminal and on the page."""
    directory, printed = report_of_recorded
    assert printed[0].startswith("Fastest ")
    (line,) = [line for line in printed if line.startswith("Cheapest for 100,000,000 tokens: ")]
    assert re.search(r" hours \(\S+ to \S+\) and \S+ USD \(\S+ to \S+\)", line), (
        "the ends of the interval, which are not equally far"
    )
    assert str(directory / "cost.png") in printed, "the price of the command gives the figure, too"
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert 'class="answer">Fastest' in page
    assert "Training on 100,000,000 tokens" in page


def test_drawings_take_their_colours_from_the_page(full_page: str) -> None:
    """The SVG is well-formed and has no colours of its own, so that it fits both the light and the dark page."""
    drawings = re.findall(r"<svg .*?</svg>", full_page, re.DOTALL)
    assert len(drawings) == len(FIGURES)
    for svg in drawings:
        ElementTree.fromstring(svg)
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", svg)) <= {"#000000"}
        assert "var(--ink)" in svg


def test_texts_are_escaped(row: Make) -> None:
    """Text from users and libraries does not become markup, neither on the page nor in its drawings."""
    evil = "<script>alert(1)</script>&\"'"
    rows = [
        row(1.0, model_name=evil), row(2.0), row(failed=evil, batch_size=3), row(3.0, source=evil),
        row(4.0, metadata={"hosts": [evil], "versions": {evil: evil}}),
    ]  # fmt: skip
    text = html_of(rows)
    # the page's own script is the only one
    assert text.count("<script") == 1
    assert "&lt;script&gt;" in text


def test_the_page_loads_nothing(full_page: str) -> None:
    """It has no addresses except XML namespaces, no imports and no external sources."""
    assert set(re.findall(r"https?://[^\s\"'<]+", full_page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"@import|\bsrc=|url\((?!#)", full_page)


def test_the_command_writes_page_and_images(report_of_recorded: tuple[Path, list[str]]) -> None:
    """The printed files exist, and the images have the width of a figure at 200 dots per inch."""
    directory, printed = report_of_recorded
    files = [Path(line) for line in printed if line.startswith(str(directory))]
    assert files[0].name == "report.html"
    assert "<title>Fine-tuning measurements of operation.yaml</title>" in files[0].read_text()
    assert {file.name for file in files} == {file.name for file in directory.iterdir()}
    image = next(file for file in files if file.name == "memory.png").read_bytes()
    assert struct.unpack(">II", image[16:24])[0] == 980
    assert "Both stacks: left out; no workload was measured with both actuators." in printed


def test_images_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    """A CSV has no step times, so an old image of them is removed; other files stay. Options can precede the source."""
    for name in ("traces.png", "throughput-packing.png", "mine.png"):
        (tmp_path / name).touch()
    assert main(["report", "--format", "png", "-o", str(tmp_path), str(RECORDINGS / "operation.csv")]) == 0
    names = {file.name for file in tmp_path.iterdir()}
    looked_for = {"traces.png", "throughput-packing.png", "mine.png", "memory.png", "report.html"}
    assert names & looked_for == {"mine.png", "memory.png"}


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_its_packages_the_command_says_what_to_install(package: str) -> None:
    """The message names the package and the command that installs it."""
    code = (
        f"import sys; sys.modules['{package}'] = None; from ado_actuators.fms_hf_tuning.__main__ import main; "
        f"sys.exit(main(['report', {str(RECORDINGS / 'operation.csv')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == report.LACKS_PACKAGE.format(package, "fms_hf_tuning") + "\n"


def test_a_source_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One message, status 2."""
    assert main(["report", "absent.csv"]) == 2
    assert capsys.readouterr().err.startswith("absent.csv is not a file; export one with")


def test_a_page_of_thousands_of_measurements_stays_usable(row: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures draw some of the points, the largest included, and say so; the page's size and work do not grow with the square."""
    rows = [row(1000.0 + number, model_name=f"m{number % 10}", seed=number, memory=number) for number in range(2_000)]
    drawn, left_out = figures.draw(rows)
    throughput = next(one for one in drawn if one.name == "throughput-seed")
    assert f"{figures.MOST_POINTS} of 2000 are drawn." in throughput.caption
    assert max(max(one.lines[0].get_ydata()) for one in throughput.figure.axes[0].containers) == 2999.0
    differing = Mock(return_value=["model_name", "seed"])
    monkeypatch.setattr(page, "differing", differing)
    pictures = [
        page.Picture(one.name, one.title, one.caption, figure_style.render(one, "svg").decode()) for one in drawn
    ]
    made = page.html(rows, pictures, left_out, "made")
    assert differing.call_count <= 4
    assert len(made) < 3_000_000
