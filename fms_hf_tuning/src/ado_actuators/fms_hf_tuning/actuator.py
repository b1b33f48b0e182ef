"""The fms_hf_tuning actuator: measures fine-tuning with IBM's fms-hf-tuning library."""

from __future__ import annotations

from typing import ClassVar

from . import environments
from .core.actuator.base import MeasuringActuator
from .core.measurement.plugin import Unsupported
from .limits import before_start
from .parameters import FMSHFTuningParameters


class FMSHFTuning(MeasuringActuator):
    """Fine-tunes with fms-hf-tuning and measures throughput, step times, memory, utilisation, energy and cost."""

    identifier = "fms_hf_tuning"
    parameters_class = FMSHFTuningParameters
    kinds: ClassVar[tuple[str, ...]] = (
        "finetune_full_benchmark",
        "finetune_lora_benchmark",
        "finetune_prompt_tuning_benchmark",
        "finetune_qlora_benchmark",
        "finetune_gptq_lora_benchmark",
        "finetune_full_stability",
        "finetune_memory_estimate",
    )
    requirements = environments.FILE_NAME
    unsupported: ClassVar[Unsupported | None] = staticmethod(before_start)
