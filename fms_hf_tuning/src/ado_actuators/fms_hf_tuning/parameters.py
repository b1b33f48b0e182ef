"""Configuration of the fms_hf_tuning actuator: where and how, never what."""

from __future__ import annotations

from typing import Annotated

import pydantic

from .core.actuator.parameters import MeasuringParameters


class FMSHFTuningParameters(MeasuringParameters):
    """Parameters of the fms_hf_tuning actuator.

    The library pins releases of torch, transformers and TRL that exclude today's, so it gets an environment of its own.
    """

    environment: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            description="Python of the trainer: managed (built on first use), current, or an interpreter's path.",
        ),
    ] = "managed"
