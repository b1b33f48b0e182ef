"""The sfttrainer actuator: measures fine-tuning with Hugging Face TRL's SFTTrainer."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator
from .core.actuator.parameters import SupervisedParameters
from .core.measurement.plugin import Plugin
from .description import PLUGIN
from .parameters import SFTTrainerParameters


class Parameters(SFTTrainerParameters, SupervisedParameters):
    """Parameters of the sfttrainer actuator, with those of ado's supervisor."""


class SFTTrainer(MeasuringActuator):
    """Fine-tunes with TRL and measures throughput, step times, memory, utilisation, energy and cost."""

    identifier = PLUGIN.identifier
    parameters_class = Parameters
    description: ClassVar[Plugin] = PLUGIN
