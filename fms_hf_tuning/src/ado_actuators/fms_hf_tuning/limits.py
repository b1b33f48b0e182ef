"""What fms-hf-tuning cannot do in a training environment, said before anything starts.

Trainer room, but imports the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

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
DISTRIBUTIONS = {"flash_attn": "flash-attn"}


def installed(module: str) -> bool:
    """Return whether a module can be imported here, without importing it."""
    return importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose limits differ between versions; absent ones are left out."""
    found = {}
    for name in ("fms-hf-tuning", "trl"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def before_start(workload: dict[str, Any], pinned: str) -> str | None:
    """Return the sentence that says why ``workload`` is impossible in a managed environment that need not exist yet, or None.

    Args:
        workload: fields of the workload.
        pinned: text of the environment's list; packages it lacks may be compiled into the environment later.
    """
    release = dict(re.findall(r"^(fms-hf-tuning|trl)==([^\s;\\]+)", pinned, re.MULTILINE))
    return refusal(workload, cuda=workload["number_gpus"] > 0, has=lambda module: True, release=release)


def refusal(
    workload: dict[str, Any],
    *,
    cuda: bool,
    has: Callable[[str], bool] = installed,
    release: dict[str, str] | None = None,
) -> str | None:
    """Return the sentence that says why ``workload`` is impossible here, or None.

    Args:
        workload: fields of the job's workload.
        cuda: whether this process has a CUDA device.
        has: whether a module is installed.
        release: versions of ``fms-hf-tuning`` and ``trl``; default: the installed ones.
    """
    release = versions() if release is None else release
    return next(_sentences(workload, cuda, has, release), None)


def _sentences(
    workload: dict[str, Any], cuda: bool, has: Callable[[str], bool], release: dict[str, str]
) -> Iterator[str]:
    if workload["method"] == "prompt_tuning":
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
        missing = [DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in NEEDS[asked] if not has(module)]
        if missing:
            yield f"{asked} needs the package {' and '.join(missing)} in the training environment."
    if workload.get("multipack") and not workload["padding_free"]:
        yield "multipack needs padding_free: fms-hf-tuning packs batches only without padding."
    if workload["padding_free"] and workload["packing"]:
        yield "padding_free and packing exclude each other in fms-hf-tuning."
    if workload["method"] == "gptq_lora" and workload["weights"] != "pretrained":
        yield "method gptq_lora needs weights pretrained and a model that was quantised with GPTQ."
    if workload.get("dataset_image_field"):
        if not has("PIL"):
            yield "dataset_image_field needs the package pillow in the training environment."
        if _numbers(release.get("fms-hf-tuning", "")) < (3, 2):
            yield (
                f"dataset_image_field is measured from fms-hf-tuning 3.2 on, not with {release.get('fms-hf-tuning')}; "
                "use fms_hf_tuning_version 3.2.2."
            )


def _asked(workload: dict[str, Any]) -> Iterator[str]:
    for name in ("fast_moe", "fast_kernels", "padding_free", "multipack"):
        if workload.get(name):
            yield name
    for name in ("method", "attn_implementation"):
        if f"{name} {workload[name]}" in NEEDS:
            yield f"{name} {workload[name]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
