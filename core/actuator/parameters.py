"""The actuator configuration as ado knows it: this project's parameters, and those of ado's supervisor of requests."""

from __future__ import annotations

from ado.modules.actuators.standard import StandardActuatorParameters

from ..host.parameters import MeasuringParameters


class SupervisedParameters(MeasuringParameters, StandardActuatorParameters):
    """Parameters of an actuator that adds none of its own."""
