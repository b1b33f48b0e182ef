"""Two actuators, as thin as those of the plugins."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator


class Timed(MeasuringActuator):
    """Takes the time that its workload says."""

    identifier = "timed"
    kinds: ClassVar[tuple[str, ...]] = ("finetune_full_benchmark",)


class TimedToo(Timed):
    """The same under another name, with a pool of its own."""

    identifier = "timed_too"
