"""The page of a report in a real browser, on wide and narrow screens, light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.reporting.rows import Row

from .conftest import FIGURES

QUIET = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=60000", "--window-size=1400,1000"),
]
SCREENS = [(width, scheme) for width in (1280, 420) for scheme in ("light", "dark")]
# a page with a frame for each screen; its title is what each frame shows, as JSON
DRIVER = Path(__file__).with_name("screens.html")


@pytest.fixture(scope="module")
def browser() -> str:
    """Path of Chromium; `nox -s tests` installs it where it may."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium is installed")
    return found


@pytest.fixture(scope="module")
def screens(
    browser: str, full_page: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], dict[str, Any]]:
    """What one browser makes of the page on each screen, by width and colour scheme."""
    place = tmp_path_factory.mktemp("browser")
    # a closing script tag within the text would end the driver's own script
    given = json.dumps({"page": full_page, "screens": SCREENS}).replace("</", "<\\/")
    (place / "screens.html").write_text(DRIVER.read_text().replace("GIVEN", given))
    done = subprocess.run(
        [browser, *QUIET, f"--user-data-dir={place / 'profile'}", "--dump-dom", (place / "screens.html").as_uri()],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    return dict(zip(SCREENS, json.loads(html.unescape(title[1])), strict=True))


def brightness(colour: str) -> float:
    """Return the mean of red, green and blue, from 0 to 1."""
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3 / 255


@pytest.mark.timeout(400)
@pytest.mark.parametrize("screen", SCREENS)
def test_figures_can_be_read_and_nothing_scrolls_the_page(
    screens: dict[tuple[int, str], dict[str, Any]], screen: tuple[int, str]
) -> None:
    """No text is below 11 pixels, no part exceeds its figure, no figure its frame; tables scroll inside themselves."""
    found = screens[screen]
    assert sorted(one["name"] for one in found["figures"]) == sorted(FIGURES)
    for one in found["figures"]:
        assert (one["smallest"] >= 11, one["parts"] > 15, one["outside"], one["height"] > 150) == (
            True,
            True,
            [],
            True,
        ), one
    inside, scrolled = found["width"]
    assert screen[0] - 20 <= inside == scrolled
    assert found["smallest"] >= 11
    assert found["sticking out"] == []


@pytest.mark.timeout(400)
def test_the_heads_of_a_table_are_underlined_and_its_states_on_one_line(
    screens: dict[tuple[int, str], dict[str, Any]],
) -> None:
    """The heads have a rule below them, the last line of the body has none."""
    assert screens[1280, "light"]["rules"] == ["1px", "0px", "nowrap"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_follows_the_readers_colour_scheme(screens: dict[tuple[int, str], dict[str, Any]], width: int) -> None:
    """Background, text and the text of drawings are dark on light, or light on dark."""
    background, *texts = map(brightness, screens[width, "light"]["colours"])
    assert background > 0.8
    assert max(texts) < 0.5
    background, *texts = map(brightness, screens[width, "dark"]["colours"])
    assert background < 0.25
    assert min(texts) > 0.6


@pytest.mark.timeout(400)
@pytest.mark.parametrize("screen", SCREENS)
def test_tables_sort_and_filter(
    screens: dict[tuple[int, str], dict[str, Any]], screen: tuple[int, str], everything: list[Row]
) -> None:
    """A heading sorts as numbers, then backwards, by a button of its own; a filter leaves the lines with all its words."""
    rates = sorted(row.throughput for row in everything if row.throughput is not None)
    found = screens[screen]
    first, last = (f"{rate:,.0f}" for rate in (rates[0], rates[-1]))
    assert found["ascending"] == ["ascending", first, last, True]
    assert found["descending"] == ["descending", last, first, True]
    assert found["filtered"] == [["fms_hf_tuning", "2048"], f"{found['matching']} of {len(rates)}"]
    assert found["unfiltered"] == len(rates)


@pytest.mark.timeout(400)
def test_marks_show_their_values_and_commands_are_copied(screens: dict[tuple[int, str], dict[str, Any]]) -> None:
    """A touched mark writes its workload and value below the figure; a button copies the command of its line."""
    found = screens[420, "light"]
    assert re.fullmatch(
        r"(sfttrainer|fms_hf_tuning), length \d+, batch \d+, \d GPUs?: [\d ,]+ tokens/s ± 1.5 %", found["picked"]
    )
    assert found["copied"] == (
        "ado-sfttrainer run --experiment finetune_full_benchmark model_name=m model_max_length=512 batch_size=4 number_gpus=1"
    )
