"""Two actuators, as thin as those of the plugins."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator
from .core.measurement.plugin import Plugin


class Timed(MeasuringActuator):
    """Takes the time that its workload says."""

    identifier = "timed"
    description: ClassVar[Plugin] = Plugin("timed", ("finetune_full_benchmark",))


class TimedToo(Timed):
    """The same under another name, with a pool of its own."""

    identifier = "timed_too"
    description: ClassVar[Plugin] = Plugin("timed_too", ("finetune_full_benchmark",))
