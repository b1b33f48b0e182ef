"""What surrounds a measurement, without measuring."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core import measurement


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5.0), (2, 10.0), (4, 40.0), (7, 300.0), (100, 300.0)])
def test_the_pause_before_a_repetition_doubles_up_to_a_limit(attempt: int, seconds: float) -> None:
    """However many repetitions are allowed, none is waited for longer than five minutes."""
    assert measurement.backoff_s(5.0, attempt) == seconds
