"""The reference pages are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["sfttrainer", "fms_hf_tuning"])
def test_the_committed_page_is_the_generated_one(name: str) -> None:
    """Run `nox -s docs` after a change of properties, outputs, parameters or messages."""
    made = runpy.run_path(str(ROOT / "tools" / "reference.py"))
    assert (ROOT / "docs" / f"{name}.md").read_text() == made["page"](made["ACTUATORS"][name])
