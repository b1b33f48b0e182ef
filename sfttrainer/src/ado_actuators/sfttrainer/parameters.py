"""Configuration of the sfttrainer actuator: where and how, never what."""

from __future__ import annotations

from .core.actuator.parameters import MeasuringParameters


class SFTTrainerParameters(MeasuringParameters):
    """Parameters of the sfttrainer actuator."""
