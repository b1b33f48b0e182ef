"""The actuator of the soak, as thin as those of the plugins."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator


class Soaking(MeasuringActuator):
    """Fine-tunes with TRL and misbehaves as a seed says."""

    identifier = "soaking"
    kinds: ClassVar[tuple[str, ...]] = ("finetune_full_benchmark",)
