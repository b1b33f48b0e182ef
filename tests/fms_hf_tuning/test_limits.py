"""Workloads that fms-hf-tuning does not support are rejected with one message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.fms_hf_tuning.core import failures
from ado_actuators.fms_hf_tuning.core.measurement.plan import Plan, make_plan
from ado_actuators.fms_hf_tuning.core.protocol.messages import JobWorkload
from ado_actuators.fms_hf_tuning.core.workload.fields import Workload
from ado_actuators.fms_hf_tuning.limits import refusal

pytestmark = pytest.mark.ray

PLAIN = JobWorkload(**Workload(model_name="m", model_max_length=16, batch_size=1, number_gpus=0).model_dump())
RELEASE = {"fms-hf-tuning": "3.2.2", "trl": "0.19.1"}


def say(
    change: dict[str, Any],
    *,
    cuda: bool = True,
    lacks: str = "",
    release: dict[str, str] | None = None,
    architecture: dict[str, Any] | None = None,
) -> str | None:
    """Return the message for a plain workload with changes, where one package is missing."""
    return refusal(
        dataclasses.replace(PLAIN, **change),
        cuda=cuda,
        has=lambda module: module != lacks,
        release=release or RELEASE,
        architecture=architecture,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_methods_run_anywhere(method: str) -> None:
    """Full fine-tuning and LoRA need no accelerator and no plugin."""
    assert say({"method": method}, cuda=False, lacks="triton") is None


def test_qlora_runs_on_cpus() -> None:
    """Its plugin needs no CUDA device."""
    assert say({"method": "qlora", "mixed_precision": "bf16"}, cuda=False) is None


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"fast_moe": 1}, "fast_moe"),
        ({"fast_kernels": True}, "fast_kernels"),
        ({"padding_free": True}, "padding_free"),
        ({"padding_free": True, "multipack": True}, "padding_free"),
        ({"method": "gptq_lora", "weights": "pretrained", "torch_dtype": "float16"}, "method gptq_lora"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation flash_attention_2"),
        ({"attn_implementation": "kernels-community/x"}, "attn_implementation kernels-community/x"),
        ({"attn_implementation": "flex_attention"}, "attn_implementation flex_attention"),
    ],
)
def test_accelerations_need_cuda(change: dict[str, Any], begins: str) -> None:
    """Each acceleration is rejected without a CUDA device, and accepted with one."""
    assert say(change, cuda=False) == f"{begins} needs a CUDA device, but this trainer has none."
    assert say(change, cuda=True) is None


@pytest.mark.parametrize(
    ("change", "architecture", "message"),
    [
        (
            {"fast_kernels": True},
            {"model_type": "qwen3"},
            (
                "fast_kernels has no kernels for models of type qwen3, only for gpt_bigcode, granite, "
                "granitemoe, granitemoehybrid, granitemoeshared, llama, mistral, mixtral."
            ),
        ),
        (
            {"fast_moe": 1},
            {"model_type": "llama"},
            (
                "fast_moe has no kernels for models of type llama, only for granitemoe, granitemoehybrid, "
                "granitemoeshared, mixtral."
            ),
        ),
        (
            {"fast_moe": 3},
            {"model_type": "mixtral", "num_local_experts": 8},
            "fast_moe 3 does not divide the 8 experts of the model.",
        ),
        (
            {"fast_moe": 1},
            {"model_type": "granitemoehybrid", "num_local_experts": 0},
            "fast_moe 1 does not divide the 0 experts of the model.",
        ),
        ({"fast_moe": 4}, {"model_type": "mixtral", "num_local_experts": 8}, None),
        ({"fast_kernels": True}, {"model_type": "granite"}, None),
        ({}, {"model_type": "qwen3"}, None),
    ],
)
def test_accelerations_support_some_model_types_only(
    change: dict[str, Any], architecture: dict[str, Any], message: str | None
) -> None:
    """A model type without kernels is rejected; the message lists the types with kernels."""
    said = refusal(
        dataclasses.replace(PLAIN, **change),
        cuda=True,
        has=lambda module: True,
        release=RELEASE,
        architecture=architecture,
    )
    assert said == message
    assert len(said or "") <= 200


def planned(**change: Any) -> Plan:
    """Return the plan of a workload on a GPU."""
    values = {
        "model_name": "tiny-llama-5m",
        "model_max_length": 8,
        "batch_size": 4,
        "number_gpus": 1,
        "torch_dtype": "bfloat16",
    }
    return make_plan("fms_hf_tuning", "finetune_full_benchmark", {**values, **change})


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        (
            {"padding_free": True, "attn_implementation": "flash_attention_2"},
            "padding_free needs the package flash-attn",
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            "attn_implementation flash_attention_2 needs the package flash-",
        ),
        ({"fast_kernels": True, "model_name": "qwen3-0.6b"}, "fast_kernels has no kernels for models of type qwen3"),
        ({"fast_moe": 1}, "fast_moe has no kernels for models of type llama"),
        ({"fast_kernels": True, "number_gpus": 0}, "fast_kernels needs a CUDA device"),
    ],
)
def test_a_managed_environment_is_checked_before_it_is_built(change: dict[str, Any], begins: str) -> None:
    """Its list of packages and the model's configuration are sufficient."""
    plan = planned(**change)
    with pytest.raises(failures.InvalidConfiguration) as refused:
        FMSHFTuning.plugin().check(plan.workload, plan.source.architecture, environment="managed")
    assert str(refused.value).startswith(begins)


def test_a_supported_workload_passes_the_check() -> None:
    """A model with kernels passes; another environment than managed is checked by its trainer only."""
    check = FMSHFTuning.plugin().check
    for change, environment in (({"fast_kernels": True}, "managed"), ({"fast_moe": 1}, "/some/python")):
        plan = planned(**change)
        assert check(plan.workload, plan.source.architecture, environment=environment) is None


@pytest.mark.parametrize(
    ("change", "lacks", "message"),
    [
        ({"fast_moe": 2}, "triton", "fast_moe needs the package triton in the training environment."),
        (
            {"fast_kernels": True},
            "fms_acceleration_foak",
            "fast_kernels needs the package fms-acceleration-foak in the training environment.",
        ),
        (
            {"padding_free": True},
            "flash_attn",
            "padding_free needs the package flash-attn in the training environment.",
        ),
        (
            {"method": "qlora"},
            "bitsandbytes",
            "method qlora needs the package bitsandbytes in the training environment.",
        ),
        (
            {"dataset_image_field": "image"},
            "PIL",
            "dataset_image_field needs the package pillow in the training environment.",
        ),
    ],
)
def test_a_missing_package_is_named(change: dict[str, Any], lacks: str, message: str) -> None:
    """The message names the missing package."""
    assert say(change, lacks=lacks) == message


def test_prompt_tuning_fails_with_the_pins() -> None:
    """Prompt tuning is rejected with the trl that the library pins, and only with that."""
    message = say({"method": "prompt_tuning"})
    assert message is not None
    assert "trl 0.19.1" in message
    assert len(message) <= 200
    assert say({"method": "prompt_tuning"}, release={**RELEASE, "trl": "0.22.0"}) is None


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"multipack": True}, "multipack needs padding_free"),
        ({"attn_implementation": "flash_attention_4"}, "attn_implementation flash_attention_4 is not known"),
        ({"padding_free": True, "attn_implementation": "flex_attention"}, "padding_free needs a flash attention"),
        ({"padding_free": True, "packing": True}, "fms-hf-tuning does not support padding_free together with packing"),
        ({"method": "gptq_lora"}, "method gptq_lora needs weights pretrained"),
        ({"method": "gptq_lora", "weights": "pretrained"}, "method gptq_lora needs torch_dtype float16"),
        ({"method": "qlora", "quantisation": "int8"}, "quantisation int8 does not exist in fms-hf-tuning"),
        ({"method": "qlora"}, "method qlora needs mixed_precision bf16 or fp16"),
    ],
)
def test_combinations_the_library_rejects(change: dict[str, Any], begins: str) -> None:
    """Combinations that the library rejects are rejected on any hardware."""
    assert (say(change) or "").startswith(begins)


def test_a_vision_model_needs_images() -> None:
    """The library loads it as a vision model, whose data need a column of images."""
    vision = {"model_type": "llava_next", "vision_config": {}}
    assert say({"dataset_image_field": "image"}, architecture=vision) is None
    assert say({}, architecture=vision) == (
        "Model m takes images, and fms-hf-tuning trains it with dataset_image_field only; use the sfttrainer actuator."
    )


def test_images_need_a_newer_release() -> None:
    """Handlers of images differ between releases, and only those of 3.2 are tested."""
    images = {"dataset_image_field": "image"}
    assert say(images, cuda=False) is None
    assert say(images, release={**RELEASE, "fms-hf-tuning": "3.1.0"}) == (
        "dataset_image_field needs fms-hf-tuning 3.2 or newer, not 3.1.0; use fms_hf_tuning_version 3.2.2."
    )


def test_lora_with_fsdp2_is_rejected() -> None:
    """The library's wrapping policy for adapters would shard no layer separately, although the wrapper would be FSDP2."""
    change = {"method": "lora", "number_gpus": 2, "distributed_backend": "FSDP2"}
    assert str(say(change, cuda=True)).startswith("LoRA with FSDP2 is not supported")
    assert say({**change, "distributed_backend": "FSDP"}, cuda=True) is None


def test_deepspeed_needs_its_package_and_no_adapters() -> None:
    """The managed environments lack the package; the pinned transformers breaks with adapters."""
    change = {"distributed_backend": "DeepSpeed"}
    assert say(change, lacks="deepspeed") == (
        "distributed_backend DeepSpeed needs the package deepspeed in the training environment."
    )
    assert say(change) is None
    assert str(say({**change, "method": "lora"})).startswith("LoRA with DeepSpeed fails in the transformers")


def test_quantised_weights_are_not_sharded() -> None:
    """The combination is rejected before any GPU is requested."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 2, "number_gpus": 2}
    message = "method gptq_lora is not supported with FSDP2: use distributed_backend DDP."
    with pytest.raises(failures.InvalidConfiguration, match=message):
        make_plan("fms_hf_tuning", "finetune_gptq_lora_benchmark", {**values, "distributed_backend": "FSDP2"})


def test_gptq_runs_with_its_defaults() -> None:
    """The library accepts float16 only, so that is the default of the experiment; another type is rejected with a message."""
    values = {
        "model_name": "org/gptq",
        "model_max_length": 8,
        "batch_size": 1,
        "number_gpus": 1,
        "weights": "pretrained",
    }
    plan = make_plan("fms_hf_tuning", "finetune_gptq_lora_benchmark", values)
    assert plan.workload.torch_dtype == "float16"
    assert say(dataclasses.asdict(JobWorkload(**plan.workload.model_dump()))) is None
    other = make_plan("fms_hf_tuning", "finetune_gptq_lora_benchmark", {**values, "torch_dtype": "bfloat16"})
    assert str(say({**other.workload.model_dump()})).startswith("method gptq_lora needs torch_dtype float16")
    experiment = next(
        one for one in FMSHFTuning.catalog().experiments if one.identifier == "finetune_gptq_lora_benchmark"
    )
    defaults = {one.property.identifier: one.value for one in experiment.defaultParameterization}
    assert defaults["torch_dtype"] == "float16"
