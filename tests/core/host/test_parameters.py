"""The actuator configuration rejects numbers that timers cannot use."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core.host.parameters import OF_ADO, MeasuringParameters, validate


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


def test_the_parameters_of_ados_supervisor_are_accepted() -> None:
    """``run`` takes the file of an operation, and has no supervisor; other keys are misspelled."""
    assert validate(MeasuringParameters, {**dict.fromkeys(OF_ADO, 5.0), "max_retries": 1}).max_retries == 1
    with pytest.raises(ValueError, match="taskRunningTimeout is not a parameter of the actuator configuration"):
        validate(MeasuringParameters, {"taskRunningTimeout": 5.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_retrys": 1}, "max_retrys is not a parameter of the actuator configuration. Use max_retries."),
        ({"max_retries": -1}, "max_retries -1 is impossible: expected a whole number from 0 to 100."),
        (
            {"pending_timeout_s": "soon"},
            "pending_timeout_s 'soon' is impossible: expected a number above 0 and at most 2592000.",
        ),
        (
            {"price_usd_per_device_hour": -1},
            "price_usd_per_device_hour -1 is impossible: expected a number from 0 to 1000000.",
        ),
        ("nothing", "configuration 'nothing' is impossible: expected a mapping of names to values."),
    ],
)
def test_a_message_says_what_was_expected(given: object, message: str) -> None:
    """Bounds and types come from the field, also where it may be None; a misspelled name gets the likely one."""
    with pytest.raises(ValueError, match=message):
        validate(MeasuringParameters, given)


@pytest.mark.ray
def test_the_actuator_has_exactly_these_parameters_of_ado() -> None:
    """A release of ado with further parameters fails here."""
    from ado.modules.actuators.standard import StandardActuatorParameters

    from ado_actuators.sfttrainer.actuator import SFTTrainer
    from ado_actuators.sfttrainer.core.actuator.parameters import SupervisedParameters

    assert set(StandardActuatorParameters.model_fields) == set(OF_ADO)
    for supervised in (SupervisedParameters, SFTTrainer.parameters_class):
        assert set(supervised.model_fields) == {*OF_ADO, *MeasuringParameters.model_fields}
