"""``benchmarks/estimates.py``: the estimates of one small model, from end to end."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

# conftest adds the scripts' directory
import estimates

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


def test_all_layers_give_the_same_bytes() -> None:
    """With a model of so few layers they are traced as they are."""
    found = estimates.timed("tiny-llama-5m", 1)
    assert found["same_bytes"] is True
    report = estimates.text(
        {"hardware": {"devices": [], "cpu": "", "usable_cores": 2, "memory_gib": 1}, "versions": {}, "commit": None}
        | dict.fromkeys(("date", "command", "load_average_before"), ""),
        {"llama3.2-1b": found},
        met=True,
    )
    assert "| llama3.2-1b, 1 H100 |" in report
