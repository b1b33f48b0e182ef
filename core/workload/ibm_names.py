"""Names and defaults of IBM's own actuator ``SFTTrainer``. Imports the workload's fields.

Source: the distribution ``ado-sfttrainer`` 1.8.12 of the package index, whose actuator has version 2.2.0: its experiments, the
domains and defaults of its properties, its LoRA modules and its measured properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import Workload

ACTUATOR = "SFTTrainer"
EXPERIMENTS: Mapping[str, str] = {
    "finetune_full_benchmark-v1.0.0": "finetune_full_benchmark",
    "finetune_lora_benchmark-v1.0.0": "finetune_lora_benchmark",
    "finetune_gptq-lora_benchmark-v1.0.0": "finetune_gptq_lora_benchmark",
    "finetune_pt_benchmark-v1.0.0": "finetune_prompt_tuning_benchmark",
    "finetune_full_stability-v1.0.0": "finetune_full_stability",
}
# outputs whose name differs here; None: not measured here
OUTPUTS: Mapping[str, str | None] = {
    "train_runtime": "train_runtime_s",
    "train_tokens_per_gpu_per_second": "train_tokens_per_second_per_gpu",
    "cpu_memory_utilization": None,
}
REQUIRED = ("model_name", "model_max_length", "batch_size", "number_gpus")
DEFAULTS: Mapping[str, Any] = {
    "gpu_model": None,
    "number_nodes": 1,
    "dataset_id": "news-tokens-16384plus-entries-4096",
    "torch_dtype": "bfloat16",
    "bf16": False,
    "accelerate_config_mixed_precision": "no",
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "gradient_checkpointing_use_reentrant": False,
    "optim": "adamw_torch",
    "flash_attn": True,
    "distributed_backend": "FSDP",
    "fsdp_sharding_strategy": "FULL_SHARD",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_use_orig_params": True,
    "accelerate_config_fsdp_transformer_layer_cls_to_wrap": None,
    "enable_roce": False,
    "fms_hf_tuning_version": "2.1.2",
    "fast_moe": 0,
    "fast_kernels": None,
    "dataset_text_field": "output",
    "dataset_image_field": None,
    "remove_unused_columns": True,
    "dataset_kwargs_skip_prepare_dataset": False,
    "auto_stop_method": None,
    "max_steps": -1,
    "num_train_epochs": 1.0,
    "stop_after_seconds": -1.0,
}
# for LoRA and GPTQ-LoRA; the dropout is the library's default, which the actuator does not set
ADAPTER_DEFAULTS: Mapping[str, Any] = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.05}
# IBM's experiment sets the autocast type itself
GPTQ_DEFAULTS: Mapping[str, Any] = {
    "torch_dtype": "float16",
    "fast_kernels": ["True", "True", "True"],
    "accelerate_config_mixed_precision": "fp16",
}
# LoRA target modules of models that differ from MOST_MODULES
MODULES: Mapping[str, str] = {
    **dict.fromkeys(("granite-13b-v2", "granite-20b-v2", "granite-34b-code-base"), "c_attn,c_proj"),
    **dict.fromkeys(("llama-7b", "llama-13b", "llama3-8b"), "q_proj,k_proj"),
    "hf-tiny-model-private/tiny-random-BloomForCausalLM": "dense_h_to_4h,dense_4h_to_4h",
}
MOST_MODULES = "q_proj,v_proj"
# experiments that a stack here does not have, and why
ABSENT: Mapping[tuple[str, str], str] = {
    ("sfttrainer", "finetune_gptq_lora_benchmark"): "TRL does not support GPTQ-LoRA: leave out --to sfttrainer",
    (
        "fms_hf_tuning",
        "finetune_prompt_tuning_benchmark",
    ): "the releases of fms-hf-tuning here do not support prompt tuning: use --to sfttrainer",
}
WARMUP_THEN_STABLE = "WARMUP_60S_STABLE_120S_OR_10_STEPS"
ENDS = ("auto_stop_method", "max_steps", "num_train_epochs", "stop_after_seconds")
# no counterpart needed: these prepare data that is generated here, or repeat what the experiment sets
IMPLIED = ("remove_unused_columns", "dataset_kwargs_skip_prepare_dataset", "peft_method", "auto_gptq", "fused_lora")
CONVERT = "ado-fms-hf-tuning convert FILE translates studies of IBM's actuator SFTTrainer"
# IBM's property: our property of another name
RENAMED: Mapping[str, str] = {
    "flash_attn": "attn_implementation",
    "bf16": "mixed_precision",
    "accelerate_config_mixed_precision": "mixed_precision",
    "accelerate_config_fsdp_transformer_layer_cls_to_wrap": "fsdp_transformer_layer_cls_to_wrap",
}
PARAMETERS = (
    "match_exact_dependencies", "output_dir", "data_directory", "aim_dashboard_url", "aim_db", "hf_home", "model_map",
    "num_tokens_cache_directory", "cache",
)  # fmt: skip


def hint(name: str) -> str:
    """Return advice on a name of IBM's actuator, as the end of a message; empty for any other name."""
    known = name in (ACTUATOR, *EXPERIMENTS, *PARAMETERS)
    known = known or (name in DEFAULTS and name not in Workload.model_fields)
    return f" {CONVERT}." if known else ""
