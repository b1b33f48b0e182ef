"""The actuator configuration rejects numbers that timers cannot use."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core.actuator.parameters import MeasuringParameters, validate

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e10, 0, -1])
@pytest.mark.parametrize("key", ["run_timeout_s", "idle_timeout_s", "pending_timeout_s"])
def test_a_time_is_between_0_and_30_days(key: str, value: float) -> None:
    """``queue.get(timeout=inf)`` raises OverflowError in each measurement; the message names the property."""
    with pytest.raises(ValueError, match=key):
        validate(MeasuringParameters, {key: value})


@pytest.mark.parametrize(("key", "value"), [("retry_backoff_s", 1e300), ("price_usd_per_device_hour", float("inf"))])
def test_other_numbers_have_bounds(key: str, value: float) -> None:
    """Infinite prices and waits are rejected."""
    with pytest.raises(ValueError, match=key):
        validate(MeasuringParameters, {key: value})
