"""The optimizers by their names in ``transformers.TrainingArguments``, and the package that each needs. Imports the standard library only.

``Name`` joins the lists of the releases that the plugins support; the trainer rejects a name that its own release lacks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

Name = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "lomo",
    "adalomo",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "grokadamw",
    "stable_adamw",
    "adamw_apex_fused",
    "adamw_anyprecision",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
]
# those of PyTorch and transformers themselves
OWN = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
LAYERWISE = "_layerwise"
# optimizers that need CUDA, and the most similar one that runs on CPUs
NEED_CUDA = {
    "adalomo": "lomo",
    "galore_adamw_8bit": "galore_adamw",
    "galore_adamw_8bit_layerwise": "galore_adamw_layerwise",
}
# besides those of bitsandbytes, whose operators have no strategy for distributed tensors (0.50): they mix them with others
NO_DTENSORS = ("adafactor", "galore_adafactor", "galore_adamw_8bit", "apollo_adamw")
# they project the gradients of linear layers; their arguments have to name these layers
LOW_RANK = ("galore", "apollo")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package as pip and as Python name it."""

    distribution: str
    module: str


BITSANDBYTES = Package("bitsandbytes", "bitsandbytes")
TORCHAO = Package("torchao", "torchao")
GALORE = Package("galore-torch", "galore_torch")
APOLLO = Package("apollo-torch", "apollo_torch")
LOMO = Package("lomo-optim", "lomo_optim")
SCHEDULE_FREE = Package("schedulefree", "schedulefree")

PACKAGES: dict[str, Package] = {
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"), BITSANDBYTES),
    **dict.fromkeys(("lion_8bit", "lion_32bit", "paged_lion_32bit", "paged_lion_8bit"), BITSANDBYTES),
    **dict.fromkeys(("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), BITSANDBYTES),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), BITSANDBYTES),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), TORCHAO),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), GALORE),
    **dict.fromkeys(("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), GALORE),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), APOLLO),
    **dict.fromkeys(("lomo", "adalomo"), LOMO),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"), SCHEDULE_FREE),
    "grokadamw": Package("grokadamw", "grokadamw"),
    "stable_adamw": Package("torch-optimi", "optimi"),
    "adamw_apex_fused": Package("apex", "apex"),
    "adamw_anyprecision": Package("torchdistx", "torchdistx"),
    "adamw_torch_xla": Package("torch-xla", "torch_xla"),
    "adamw_torch_npu_fused": Package("torch-npu", "torch_npu"),
}
NAMES: tuple[Name, ...] = get_args(Name)


def is_low_rank(name: str) -> bool:
    """Return whether an optimizer projects the gradients of linear layers."""
    return name.startswith(LOW_RANK)


def is_traceable(name: str) -> bool:
    """Return whether a memory estimate can trace an optimizer: its update runs on tensors without values."""
    return name in OWN or PACKAGES.get(name) == BITSANDBYTES


def impossible(name: str, *, cpu: bool, processes: int, gradient_accumulation_steps: int, dtensors: bool) -> str | None:
    """Return an error message if an optimizer cannot be used with these values of a workload, else None.

    Args:
        name: the optimizer.
        cpu: whether the workload trains on the CPU.
        processes: training processes.
        gradient_accumulation_steps: passes of an optimizer step.
        dtensors: whether parameters are distributed tensors, as with FSDP2 and tensor parallelism.
    """
    if dtensors and (name in NO_DTENSORS or PACKAGES.get(name) == BITSANDBYTES):
        return f"optim {name} is not supported with FSDP2, whose parameters are DTensors; use adamw_torch."
    if name in NEED_CUDA and cpu:
        return f"optim {name} needs a GPU: its implementation uses CUDA; on CPU use {NEED_CUDA[name]}."
    if name == "galore_adafactor_layerwise":
        return f"optim {name} is impossible: transformers gives its Adafactor contradictory settings; use galore_adafactor."
    if name.endswith(LAYERWISE) and processes > 1:
        return f"optim {name} does not support several devices; use {name.removesuffix(LAYERWISE)}."
    if (name.endswith(LAYERWISE) or PACKAGES.get(name) == LOMO) and gradient_accumulation_steps > 1:
        return f"optim {name} needs gradient_accumulation_steps 1, since it updates in the backward pass."
    return None
