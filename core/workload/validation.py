"""Turns property values into a ``Workload``, or into one message that says why they are impossible.

Rules across properties are in ``_rules``, those about devices in ``parallel_rules``; ``value_errors`` has the messages about single values
and misspelled names. Imports pydantic.
"""

from __future__ import annotations

from typing import Any

import pydantic

from ..failures import InvalidConfiguration
from ..protocol import optimizers, supported
from . import parallel_rules
from .experiments import applies
from .fields import Workload
from .value_errors import first_message
from .where import ADAPTERS

ONLY_FSDP = (
    "fsdp_sharding_strategy",
    "fsdp_state_dict_type",
    "fsdp_use_orig_params",
    "fsdp_transformer_layer_cls_to_wrap",
)


def parse(values: dict[str, Any]) -> Workload:
    """Make a ``Workload`` of property values.

    Raises:
        InvalidConfiguration: a value, or a combination of values, is impossible; the message names it.
    """
    try:
        workload = Workload.model_validate(values)
    except pydantic.ValidationError as error:
        raise InvalidConfiguration(first_message(error, "property of a workload", Workload.model_fields)) from None
    if message := violation(workload):
        raise InvalidConfiguration(message)
    return workload


def violation(workload: Workload) -> str | None:
    """Return the message of the first rule across properties that ``workload`` violates, or None."""
    return next((message for violated, message in _rules(workload) if violated), None)


def without_effect(w: Workload) -> list[str]:
    """Return a note for each value that changes nothing. They are accepted, since a study may fix them for all of its workloads."""
    sharded = w.distributed_backend in parallel_rules.FSDP and w.processes > 1
    unused = [
        (w.distributed_backend in parallel_rules.FSDP and w.processes == 1, "distributed_backend", "on one device"),
        *((not sharded, name, "without FSDP on several devices") for name in ONLY_FSDP),
        (sharded and w.distributed_backend == "FSDP2", "fsdp_use_orig_params", "in FSDP2"),
        *(
            (not applies(field, "methods", w.method), name, f"with method {w.method}")
            for name, field in Workload.model_fields.items()
        ),
        (not w.packing, "packing_strategy", "without packing"),
        (w.dataset_id.startswith("synthetic-"), "dataset_text_field", "on synthetic data"),
    ]
    return [
        f"{name} {getattr(w, name)} has no effect {where}."
        for is_unused, name, where in unused
        if is_unused and getattr(w, name) != Workload.model_fields[name].default
    ]


def _rules(w: Workload) -> list[tuple[bool, str]]:
    """Return for each rule whether ``w`` violates it, and the message."""
    return [
        *parallel_rules.rules(w),
        *_type_rules(w),
        *_kernel_rules(w),
        *_optimizer_rules(w),
        *_adapter_rules(w),
        *_compile_rules(w),
        *_checkpointing_rules(w),
        *_fp8_rules(w),
        *_loss_rules(w),
        *_image_rules(w),
    ]


def _type_rules(w: Workload) -> list[tuple[bool, str]]:
    """Return the rules about types of numbers."""
    return [
        (w.number_gpus == 0 and w.mixed_precision == "fp16", "mixed_precision fp16 needs a GPU; use bf16 or no."),
        (
            # adapters are kept in float32, regardless of the type of the weights
            w.mixed_precision == "fp16" and w.torch_dtype != "float32" and w.method in ("full", "prompt_tuning"),
            f"mixed_precision fp16 needs torch_dtype float32: its gradient scaler cannot unscale {w.torch_dtype}.",
        ),
    ]


def _kernel_rules(w: Workload) -> list[tuple[bool, str]]:
    """Return the rules about kernels, and what only some of them can do."""
    cpu, attention = w.number_gpus == 0, w.attn_implementation[:60]
    plain = w.attn_implementation in supported.PLAIN_ATTENTION
    return [
        (cpu and not plain, f"attn_implementation {attention} needs a GPU; use sdpa or eager."),
        (
            supported.is_flash(w.attn_implementation) and w.torch_dtype == "float32" and w.mixed_precision == "no",
            f"attn_implementation {attention} needs torch_dtype bfloat16 or float16, or mixed_precision.",
        ),
        (
            w.padding_free and plain,
            "padding_free needs attn_implementation flash_attention_2, another flash attention or flex_attention.",
        ),
        (cpu and w.use_liger_kernel, "use_liger_kernel needs a GPU."),
        (cpu and w.fast_moe > 0, f"fast_moe {w.fast_moe} needs a GPU."),
        (
            w.fast_moe > 0 and w.number_gpus % w.fast_moe != 0,
            f"fast_moe {w.fast_moe} does not divide number_gpus {w.number_gpus}.",
        ),
        (
            cpu and w.activation_offloading,
            "activation_offloading needs a GPU: on CPU activations are in host memory already.",
        ),
    ]


def _optimizer_rules(w: Workload) -> list[tuple[bool, str]]:
    message = optimizers.impossible(
        w.optim,
        cpu=w.number_gpus == 0,
        processes=w.processes,
        gradient_accumulation_steps=w.gradient_accumulation_steps,
        dtensors=w.distributed_backend == "FSDP2" and w.processes > 1,
    )
    return [(True, message)] if message else []


def _adapter_rules(w: Workload) -> list[tuple[bool, str]]:
    decomposes = w.init_lora_weights not in ("default", "gaussian", "orthogonal")
    return [
        (
            decomposes and w.method in ("qlora", "gptq_lora"),
            f"init_lora_weights {w.init_lora_weights} decomposes the weights, which method {w.method} quantises; use gaussian.",
        ),
        (
            w.init_lora_weights == "orthogonal" and w.r % 2 != 0 and w.method in ADAPTERS,
            f"init_lora_weights orthogonal needs an even r, not {w.r}.",
        ),
        (
            w.method == "qlora" and w.quantisation == "int8" and not w.double_quantisation,
            "double_quantisation false needs quantisation nf4 or fp4: int8 has no scales that could be quantised.",
        ),
        (
            w.method == "qlora" and w.quantisation == "int8" and w.use_dora and w.number_gpus == 0,
            "use_dora with quantisation int8 needs a GPU: PEFT loses the scales of 8-bit weights on CPUs; use nf4.",
        ),
        (
            bool(w.target_parameters) and w.lora_dropout > 0,
            f"target_parameters needs lora_dropout 0, not {w.lora_dropout:g}: PEFT applies no dropout to parameters.",
        ),
        (
            bool(w.target_parameters) and w.use_dora,
            "use_dora excludes target_parameters: PEFT has DoRA for modules only.",
        ),
    ]


def _fp8_rules(w: Workload) -> list[tuple[bool, str]]:
    if (recipe := w.fp8_recipe) == "none":
        return []
    needed = supported.FP8_CAPABILITY[recipe]
    other = w.distributed_backend in ("FSDP", "DeepSpeed") or w.tensor_parallel_size > 1
    return [
        (w.number_gpus == 0, f"fp8_recipe {recipe} needs a GPU of compute capability {needed} or higher."),
        (
            w.mixed_precision != "bf16" and w.torch_dtype != "bfloat16",
            f"fp8_recipe {recipe} needs torch_dtype bfloat16 or mixed_precision bf16.",
        ),
        (other, f"fp8_recipe {recipe} needs distributed_backend DDP or FSDP2, without tensor_parallel_size."),
    ]


def _checkpointing_rules(w: Workload) -> list[tuple[bool, str]]:
    every, reentrant = w.gradient_checkpointing_every_n_layers, w.gradient_checkpointing_use_reentrant
    return [
        (
            every > 1 and not w.gradient_checkpointing,
            f"gradient_checkpointing_every_n_layers {every} needs gradient_checkpointing.",
        ),
        (
            w.gradient_checkpointing_selective and (reentrant or not w.gradient_checkpointing),
            "gradient_checkpointing_selective needs gradient_checkpointing, without gradient_checkpointing_use_reentrant.",
        ),
        (
            reentrant and not w.gradient_checkpointing,
            "gradient_checkpointing_use_reentrant needs gradient_checkpointing.",
        ),
        (
            w.gradient_checkpointing_selective and w.attn_implementation in ("eager", supported.FLEX_ATTENTION),
            f"gradient_checkpointing_selective needs attn_implementation sdpa or a flash attention, not {w.attn_implementation}.",
        ),
        (
            w.gradient_checkpointing_selective and w.method != "full",
            f"gradient_checkpointing_selective needs method full, not {w.method}: with adapters TRL recomputes everything.",
        ),
    ]


def _compile_rules(w: Workload) -> list[tuple[bool, str]]:
    default_backend = w.torch_compile_backend == "inductor"
    return [
        (
            not w.torch_compile and not default_backend,
            f"torch_compile_backend {w.torch_compile_backend} needs torch_compile.",
        ),
        (
            w.torch_compile_mode != "default" and not (w.torch_compile and default_backend),
            f"torch_compile_mode {w.torch_compile_mode} needs torch_compile with torch_compile_backend inductor.",
        ),
        (
            w.torch_compile_backend == "cudagraphs" and w.number_gpus == 0,
            "torch_compile_backend cudagraphs needs a GPU; use inductor.",
        ),
    ]


def _loss_rules(w: Workload) -> list[tuple[bool, str]]:
    synthetic = w.dataset_id.startswith("synthetic-")
    return [
        (
            w.assistant_only_loss and synthetic,
            f"assistant_only_loss needs a file of chats, not dataset_id {w.dataset_id[:60]}; use synthetic_prompt_share there.",
        ),
        (
            w.synthetic_prompt_share > 0 and (not synthetic or w.dataset_id == "synthetic-image"),
            f"synthetic_prompt_share {w.synthetic_prompt_share:g} needs synthetic text, such as dataset_id synthetic-fixed.",
        ),
        (
            w.completion_only_loss is True and synthetic and w.synthetic_prompt_share == 0,
            "completion_only_loss needs completions: set synthetic_prompt_share, or use a file with prompt and completion.",
        ),
    ]


def _image_rules(w: Workload) -> list[tuple[bool, str]]:
    if not w.dataset_image_field:
        return [
            (
                w.dataloader_num_workers > 0,
                f"dataloader_num_workers {w.dataloader_num_workers} needs dataset_image_field: token ids need no preparation.",
            ),
            (
                w.dataset_id == "synthetic-image",
                "dataset_id synthetic-image needs dataset_image_field, such as dataset_image_field image.",
            ),
        ]
    # with images both libraries support only padding, and fms-hf-tuning loads vision models without its acceleration plugins
    conflict = next(
        (
            name
            for name in ("packing", "padding_free", "fast_kernels", "fast_moe", "assistant_only_loss")
            if getattr(w, name)
        ),
        "",
    )
    synthetic = w.dataset_id.startswith("synthetic-") and w.dataset_id != "synthetic-image"
    if w.completion_only_loss is True:
        conflict = "completion_only_loss"
    return [
        (
            bool(conflict),
            f"{conflict} excludes dataset_image_field: the training libraries do not support it with images.",
        ),
        (
            w.method not in ("full", "lora"),
            f"method {w.method} is not supported with images; use full or lora, or leave dataset_image_field out.",
        ),
        (
            synthetic,
            f"dataset_id {w.dataset_id} has no images; use synthetic-image, or leave dataset_image_field out.",
        ),
    ]
