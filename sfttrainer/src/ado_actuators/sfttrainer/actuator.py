"""The sfttrainer actuator: measures fine-tuning with Hugging Face TRL's SFTTrainer."""

from __future__ import annotations

from typing import ClassVar

from .core.actuator.base import MeasuringActuator
from .parameters import SFTTrainerParameters


class SFTTrainer(MeasuringActuator):
    """Fine-tunes with TRL and measures throughput, step times, memory, utilisation, energy and cost."""

    identifier = "sfttrainer"
    parameters_class = SFTTrainerParameters
    kinds: ClassVar[tuple[str, ...]] = (
        "finetune_full_benchmark",
        "finetune_lora_benchmark",
        "finetune_qlora_benchmark",
        "finetune_prompt_tuning_benchmark",
        "finetune_full_stability",
        "finetune_memory_estimate",
    )
