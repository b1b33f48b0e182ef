"""Converts a workload into the configuration objects of fms-hf-tuning. Each function imports the library when it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .core.protocol.messages import Job, JobWorkload

KERNELS = ("fast_loss", "fast_rms_layernorm", "fast_rope_embeddings")


def model(workload: JobWorkload, source: Path | str, tokenizer: Path) -> Any:
    """Return the model's arguments.

    Args:
        workload: the workload.
        source: directory or hub id of the model.
        tokenizer: directory of the tokenizer.
    """
    from tuning.config import configs

    attention = workload.attn_implementation
    return configs.ModelArguments(
        model_name_or_path=str(source),
        tokenizer_name_or_path=str(tokenizer),
        torch_dtype=workload.torch_dtype,
        # the library's default is flash-attention
        use_flash_attn=attention != "auto",
        flash_attn_implementation=attention if attention != "auto" else None,
    )


def training(job: Job, directory: Path, epochs: int) -> Any:
    """Return the training arguments: nothing is logged, saved or reported during training.

    Args:
        job: the job.
        directory: directory for the library's output.
        epochs: passes over the data, if ``num_train_epochs`` limits them.
    """
    from tuning.config import configs

    from .core.trainer import arguments, deepspeed

    workload, images = job.workload, bool(job.workload.dataset_image_field)
    return configs.TrainingArguments(
        **(arguments.shared(job, epochs) | deepspeed.options(workload)),
        output_dir=str(directory / "output"),
        max_seq_length=workload.model_max_length,
        packing=workload.packing,
        # some layers of a vision tower may not contribute to the loss
        ddp_find_unused_parameters=images if job.world_size > 1 else None,
        # the collator of images needs columns that are not arguments of the model
        remove_unused_columns=not images,
        resume_from_checkpoint="false",
        log_level="warning",
    )


def data(directory: Path, *, images: bool) -> Any:
    """Return the data arguments, and for images the data handlers.

    The handlers for images are the library's defaults, but run in this process. By default the library forks a process per CPU, and
    forking a process in which torch has started threads can hang.

    Args:
        directory: directory of ``data.parquet``; the configuration of the handlers is written there.
        images: whether the data set has images.
    """
    from tuning.config import configs

    if not images:
        return configs.DataArguments(training_data_path=str(directory / "data.parquet"))
    fields = {"dataset_text_field": "text", "dataset_image_field": "image"}
    handlers = {
        "apply_tokenizer_chat_template": {
            "formatted_text_column_name": "text",
            "conversation_column_name": "messages",
        },
        "prepare_multimodal_data_processor": {
            "fields_name": fields,
            "processor_kwargs": {"return_tensors": "pt", "padding": True},
        },
    }
    dataset = {
        "name": "images",
        "data_paths": [str(directory / "data.parquet")],
        "data_handlers": [
            {"name": name, "arguments": {"fn_kwargs": arguments, "num_proc": None, "batched": False}}
            for name, arguments in handlers.items()
        ],
    }
    (directory / "data.json").write_text(json.dumps({"datasets": [dataset]}))
    return configs.DataArguments(data_config_path=str(directory / "data.json"), **fields)


def adapter(workload: JobWorkload, targets: list[str] | None = None) -> Any:
    """Return the configuration of the adapter that peft adds to the model; None for full fine-tuning.

    Args:
        workload: the workload.
        targets: the modules to adapt; None: the names in ``target_modules``.
    """
    from tuning.config import peft_config

    from .core.trainer import adapters

    if workload.method in ("lora", "qlora", "gptq_lora"):
        return peft_config.LoraConfig(
            **adapters.options(workload),
            target_modules=targets or [name.strip() for name in workload.target_modules.split(",")],
        )
    if workload.method == "prompt_tuning":
        return peft_config.PromptTuningConfig(
            prompt_tuning_init="RANDOM", num_virtual_tokens=workload.num_virtual_tokens
        )
    return None


def acceleration(workload: JobWorkload) -> dict[str, Any]:
    """Return the configuration of the library's acceleration plugins; empty if the workload uses none."""
    from tuning.config import acceleration_configs as plugins
    from tuning.config.acceleration_configs.attention_and_distributed_packing import MultiPack, PaddingFree
    from tuning.config.acceleration_configs.fast_moe import FastMoe
    from tuning.config.acceleration_configs.fused_ops_and_kernels import FastKernelsConfig
    from tuning.config.acceleration_configs.quantized_lora_config import AutoGPTQLoraConfig, BNBQLoraConfig

    configurations: dict[str, Any] = {}
    if workload.method == "qlora":
        configurations["quantized_lora_config"] = plugins.QuantizedLoraConfig(
            bnb_qlora=BNBQLoraConfig(quant_type=workload.quantisation)
        )
    if workload.method == "gptq_lora":
        configurations["quantized_lora_config"] = plugins.QuantizedLoraConfig(auto_gptq=AutoGPTQLoraConfig())
    if workload.fast_moe:
        configurations["fast_moe_config"] = plugins.FastMoeConfig(fast_moe=FastMoe(ep_degree=int(workload.fast_moe)))
    if workload.fast_kernels:
        configurations["fusedops_kernels_config"] = plugins.FusedOpsAndKernelsConfig(
            fast_kernels=FastKernelsConfig(**dict.fromkeys(KERNELS, True))
        )
    if workload.padding_free:
        configurations["attention_and_distributed_packing_config"] = plugins.AttentionAndDistributedPackingConfig(
            padding_free=PaddingFree(), multipack=MultiPack() if workload.multipack else None
        )
    return configurations
