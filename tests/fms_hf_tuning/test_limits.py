"""What fms-hf-tuning cannot do is said in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.fms_hf_tuning.core import failures, measurement
from ado_actuators.fms_hf_tuning.limits import refusal

PLAIN = {
    "method": "full",
    "weights": "random",
    "packing": False,
    "padding_free": False,
    "attn_implementation": "auto",
    "multipack": False,
    "fast_moe": 0,
    "fast_kernels": False,
    "dataset_image_field": "",
}
RELEASE = {"fms-hf-tuning": "3.2.2", "trl": "0.19.1"}


def say(
    change: dict[str, Any], *, cuda: bool = True, lacks: str = "", release: dict[str, str] | None = None
) -> str | None:
    """Return the refusal of a plain workload with changes, where one package is missing."""
    return refusal({**PLAIN, **change}, cuda=cuda, has=lambda module: module != lacks, release=release or RELEASE)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_methods_run_anywhere(method: str) -> None:
    """Full fine-tuning and LoRA need no accelerator and no plugin."""
    assert say({"method": method}, cuda=False, lacks="triton") is None


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"fast_moe": 1}, "fast_moe"),
        ({"fast_kernels": True}, "fast_kernels"),
        ({"padding_free": True}, "padding_free"),
        ({"padding_free": True, "multipack": True}, "padding_free"),
        ({"method": "qlora"}, "method qlora"),
        ({"method": "gptq_lora", "weights": "pretrained"}, "method gptq_lora"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation flash_attention_2"),
    ],
)
def test_accelerations_need_cuda(change: dict[str, Any], begins: str) -> None:
    """Each acceleration says that it needs a CUDA device, and is allowed where there is one."""
    assert say(change, cuda=False) == f"{begins} needs a CUDA device, and this trainer has none."
    assert say(change, cuda=True) is None


@pytest.mark.parametrize(
    ("change", "lacks", "sentence"),
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
def test_a_missing_package_is_named(change: dict[str, Any], lacks: str, sentence: str) -> None:
    """Where a package is missing, the sentence names it."""
    assert say(change, lacks=lacks) == sentence


def test_prompt_tuning_fails_with_the_pins() -> None:
    """Prompt tuning is refused with the trl the library pins, and only with that."""
    sentence = say({"method": "prompt_tuning"})
    assert sentence is not None
    assert "trl 0.19.1" in sentence
    assert len(sentence) <= 200
    assert say({"method": "prompt_tuning"}, release={**RELEASE, "trl": "0.22.0"}) is None


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"multipack": True}, "multipack needs padding_free"),
        ({"padding_free": True, "packing": True}, "padding_free and packing exclude each other"),
        ({"method": "gptq_lora"}, "method gptq_lora needs weights pretrained"),
    ],
)
def test_combinations_the_library_rejects(change: dict[str, Any], begins: str) -> None:
    """Combinations the library would stop at are refused on any hardware."""
    assert (say(change) or "").startswith(begins)


def test_images_need_a_newer_release() -> None:
    """Handlers of images differ between releases, and only those of 3.2 are tried."""
    images = {"dataset_image_field": "image"}
    assert say(images, cuda=False) is None
    assert say(images, release={**RELEASE, "fms-hf-tuning": "3.1.0"}) == (
        "dataset_image_field is measured from fms-hf-tuning 3.2 on, not with 3.1.0; use fms_hf_tuning_version 3.2.2."
    )


def test_fsdp_is_refused_before_anything_starts() -> None:
    """The library is not driven under FSDP, so no GPU is asked for."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 2, "number_gpus": 2}
    with pytest.raises(failures.InvalidConfiguration, match="distributed_backend FSDP2 is not measured by"):
        measurement.plan("fms_hf_tuning", "finetune_full_benchmark", {**values, "distributed_backend": "FSDP2"})
