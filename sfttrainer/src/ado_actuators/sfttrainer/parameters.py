"""Configuration of the sfttrainer actuator: where and how to measure. What to measure is in the entities."""

from __future__ import annotations

from .core.host.parameters import MeasuringParameters


class SFTTrainerParameters(MeasuringParameters):
    """Parameters of the sfttrainer actuator."""
