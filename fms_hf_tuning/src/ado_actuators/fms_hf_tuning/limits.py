"""What fms-hf-tuning cannot do in a training environment, said before anything starts.

Trainer room, but imports the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from .core.protocol.messages import JobWorkload

# what each acceleration imports besides CUDA
NEEDS = {
    "fast_moe": ("fms_acceleration_moe", "triton"),
    "fast_kernels": ("fms_acceleration_foak", "triton"),
    "padding_free": ("fms_acceleration_aadp", "flash_attn"),
    "multipack": ("fms_acceleration_aadp", "numba"),
    "method qlora": ("fms_acceleration_peft", "bitsandbytes"),
    "method gptq_lora": ("fms_acceleration_peft", "triton"),
    "attn_implementation flash_attention_2": ("flash_attn",),
}
DISTRIBUTIONS = {"flash_attn": "flash-attn", "PIL": "pillow"}
# types of models that an acceleration has kernels for: restricted_model_archs of fms-acceleration-moe 0.4.6 and -foak 0.7.4
EXPERTS = ("granitemoe", "granitemoehybrid", "granitemoeshared", "mixtral")
KNOWN = {"fast_moe": EXPERTS, "fast_kernels": (*EXPERTS, "gpt_bigcode", "granite", "llama", "mistral")}


# the libraries whose limits differ between versions
RELEASED = ("fms-hf-tuning", "trl")


def installed(module: str) -> bool:
    """Return whether a module can be imported here, without importing it."""
    return importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose limits differ between versions; absent ones are left out."""
    found = {}
    for name in RELEASED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def before_start(workload: JobWorkload, pinned: str, architecture: dict[str, Any] | None = None) -> str | None:
    """Return the message that says why ``workload`` is impossible in a managed environment that need not exist yet, or None.

    Args:
        workload: fields of the workload.
        pinned: text of the environment's list: what it has, and all it has.
        architecture: as in ``refusal``.
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
    """Return the message that says why ``workload`` is impossible here, or None.

    Args:
        workload: fields of the job's workload.
        cuda: whether this process has a CUDA device.
        has: whether a module is installed.
        release: versions of ``fms-hf-tuning`` and ``trl``; default: the installed ones.
        architecture: the model's configuration; None: not known yet.
    """
    release = versions() if release is None else release
    messages = itertools.chain(
        _unknown_to_kernels(workload, architecture or {}), _messages(workload, cuda, has, release)
    )
    return next(messages, None)


def _unknown_to_kernels(workload: JobWorkload, architecture: dict[str, Any]) -> Iterator[str]:
    kind = architecture.get("model_type")
    for asked, types in KNOWN.items():
        if kind and getattr(workload, asked) and kind not in types:
            yield f"{asked} has no kernels for models of type {kind}; it has them for {', '.join(sorted(types))}."
    degree, experts = workload.fast_moe, architecture.get("num_local_experts")
    if degree and experts is not None and (experts == 0 or experts % degree):
        yield f"fast_moe {degree} does not divide the {experts} experts of the model."


def _messages(workload: JobWorkload, cuda: bool, has: Callable[[str], bool], release: dict[str, str]) -> Iterator[str]:
    if workload.method == "prompt_tuning":
        trl = release.get("trl", "")
        # from 0.20 on TRL leaves the virtual tokens out of the logits it compares with labels
        if _numbers(trl) < (0, 20):
            yield (
                f"prompt tuning fails in fms-hf-tuning {release.get('fms-hf-tuning', '')}: the trl {trl} it pins compares "
                "logits of virtual tokens with labels; use the sfttrainer actuator."
            )
    for asked in _asked(workload):
        if not cuda:
            yield f"{asked} needs a CUDA device, and this trainer has none."
        missing = [_distribution(module) for module in NEEDS[asked] if not has(module)]
        if missing:
            yield f"{asked} needs the package {' and '.join(missing)} in the training environment."
    if workload.method == "lora" and workload.distributed_backend == "FSDP2" and workload.number_gpus > 1:
        # it hands accelerate a policy that only version 1 understands: no layer would be sharded by itself
        yield "LoRA is not measured under FSDP2: fms-hf-tuning wraps adapters in FSDP's first version only; use FSDP."
    if workload.multipack and not workload.padding_free:
        yield "multipack needs padding_free: fms-hf-tuning packs batches only without padding."
    if workload.padding_free and workload.packing:
        yield "padding_free and packing exclude each other in fms-hf-tuning."
    if workload.method == "gptq_lora" and workload.weights != "pretrained":
        yield "method gptq_lora needs weights pretrained and a model that was quantised with GPTQ."
    if workload.dataset_image_field:
        if not has("PIL"):
            yield "dataset_image_field needs the package pillow in the training environment."
        if _numbers(release.get("fms-hf-tuning", "")) < (3, 2):
            yield (
                f"dataset_image_field is measured from fms-hf-tuning 3.2 on, not with {release.get('fms-hf-tuning')}; "
                "use fms_hf_tuning_version 3.2.2."
            )


def _distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def _asked(workload: JobWorkload) -> Iterator[str]:
    for name in ("fast_moe", "fast_kernels", "padding_free", "multipack"):
        if getattr(workload, name):
            yield name
    for name in ("method", "attn_implementation"):
        if (asked := f"{name} {getattr(workload, name)}") in NEEDS:
            yield asked


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
