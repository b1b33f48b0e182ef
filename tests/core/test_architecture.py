"""docs/architecture.md agrees with the tree, and tests without a marker import only what `nox -s unit` installs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.protocol import messages

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# imports of what is not installed there
HEAVY = re.compile(
    r"^(?:from|import) (?:(?:ado|ray|torch|transformers|trl|peft|datasets)\b|ado_actuators\.\w+\.(?:core\.)?(?:actuator|stack)\b).*",
    re.MULTILINE,
)
AFTER_IMPORTS = re.compile(r"^(?:def |class |@|[A-Z_]+ = )", re.MULTILINE)
PATHS = sorted(set(re.findall(r"`((?:core|tools|tests|sfttrainer|fms_hf_tuning)/[\w./-]*)`", PAGE)))


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.partition(f"\n{heading}")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_the_page_exists(path: str) -> None:
    """Each file and folder that the page names is in the tree."""
    assert (ROOT / path).exists()


def test_every_folder_is_explained() -> None:
    """The table of folders has each folder of core/, and no other."""
    folders = {path.parent.name for path in (ROOT / "core").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)) == folders


def test_questions_of_a_newcomer_have_a_file() -> None:
    """The last column of the table names a file for warm-up, peaks, retries, misspelled properties and the page."""
    table = PAGE.partition("| question | place |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) >= 5
    assert [row for row in table if not re.search(r"`[\w./]+\.(py|jinja)`", row.split("|")[2])] == []


def test_the_keys_of_a_job_are_those_of_its_type() -> None:
    """The page names each field of Job."""
    named = set(re.findall(r"`(\w+)`", section("### Job\n"))) - {"Workload", "method", "Job"}
    assert named == {field.name for field in dataclasses.fields(messages.Job)}


def test_the_keys_of_a_record_are_those_of_its_type() -> None:
    """The page explains each key of Record."""
    rows = re.findall(r"^\| (`.*?`) \|", section("### Record (one per rank)\n"), re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    keys = messages.Record.__required_keys__ | messages.Record.__optional_keys__
    assert named == keys - {"event"}


def test_tests_without_a_marker_import_neither_torch_ray_nor_ado() -> None:
    """`nox -s unit` collects them where none of these is installed."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    heads = {name: AFTER_IMPORTS.split(text)[0] for name, text in texts.items() if "\npytestmark = " not in text}
    assert {name: HEAVY.findall(head) for name, head in heads.items() if HEAVY.search(head)} == {}
