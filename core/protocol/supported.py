"""Which combinations of workload and model are supported. Imports the standard library only.

The host asks before it starts a trainer, and the trainer asks again when it knows the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_SHOWN = 60
# a trace on the CPU does not show what these kernels and formats allocate on a GPU
UNTRACEABLE = ("use_liger_kernel", "torch_compile", "padding_free", "fast_kernels", "fast_moe", "multipack")


class Workload(Protocol):
    """The fields of a workload that are asked for here, whichever of its two types it has."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def model_name(self) -> str: ...  # noqa: D102
    @property
    def dataset_image_field(self) -> str: ...  # noqa: D102


def image_mismatch(workload: Workload, architecture: Mapping[str, Any]) -> str | None:
    """Return why the model cannot be trained on the workload's data, or None if both or neither have images.

    Args:
        workload: what to train.
        architecture: the model's Hugging Face configuration as a dict.
    """
    name = workload.model_name[-_SHOWN:]
    takes_images = "vision_config" in architecture
    if takes_images and not workload.dataset_image_field:
        return f"model {name} takes images: only benchmarks of the fms_hf_tuning actuator with dataset_image_field measure it."
    if workload.dataset_image_field and not takes_images:
        return f"model {name} takes no images: leave dataset_image_field out, or use a vision model."
    return None


def untraceable(workload: Workload) -> str | None:
    """Return why a memory estimate cannot trace the workload, or None if it can.

    Args:
        workload: what to train; it has the fields of ``UNTRACEABLE`` too.
    """
    if workload.method in ("qlora", "gptq_lora"):
        return (
            f"finetune_memory_estimate cannot trace method {workload.method}: kernels of quantised weights need data."
        )
    found = next((name for name in UNTRACEABLE if getattr(workload, name)), None)
    return f"finetune_memory_estimate cannot trace {found}: what its kernels allocate is not known." if found else None
