"""A clock that can be set forward: tests of waiting use the limits as they are, and need not wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Give a function that sets forward the clocks of the pools of this process, in seconds."""
    # this file is imported where there is no Ray, too
    from ado_actuators.sfttrainer.core.cluster import operator_waits, patience, pool

    passed_s = 0.0

    def forward(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s, time=lambda: time.time() + passed_s)
    for module in (operator_waits, patience, pool):
        monkeypatch.setattr(module, "time", clock)
    return forward
