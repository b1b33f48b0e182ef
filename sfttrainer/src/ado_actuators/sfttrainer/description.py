"""What the core has to know about this plugin. Imports neither ado nor Ray, so that ``run`` starts without them."""

from __future__ import annotations

from .core.measurement.plugin import Plugin

PLUGIN = Plugin(
    identifier="sfttrainer",
    kinds=(
        "finetune_full_benchmark",
        "finetune_lora_benchmark",
        "finetune_qlora_benchmark",
        "finetune_prompt_tuning_benchmark",
        "finetune_full_stability",
        "finetune_memory_estimate",
    ),
)
