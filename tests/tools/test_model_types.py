"""The page of model types is that of the table, and the table covers what the code knows."""

from __future__ import annotations

import runpy
from pathlib import Path

from ado_actuators.sfttrainer.core.protocol.supported import FLOPS_KNOWN

ROOT = Path(__file__).parents[2]
made = runpy.run_path(str(ROOT / "tools" / "model_types.py"))


def test_the_committed_page_is_the_generated_one() -> None:
    """Run `python tools/model_types.py` after a change of the table."""
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == made["page"](made["table"](), FLOPS_KNOWN)


def test_every_type_has_one_place() -> None:
    """Types with a formula for their FLOPs are in it; each sentence says something."""
    table = made["table"]()
    trained, others = set(table["trained"]), table["others"]
    assert len(trained) == len(table["trained"])
    assert not trained & others.keys()
    assert trained | others.keys() >= FLOPS_KNOWN
    assert all(len(why) > 20 and why.endswith(".") for why in others.values())
