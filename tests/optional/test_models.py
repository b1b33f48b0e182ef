"""A small model of every type that transformers lists as causal is trained for one step, or says why not: `nox -s models`."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
made = runpy.run_path(str(ROOT / "tools" / "model_types.py"))
table: dict[str, Any] = made["table"]()


@pytest.fixture(autouse=True)
def of_the_tables_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip with other releases than those of the table: other types, other reasons. Tests of small models are imported."""
    here = {name: importlib.metadata.version(name) for name in ("transformers", "trl")}
    if here != {name: table[name] for name in here}:
        pytest.skip(
            f"The table is that of other releases than {here}; make it again with tools/model_types.py --measure."
        )
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def test_the_table_has_every_type() -> None:
    """Those that transformers lists as causal, and no others."""
    assert made["types"]() == sorted([*table["trained"], *table["others"]])


@pytest.mark.parametrize("model_type", table["trained"])
def test_a_type_is_trained(model_type: str) -> None:
    """Its tokens are counted, and its loss is finite."""
    assert made["attempt"](model_type) == ""


@pytest.mark.parametrize("model_type", table["others"])
def test_a_type_that_is_not_trained_says_why(model_type: str) -> None:
    """With the sentence of the table."""
    assert made["attempt"](model_type) == table["others"][model_type]
