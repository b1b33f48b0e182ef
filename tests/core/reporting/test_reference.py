"""The reference pages say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["sfttrainer", "fms_hf_tuning"])
def test_the_committed_page_is_the_generated_one(name: str) -> None:
    """Run `nox -s docs` after a change of properties, outputs, parameters or messages."""
    made = runpy.run_path(str(DOCS / "reference.py"))
    assert (DOCS / f"{name}.md").read_text() == made["page"](made["ACTUATORS"][name])
