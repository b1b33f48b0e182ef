"""Files that the documentation names exist, keys of a record are explained, tests without a marker import only what unit tests have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.protocol import messages

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
# imports of what is not installed there
HEAVY = re.compile(
    r"^(?:from|import) (?:(?:ado|ray|torch|transformers|trl|peft|datasets)\b|ado_actuators\.\w+\.(?:core\.)?(?:actuator|stack)\b).*",
    re.MULTILINE,
)
AFTER_IMPORTS = re.compile(r"^(?:def |class |@|[A-Z_]+ = )", re.MULTILINE)
# a placeholder such as DEVICE is no file
NAMED = re.compile(r"`((?:benchmarks|core|docs|examples|fms_hf_tuning|sfttrainer|tests|tools)/[\w./-]*)`")
PATHS = sorted(
    {path for page in PAGES for path in NAMED.findall(page.read_text(encoding="utf-8")) if "DEVICE" not in path}
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_a_page_exists(path: str) -> None:
    """Each file and folder that the documentation names is in the tree."""
    assert (ROOT / path).exists()


def test_the_keys_of_a_record_are_those_of_its_type() -> None:
    """The docstring explains each key of Record."""
    named = set(re.findall(r"``(\w+)``", re.sub(r": .*", "", messages.Record.__doc__ or "")))
    keys = messages.Record.__required_keys__ | messages.Record.__optional_keys__
    assert named == keys - {"event"}


def test_tests_without_a_marker_import_neither_torch_ray_nor_ado() -> None:
    """`nox -s unit` collects them where none of these is installed."""
    texts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    }
    heads = {name: AFTER_IMPORTS.split(text)[0] for name, text in texts.items() if "\npytestmark = " not in text}
    assert {name: HEAVY.findall(head) for name, head in heads.items() if HEAVY.search(head)} == {}
