"""Configuration of the fms_hf_tuning actuator: where and how to measure. What to measure is in the entities."""

from __future__ import annotations

from typing import Annotated

import pydantic

from .core.host.parameters import MeasuringParameters


class FMSHFTuningParameters(MeasuringParameters):
    """Parameters of the fms_hf_tuning actuator.

    The library requires older releases of torch, transformers and TRL, so by default it has an environment of its own.
    """

    environment: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            description="Python of the trainer: managed (built on first use), current, or an interpreter's path.",
        ),
    ] = "managed"
