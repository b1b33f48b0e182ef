"""Rules of a workload: an impossible one gives one message, in milliseconds."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core.failures import InvalidConfiguration
from ado_actuators.sfttrainer.core.workload.validation import parse, without_effect

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 64, "batch_size": 4, "number_gpus": 0}


def test_defaults_are_filled_in() -> None:
    """A workload needs four properties; the rest has defaults."""
    workload = parse(SMALL)
    assert (workload.processes, workload.device_batch_size, workload.dataset_id) == (1, 4, "synthetic-fixed")


def test_workloads_with_equal_values_are_equal() -> None:
    """Equality is by value, so a workload can be a key."""
    assert hash(parse(SMALL)) == hash(parse(dict(SMALL)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is impossible: expected a whole number from 1 to 65536."),
        ({"batch_size": -2}, "batch_size -2 is impossible: expected a whole number from 1 to 65536."),
        ({"model_max_length": 1}, "model_max_length 1 is impossible: expected a whole number from 2 to 131072."),
        ({"batch_size": 3, "number_gpus": 2}, "batch_size 3 is not divisible by 2 devices."),
        ({"batch_size": 3, "number_nodes": 2}, "batch_size 3 is not divisible by 2 processes."),
        ({"number_gpus": 3, "number_nodes": 2, "batch_size": 6}, "number_gpus 3 is not divisible by number_nodes 2."),
        ({"gpu_model": ""}, "gpu_model '' is impossible: expected text of 1 to 256 characters."),
        (
            {"gpu_model": "x" * 257},
            "gpu_model '" + "x" * 56 + "... is impossible: expected text of 1 to 256 characters.",
        ),
        ({"gpu_model": "H100"}, "gpu_model 'H100' needs number_gpus of at least 1."),
        (
            {"distributed_backend": "FSDP"},
            "distributed_backend FSDP needs GPUs: on CPU the trainer would run DDP instead.",
        ),
        (
            {"number_gpus": 2, "distributed_backend": "None"},
            "2 devices need distributed_backend DDP, FSDP, FSDP2 or DeepSpeed, not None.",
        ),
        (
            {"gradient_checkpointing_every_n_layers": 2},
            "gradient_checkpointing_every_n_layers 2 needs gradient_checkpointing.",
        ),
        (
            {"gradient_checkpointing_selective": True},
            "gradient_checkpointing_selective needs gradient_checkpointing, without gradient_checkpointing_use_reentrant.",
        ),
        (
            {"gradient_checkpointing_use_reentrant": True},
            "gradient_checkpointing_use_reentrant needs gradient_checkpointing.",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_selective": True, "attn_implementation": "eager"},
            "gradient_checkpointing_selective needs attn_implementation sdpa or a flash attention, not eager.",
        ),
        (
            {"gradient_checkpointing_selective": True, "gradient_checkpointing": True, "method": "lora"},
            "gradient_checkpointing_selective needs method full, not lora: with adapters TRL recomputes everything.",
        ),
        (
            {"dataloader_num_workers": 2},
            "dataloader_num_workers 2 needs dataset_image_field: token ids need no preparation.",
        ),
        (
            {"assistant_only_loss": True},
            "assistant_only_loss needs a file of chats, not dataset_id synthetic-fixed; use synthetic_prompt_share there.",
        ),
        (
            {"completion_only_loss": 1.0},
            "completion_only_loss needs completions: set synthetic_prompt_share, or use a file with prompt and completion.",
        ),
        (
            {"synthetic_prompt_share": 0.5, "dataset_id": "a.jsonl"},
            "synthetic_prompt_share 0.5 needs synthetic text, such as dataset_id synthetic-fixed.",
        ),
        (
            {"completion_only_loss": "yes"},
            "completion_only_loss 'yes' is impossible: expected auto, true or false.",
        ),
        ({"mixed_precision": "fp16"}, "mixed_precision fp16 needs a GPU; use bf16 or no."),
        (
            {"mixed_precision": "fp16", "torch_dtype": "bfloat16", "number_gpus": 1},
            "mixed_precision fp16 needs torch_dtype float32: its gradient scaler cannot unscale bfloat16.",
        ),
        (
            {"attn_implementation": "flash_attention_2", "number_gpus": 1},
            "attn_implementation flash_attention_2 needs torch_dtype bfloat16 or float16, or mixed_precision.",
        ),
        (
            {"fsdp_cpu_offload": True, "number_gpus": 1, "distributed_backend": "FSDP"},
            "fsdp_cpu_offload needs distributed_backend FSDP or FSDP2 on several devices.",
        ),
        *(
            (
                {"number_gpus": 2, "batch_size": 2, "distributed_backend": "FSDP2", "optim": name},
                f"optim {name} is not supported with FSDP2, whose parameters are DTensors; use adamw_torch.",
            )
            for name in ("adafactor", "adamw_8bit")
        ),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size 2 needs at least 2 devices, not 1: raise number_gpus, or number_nodes without GPUs.",
        ),
        (
            {"tensor_parallel_size": 2, "number_nodes": 3, "batch_size": 3},
            "tensor_parallel_size 2 does not divide 3 processes.",
        ),
        (
            {"tensor_parallel_size": 2, "number_nodes": 2},
            "tensor_parallel_size 2 needs distributed_backend FSDP2.",
        ),
        (
            {"tensor_parallel_size": 2, "number_nodes": 4, "batch_size": 3, "distributed_backend": "FSDP2"},
            "batch_size 3 is not divisible by 2 groups of 2 devices (tensor_parallel_size).",
        ),
        (
            {"tensor_parallel_size": 2, "context_parallel_size": 2, "number_gpus": 4},
            "tensor_parallel_size excludes context_parallel_size: no library combines them.",
        ),
        (
            {"context_parallel_size": 2, "number_nodes": 2, "distributed_backend": "FSDP2"},
            "context_parallel_size 2 needs GPUs: PyTorch's ring attention has no kernel for CPUs.",
        ),
        (
            {"context_parallel_size": 2, "number_gpus": 2, "distributed_backend": "FSDP2", "model_max_length": 30},
            "model_max_length 30 is not divisible by 4, twice the context_parallel_size.",
        ),
        (
            {"context_parallel_size": 2, "number_gpus": 2, "distributed_backend": "FSDP2", "packing": True},
            "context_parallel_size excludes packing and padding_free: its attention supports one document per sample only.",
        ),
        (
            {
                "context_parallel_size": 2,
                "number_gpus": 2,
                "distributed_backend": "FSDP2",
                "attn_implementation": "eager",
            },
            "context_parallel_size 2 needs attn_implementation sdpa.",
        ),
        ({"fp8_recipe": "rowwise"}, "fp8_recipe rowwise needs a GPU of compute capability 9.0 or higher."),
        (
            {"fp8_recipe": "tensorwise", "number_gpus": 1},
            "fp8_recipe tensorwise needs torch_dtype bfloat16 or mixed_precision bf16.",
        ),
        (
            {
                "fp8_recipe": "tensorwise",
                "number_gpus": 1,
                "torch_dtype": "bfloat16",
                "distributed_backend": "FSDP",
            },
            "fp8_recipe tensorwise needs distributed_backend DDP or FSDP2, without tensor_parallel_size.",
        ),
        (
            {"deepspeed_stage": 3},
            "deepspeed_stage 3 needs distributed_backend DeepSpeed.",
        ),
        (
            {"deepspeed_offload": "optimizer", "number_gpus": 1},
            "deepspeed_offload optimizer needs distributed_backend DeepSpeed.",
        ),
        (
            {"distributed_backend": "DeepSpeed", "deepspeed_offload": "optimizer"},
            "deepspeed_offload optimizer needs a GPU: on CPU everything is in host memory already.",
        ),
        (
            {
                "distributed_backend": "DeepSpeed",
                "deepspeed_offload": "optimizer_and_parameters",
                "number_gpus": 1,
                "batch_size": 2,
            },
            "deepspeed_offload optimizer_and_parameters needs deepspeed_stage 3, not 2.",
        ),
        (
            {"distributed_backend": "DeepSpeed", "deepspeed_offload": "optimizer", "number_gpus": 1, "optim": "sgd"},
            (
                "deepspeed_offload needs optim adamw_torch or adamw_torch_fused or adagrad, which DeepSpeed has for CPUs, "
                "not sgd."
            ),
        ),
        (
            {"distributed_backend": "DeepSpeed", "torch_dtype": "bfloat16"},
            "distributed_backend DeepSpeed needs mixed_precision bf16 or fp16 with torch_dtype bfloat16.",
        ),
        (
            {"distributed_backend": "DeepSpeed", "deepspeed_stage": 3, "method": "qlora"},
            "method qlora is not supported with deepspeed_stage 3, which divides its packed weights; use 1 or 2.",
        ),
        (
            {"distributed_backend": "DeepSpeed", "optim": "galore_adamw"},
            "optim galore_adamw is not supported with DeepSpeed, which gives optimizers flat parts of the parameters.",
        ),
        (
            {"padding_free": True},
            "padding_free needs attn_implementation flash_attention_2, another flash attention or flex_attention.",
        ),
        (
            {"attn_implementation": "kernels-community/flash-attn2"},
            "attn_implementation kernels-community/flash-attn2 needs a GPU; use sdpa or eager.",
        ),
        (
            {"attn_implementation": "flash_attention_3", "number_gpus": 1},
            "attn_implementation flash_attention_3 needs torch_dtype bfloat16 or float16, or mixed_precision.",
        ),
        (
            {"attn_implementation": "flash"},
            (
                "attn_implementation 'flash' is impossible: expected auto, eager, sdpa, flash_attention_2, flash_attention_3, "
                "flash_attention_4, flex_attention, or a kernel such as kernels-community/flash-attn2."
            ),
        ),
        ({"enable_roce": True}, "enable_roce needs number_nodes of at least 2."),
        (
            {"method": "qlora", "init_lora_weights": "pissa"},
            "init_lora_weights pissa decomposes the weights, which method qlora quantises; use gaussian.",
        ),
        (
            {"method": "lora", "init_lora_weights": "orthogonal", "r": 7},
            "init_lora_weights orthogonal needs an even r, not 7.",
        ),
        (
            {"method": "qlora", "quantisation": "int8", "double_quantisation": False},
            "double_quantisation false needs quantisation nf4 or fp4: int8 has no scales that could be quantised.",
        ),
        (
            {"method": "qlora", "quantisation": "int8", "use_dora": True},
            "use_dora with quantisation int8 needs a GPU: PEFT loses the scales of 8-bit weights on CPUs; use nf4.",
        ),
        (
            {"method": "lora", "target_parameters": "a.b", "lora_dropout": 0.1},
            "target_parameters needs lora_dropout 0, not 0.1: PEFT applies no dropout to parameters.",
        ),
        (
            {"method": "lora", "target_parameters": "a.b", "use_dora": True},
            "use_dora excludes target_parameters: PEFT has DoRA for modules only.",
        ),
        ({"torch_compile_backend": "aot_eager"}, "torch_compile_backend aot_eager needs torch_compile."),
        (
            {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_mode": "max-autotune"},
            "torch_compile_mode max-autotune needs torch_compile with torch_compile_backend inductor.",
        ),
        (
            {"torch_compile": True, "torch_compile_backend": "cudagraphs"},
            "torch_compile_backend cudagraphs needs a GPU; use inductor.",
        ),
        (
            {"activation_offloading": True},
            "activation_offloading needs a GPU: on CPU activations are in host memory already.",
        ),
        (
            {"dataset_id": "synthetic-image"},
            "dataset_id synthetic-image needs dataset_image_field, such as dataset_image_field image.",
        ),
        (
            {"dataset_image_field": "image"},
            "dataset_id synthetic-fixed has no images; use synthetic-image, or leave dataset_image_field out.",
        ),
        (
            {"dataset_image_field": "image", "packing": True},
            "packing excludes dataset_image_field: the training libraries do not support it with images.",
        ),
        (
            {"dataset_image_field": "image", "method": "prompt_tuning"},
            "method prompt_tuning is not supported with images; use full or lora, or leave dataset_image_field out.",
        ),
        ({"batch_size": True}, "batch_size True is impossible: expected a number, not a boolean."),
        ({"max_steps": "abc"}, "max_steps 'abc' is impossible: expected a whole number from 1 to 1000000."),
        ({"packing": "abc"}, "packing 'abc' is impossible: expected true or false."),
        ({"weights": 3}, "weights 3 is impossible: expected random or pretrained."),
        ({"lora_dropout": 1}, "lora_dropout 1 is impossible: expected a number at least 0 and below 1."),
        (
            {"optim": "adamw"},
            "optim 'adamw' is impossible: expected one of 42 values, such as adamw_8bit, adamw_torch, adamw_bnb_8bit.",
        ),
        (
            {"fms_hf_tuning_version": "x"},
            "fms_hf_tuning_version 'x' is impossible: expected text of at most 32 characters in the form of 3.2.2.",
        ),
        ({"batchsize": 1}, "batchsize is not a property of a workload. Use batch_size."),
        ({"learning_rate": 1}, "learning_rate is not a property of a workload."),
        (
            {"stop_after_seconds": float("nan")},
            "stop_after_seconds nan is impossible: expected a number from 0 to 604800.",
        ),
    ],
)
def test_impossible_values_and_combinations_are_refused(change: dict[str, object], message: str) -> None:
    """Each broken rule gives its own message, which names the value."""
    with pytest.raises(InvalidConfiguration) as caught:
        parse({**SMALL, **change})
    assert message == str(caught.value)


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ({}, []),
        ({"packing_strategy": "wrapped"}, ["packing_strategy wrapped has no effect without packing."]),
        ({"packing_strategy": "wrapped", "packing": True}, []),
        (
            {"lora_alpha": 4, "use_rslora": True},
            [f"{one} has no effect with method full." for one in ("lora_alpha 4", "use_rslora True")],
        ),
        (
            {"lora_alpha": 4, "method": "lora", "quantisation": "fp4"},
            ["quantisation fp4 has no effect with method lora."],
        ),
        ({"dataset_text_field": "body"}, ["dataset_text_field body has no effect on synthetic data."]),
        (
            {"fsdp_sharding_strategy": "NO_SHARD", "fsdp_use_orig_params": False},
            [
                "fsdp_sharding_strategy NO_SHARD has no effect without FSDP on several devices.",
                "fsdp_use_orig_params False has no effect without FSDP on several devices.",
            ],
        ),
        ({"number_gpus": 2, "distributed_backend": "FSDP", "fsdp_sharding_strategy": "NO_SHARD"}, []),
        (
            {"number_gpus": 2, "distributed_backend": "FSDP2", "fsdp_use_orig_params": False},
            ["fsdp_use_orig_params False has no effect in FSDP2."],
        ),
        ({"number_gpus": 1, "distributed_backend": "FSDP"}, ["distributed_backend FSDP has no effect on one device."]),
    ],
)
def test_values_without_effect_are_noted(change: dict[str, object], notes: list[str]) -> None:
    """They are accepted, because a study may fix a value that only some of its workloads use."""
    assert without_effect(parse({**SMALL, "batch_size": 2, **change})) == notes


def test_padding_free_excludes_images() -> None:
    """padding_free is rejected with images, also with a GPU and flash attention."""
    flash = {"attn_implementation": "flash_attention_2", "torch_dtype": "bfloat16"}
    change = {"padding_free": True, "number_gpus": 1, **flash}
    with pytest.raises(InvalidConfiguration, match="padding_free excludes dataset_image_field"):
        parse({**SMALL, **change, "dataset_image_field": "image", "dataset_id": "synthetic-image"})


def test_a_missing_property_is_named() -> None:
    """model_name is required."""
    with pytest.raises(InvalidConfiguration) as caught:
        parse({key: value for key, value in SMALL.items() if key != "model_name"})
    assert str(caught.value) == "model_name is missing; expected text of 1 to 4096 characters. Add it."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["q_proj", "v_proj"], "q_proj,v_proj"),
        (["all-linear"], "all-linear"),
        ("ALL-LINEAR", "all-linear"),
        (" all-linear ", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_target_modules_as_people_write_them(given: object, expected: str) -> None:
    """A list of names, and all-linear as PEFT takes it."""
    assert parse({**SMALL, "method": "lora", "target_modules": given}).target_modules == expected


def test_flex_attention_runs_in_fresh_trainers() -> None:
    """flex_attention is compiled: it also trains in float32, and a trainer measures nothing else afterwards."""
    values = {**SMALL, "number_gpus": 1}
    assert not parse(values).patches_libraries
    assert parse({**values, "attn_implementation": "flex_attention"}).patches_libraries
