"""The fms_hf_tuning actuator: measures fine-tuning with IBM's fms-hf-tuning library."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator
from .core.actuator.parameters import SupervisedParameters
from .core.measurement.plugin import Plugin
from .description import PLUGIN
from .parameters import FMSHFTuningParameters


class Parameters(FMSHFTuningParameters, SupervisedParameters):
    """Parameters of the fms_hf_tuning actuator, with those of ado's supervisor."""


class FMSHFTuning(MeasuringActuator):
    """Fine-tunes with fms-hf-tuning and measures throughput, step times, memory, utilisation, energy and cost."""

    identifier = PLUGIN.identifier
    parameters_class = Parameters
    description: ClassVar[Plugin] = PLUGIN
