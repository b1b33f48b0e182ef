"""The actuator of the soak, as thin as those of the plugins."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator
from .core.measurement.plugin import Plugin


class Soaking(MeasuringActuator):
    """Fine-tunes with TRL and misbehaves as a seed says."""

    identifier = "soaking"
    description: ClassVar[Plugin] = Plugin("soaking", ("finetune_full_benchmark",))
