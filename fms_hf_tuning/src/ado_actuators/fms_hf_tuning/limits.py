"""Workloads that fms-hf-tuning does not support, so that they are rejected before training starts.

Imports the standard library only: both the actuator and the trainer use it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from .core.protocol import optimizers, supported
from .core.protocol.messages import JobWorkload
from .core.protocol.releases import release_of

# packages that each acceleration imports
NEEDS = {
    "fast_moe": ("fms_acceleration_moe", "triton"),
    "fast_kernels": ("fms_acceleration_foak", "triton"),
    "padding_free": ("fms_acceleration_aadp", "flash_attn"),
    "multipack": ("fms_acceleration_aadp", "numba"),
    "method qlora": ("fms_acceleration_peft", "bitsandbytes"),
    "method gptq_lora": ("fms_acceleration_peft", "triton"),
    "attn_implementation flash_attention_2": ("flash_attn",),
    "attn_implementation flash_attention_3": ("flash_attn_interface",),
    "attn_implementation flex_attention": (),
}
# memory estimates run no kernels of other packages
NEEDED_BY_TRACES = ("fms_acceleration_peft", "bitsandbytes")
# runs without CUDA, too; the other accelerations do not
ON_CPU = "method qlora"
DISTRIBUTIONS = {"PIL": "pillow"}
DISTRIBUTIONS |= {module: distribution for distribution, module in supported.FLASH_PACKAGES.values()}
DISTRIBUTIONS |= {package.module: package.distribution for package in optimizers.PACKAGES.values()}
# model types for which an acceleration has kernels: restricted_model_archs of fms-acceleration-moe 0.4.6 and -foak 0.7.4
EXPERTS = ("granitemoe", "granitemoehybrid", "granitemoeshared", "mixtral")
KNOWN = {"fast_moe": EXPERTS, "fast_kernels": (*EXPERTS, "gpt_bigcode", "granite", "llama", "mistral")}

# libraries whose limits depend on their version
RELEASED = ("fms-hf-tuning", "trl")


def installed(module: str) -> bool:
    """Return whether a module can be imported here, without importing it."""
    return importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries whose limits depend on their version; a missing library is omitted."""
    found = {}
    for name in RELEASED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def before_start(workload: JobWorkload, pinned: str, architecture: dict[str, Any] | None = None) -> str | None:
    """Return an error message if ``workload`` is impossible in a managed environment, which need not exist yet, else None.

    Args:
        workload: the workload.
        pinned: text of the environment's list of packages.
        architecture: the model's configuration; None if it is not known.
    """
    listed = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", pinned, re.MULTILINE))
    return refusal(
        workload,
        cuda=workload.number_gpus > 0,
        has=lambda module: _distribution(module) in listed,
        release={name: listed[name] for name in RELEASED if name in listed},
        architecture=architecture,
    )


def refusal(
    workload: JobWorkload,
    *,
    cuda: bool,
    has: Callable[[str], bool] = installed,
    release: dict[str, str] | None = None,
    architecture: dict[str, Any] | None = None,
) -> str | None:
    """Return an error message if ``workload`` is impossible in this environment, else None.

    Args:
        workload: the workload.
        cuda: whether there is a CUDA device.
        has: returns whether a module is installed.
        release: versions of ``fms-hf-tuning`` and ``trl``; None: the installed ones.
        architecture: the model's configuration; None if it is not known.
    """
    release = versions() if release is None else release
    messages = itertools.chain(
        _unknown_to_kernels(workload, architecture or {}), _messages(workload, cuda, has, release)
    )
    return next(messages, None)


def refusal_of_trace(workload: JobWorkload, architecture: dict[str, Any] | None) -> str | None:
    """Return an error message if the library cannot train ``workload`` on any device, else None.

    A trace runs no kernels, so it needs neither a CUDA device nor their packages.

    Args:
        workload: the workload of one process, with random weights and without float16 beside mixed precision.
        architecture: the model's configuration; None if it is not known.
    """
    as_trained: dict[str, Any] = {}
    if workload.method == "gptq_lora":
        as_trained = {"method": "qlora", "quantisation": "nf4", "mixed_precision": "bf16"}
    return refusal(
        dataclasses.replace(workload, **as_trained),
        cuda=True,
        has=lambda module: module not in NEEDED_BY_TRACES or installed(module),
        architecture=architecture,
    )


def without_images(workload: JobWorkload, architecture: dict[str, Any]) -> str | None:
    """Return an error message if a model that takes images would be trained on text, which the library cannot; else None."""
    if architecture.get("vision_config") is None or workload.dataset_image_field:
        return None
    name = workload.model_name[-60:]
    return f"Model {name} takes images, and fms-hf-tuning trains it with dataset_image_field only; use the sfttrainer actuator."


def _unknown_to_kernels(workload: JobWorkload, architecture: dict[str, Any]) -> Iterator[str]:
    if message := without_images(workload, architecture):
        yield message
    kind = architecture.get("model_type")
    for asked, types in KNOWN.items():
        if kind and getattr(workload, asked) and kind not in types:
            yield f"{asked} has no kernels for models of type {kind}, only for {', '.join(sorted(types))}."
    degree, experts = workload.fast_moe, architecture.get("num_local_experts")
    if degree and experts is not None and (experts == 0 or experts % degree):
        yield f"fast_moe {degree} does not divide the {experts} experts of the model."


def _messages(workload: JobWorkload, cuda: bool, has: Callable[[str], bool], release: dict[str, str]) -> Iterator[str]:
    package = optimizers.PACKAGES.get(workload.optim)
    if package is not None and not has(package.module):
        yield supported.lacks_package(f"optim {workload.optim}", package.distribution)
    if workload.distributed_backend == "DeepSpeed" and not has("deepspeed"):
        yield supported.lacks_package("distributed_backend DeepSpeed", "deepspeed")
    if workload.distributed_backend == "DeepSpeed" and workload.method in ("lora", "qlora", "gptq_lora"):
        # it passes a group of no parameters, which DeepSpeed removes, and then sets the learning rate of each group
        yield "LoRA with DeepSpeed fails in the transformers that fms-hf-tuning pins; use the sfttrainer actuator."
    if workload.method == "prompt_tuning":
        trl = release.get("trl", "")
        # before 0.20 TRL compares the logits of virtual tokens with labels, and fails
        if release_of(trl) < (0, 20):
            yield (
                f"Prompt tuning fails in fms-hf-tuning {release.get('fms-hf-tuning', '')}, because trl {trl} compares the logits "
                "of virtual tokens with labels; use the sfttrainer actuator."
            )
    for asked in _asked(workload):
        if not cuda and asked != ON_CPU:
            yield f"{asked} needs a CUDA device, but this trainer has none."
        missing = [_distribution(module) for module in NEEDS.get(asked, ("kernels",)) if not has(module)]
        if missing:
            yield supported.lacks_package(asked, " and ".join(missing))
    if workload.method == "lora" and workload.distributed_backend == "FSDP2" and workload.number_gpus > 1:
        # the library's wrapping policy for adapters works with version 1 only; with version 2 no layer would be sharded separately
        yield "LoRA with FSDP2 is not supported, because fms-hf-tuning wraps adapters only with FSDP version 1; use FSDP."
    if workload.attn_implementation == "flash_attention_4":
        yield "attn_implementation flash_attention_4 is not known to the transformers that fms-hf-tuning pins; use the sfttrainer actuator."
    if workload.padding_free and workload.attn_implementation == supported.FLEX_ATTENTION:
        yield "padding_free needs a flash attention in fms-hf-tuning, such as attn_implementation flash_attention_2."
    if workload.multipack and not workload.padding_free:
        yield "multipack needs padding_free, because fms-hf-tuning packs batches only without padding."
    if workload.padding_free and workload.packing:
        yield "fms-hf-tuning does not support padding_free together with packing; use one of them."
    if workload.method == "gptq_lora" and workload.weights != "pretrained":
        yield "method gptq_lora needs weights pretrained, and a model quantised with GPTQ."
    if workload.method == "gptq_lora" and workload.torch_dtype != "float16" and workload.mixed_precision != "fp16":
        yield "method gptq_lora needs torch_dtype float16 or mixed_precision fp16: fms-hf-tuning has no other kernels for GPTQ."
    if workload.method == "qlora" and workload.quantisation == "int8":
        yield "quantisation int8 does not exist in fms-hf-tuning, which has nf4 and fp4; use the sfttrainer actuator."
    if workload.method == "qlora" and workload.mixed_precision == "no":
        yield "method qlora needs mixed_precision bf16 or fp16 in fms-hf-tuning; with no use the sfttrainer actuator."
    if workload.dataset_image_field:
        if not has("PIL"):
            yield supported.lacks_package("dataset_image_field", "pillow")
        if release_of(release.get("fms-hf-tuning", "")) < (3, 2):
            yield (
                f"dataset_image_field needs fms-hf-tuning 3.2 or newer, not {release.get('fms-hf-tuning')}; "
                "use fms_hf_tuning_version 3.2.2."
            )


def _distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def _asked(workload: JobWorkload) -> Iterator[str]:
    for name in ("fast_moe", "fast_kernels", "padding_free", "multipack"):
        if getattr(workload, name):
            yield name
    for name in ("method", "attn_implementation"):
        value = getattr(workload, name)
        if (asked := f"{name} {value}") in NEEDS or supported.is_hub_kernel(value):
            yield asked
