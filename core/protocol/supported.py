"""Which combinations of workload and model are supported. Imports the standard library only.

The host checks this before it starts a trainer if it knows the model's configuration, and the trainer checks it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_SHOWN = 60
# a trace on the CPU does not show what the kernels of these properties allocate on a GPU
UNTRACEABLE = ("use_liger_kernel", "torch_compile", "padding_free", "fast_kernels", "fast_moe", "multipack")


class Workload(Protocol):
    """The fields of a workload that this module reads; both ``JobWorkload`` and ``core.workload.fields.Workload`` have them."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def model_name(self) -> str: ...  # noqa: D102
    @property
    def dataset_image_field(self) -> str: ...  # noqa: D102


def image_mismatch(workload: Workload, architecture: Mapping[str, Any]) -> str | None:
    """Return an error message if only one of model and data has images, else None.

    Args:
        workload: what to train.
        architecture: the model's Hugging Face configuration as a dict.
    """
    name = workload.model_name[-_SHOWN:]
    takes_images = "vision_config" in architecture
    if takes_images and not workload.dataset_image_field:
        return f"Model {name} takes images; use a benchmark of the fms_hf_tuning actuator with dataset_image_field."
    if workload.dataset_image_field and not takes_images:
        return f"Model {name} takes no images; leave dataset_image_field out, or use a vision model."
    return None


def untraceable(workload: Workload) -> str | None:
    """Return an error message if a memory estimate cannot trace the workload, else None.

    Args:
        workload: what to train; it also has the fields in ``UNTRACEABLE``.
    """
    if workload.method in ("qlora", "gptq_lora"):
        return f"finetune_memory_estimate cannot trace method {workload.method}: the kernels of quantised weights need data."
    found = next((name for name in UNTRACEABLE if getattr(workload, name)), None)
    return (
        f"finetune_memory_estimate cannot trace {found}: the memory that its kernels allocate is not known."
        if found
        else None
    )
