"""Which combinations of workload and model are supported. Imports the standard library only.

The host checks this before it starts a trainer if it knows the model's configuration, and the trainer checks it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from . import optimizers

_SHOWN = 60
# a trace on the CPU does not show what the kernels of these properties allocate on a GPU
UNTRACEABLE = ("fast_moe", "gradient_checkpointing_selective")
# their kernels save the same tensors as the model's operations, or fewer, and batches of multipack have at most the tokens of the longest
# samples, so an estimate without them is an upper bound
BOUNDED_FROM_ABOVE = ("torch_compile", "use_liger_kernel", "fast_kernels", "multipack")
# the model types whose FLOPs follow from their configuration, as in ``core.metrics.flops``; those of others are counted by the trainer
FLOPS_KNOWN = frozenset(
    {
        "deepseek_v3",
        "falcon_h1",
        "gemma3_text",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "granitemoeshared",
        "lfm2",
        "llama",
        "llama4_text",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron_h",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "smollm3",
    }
)
# names of attention implementations; a kernel of the hub is org/name, with a revision after @ and a function after a colon
PLAIN_ATTENTION = ("auto", "eager", "sdpa")
# the package of each, as pip and as Python name it
FLASH_PACKAGES = {
    "flash_attention_2": ("flash-attn", "flash_attn"),
    "flash_attention_3": ("flash-attn-3", "flash_attn_interface"),
    "flash_attention_4": ("flash-attn-4", "flash_attn.cute"),
}
FLASH_ATTENTION = tuple(FLASH_PACKAGES)
FLEX_ATTENTION = "flex_attention"
# modules and packages with the kernels of state spaces, short convolutions and linear attention; they need a GPU
RECURRENT_PACKAGES = {
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "fla": "flash-linear-attention",
}
# the least compute capability of each of torchao's recipes: that of torch's products with one scale, and with a scale for each row
FP8_CAPABILITY = {"tensorwise": 8.9, "rowwise": 9.0, "rowwise_with_gw_hp": 9.0}
_HUB_KERNEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?(:\w+)?")


class WorkloadFields(Protocol):
    """The fields of a workload that this module reads; both ``JobWorkload`` and ``core.workload.fields.Workload`` have them."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def model_name(self) -> str: ...  # noqa: D102
    @property
    def dataset_image_field(self) -> str: ...  # noqa: D102
    @property
    def quantisation(self) -> str: ...  # noqa: D102
    @property
    def fp8_recipe(self) -> str: ...  # noqa: D102
    @property
    def distributed_backend(self) -> str: ...  # noqa: D102
    @property
    def tensor_parallel_size(self) -> int: ...  # noqa: D102
    @property
    def context_parallel_size(self) -> int: ...  # noqa: D102


def lacks_package(asked: str, package: str, more: str = "") -> str:
    """Return the message about a package that is not installed where it is needed.

    Args:
        asked: the property that needs it, with its value.
        package: as pip names it.
        more: what else there is to say or to do.
    """
    return f"{asked} needs the package {package} in the training environment{more and '; ' + more}."


def is_hub_kernel(attention: str) -> bool:
    """Return whether an attention implementation is the name of a kernel of the hub."""
    return _HUB_KERNEL.fullmatch(attention) is not None


def is_attention(attention: str) -> bool:
    """Return whether transformers can know an attention implementation by this name."""
    return attention in (*PLAIN_ATTENTION, *FLASH_ATTENTION, FLEX_ATTENTION) or is_hub_kernel(attention)


def is_flash(attention: str) -> bool:
    """Return whether an attention implementation is a flash attention, from a package or from the hub."""
    return attention in FLASH_ATTENTION or is_hub_kernel(attention)


def mismatch(workload: WorkloadFields, architecture: Mapping[str, Any]) -> str | None:
    """Return an error message if a model cannot be trained as a workload asks, else None; a vision model can be trained on text.

    Args:
        workload: what to train.
        architecture: the model's Hugging Face configuration as a dict.
    """
    name = workload.model_name[-_SHOWN:]
    if workload.dataset_image_field and "vision_config" not in architecture:
        return f"Model {name} takes no images; leave dataset_image_field out, or use a vision model."
    size = workload.tensor_parallel_size
    text = architecture.get("text_config")
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = (text if isinstance(text, Mapping) else architecture).get(key)
        if isinstance(heads, int) and heads % size:
            return f"tensor_parallel_size {size} does not divide the {heads} {key} of model {name}."
    return None


def bounding(workload: WorkloadFields) -> list[str]:
    """Return the properties because of which a memory estimate is only an upper bound; the workload has those in ``BOUNDED_FROM_ABOVE``."""
    return [name for name in BOUNDED_FROM_ABOVE if getattr(workload, name)]


def untraceable(workload: WorkloadFields) -> str | None:
    """Return an error message if a memory estimate cannot trace the workload, else None.

    Args:
        workload: what to train; it also has the fields in ``UNTRACEABLE``.
    """
    if workload.method == "qlora" and workload.quantisation == "int8":
        return (
            "finetune_memory_estimate cannot trace quantisation int8: "
            "what its products allocate depends on the outliers among the activations."
        )
    if workload.fp8_recipe != "none":
        return f"finetune_memory_estimate cannot trace fp8_recipe {workload.fp8_recipe}: what its casts allocate is not known."
    for name in ("tensor_parallel_size", "context_parallel_size"):
        if (size := getattr(workload, name)) > 1:
            return f"finetune_memory_estimate cannot trace {name} {size}: what each device gathers is not known."
    if workload.distributed_backend == "DeepSpeed":
        return (
            "finetune_memory_estimate cannot trace distributed_backend DeepSpeed: its buffers are not known; use FSDP2."
        )
    found = next((name for name in UNTRACEABLE if getattr(workload, name)), None)
    if getattr(workload, "attn_implementation", "") == FLEX_ATTENTION:
        found = f"attn_implementation {FLEX_ATTENTION}"
    optim = getattr(workload, "optim", optimizers.OWN[0])
    if not optimizers.is_traceable(optim):
        return (
            f"finetune_memory_estimate cannot trace optim {optim}: what it allocates is not known without its values."
        )
    return (
        f"finetune_memory_estimate cannot trace {found}: the memory that its kernels allocate is not known."
        if found
        else None
    )
