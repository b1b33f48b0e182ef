"""DeepSpeed's configuration for a workload, and what its engine ran. Imports no third-party package until DeepSpeed is used."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from ..protocol import supported
from ..protocol.messages import AUTOCAST_DTYPES, JobWorkload
from . import accelerate_state
from .errors import BadInput

BACKEND = "DeepSpeed"
WRAPPER = "DeepSpeed ZeRO"


def is_used(workload: JobWorkload) -> bool:
    """Return whether DeepSpeed trains the workload."""
    return workload.distributed_backend == BACKEND


def partitions_parameters(workload: JobWorkload) -> bool:
    """Return whether each process holds only a part of the parameters: ZeRO stage 3."""
    return is_used(workload) and workload.deepspeed_stage == 3


def configuration(workload: JobWorkload) -> dict[str, Any]:
    """Return DeepSpeed's configuration; ``auto`` takes the value of the training arguments.

    The optimizer is that of ``optim``. With offload accelerate replaces AdamW and Adagrad by DeepSpeed's optimizers for CPUs.
    """
    zero: dict[str, Any] = {
        "stage": workload.deepspeed_stage,
        "overlap_comm": workload.number_gpus > 0,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    host = {"device": "cpu", "pin_memory": True}
    if workload.deepspeed_offload != "none":
        zero["offload_optimizer"] = host
    if workload.deepspeed_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        if workload.deepspeed_offload == "optimizer_and_parameters":
            zero["offload_param"] = host
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        # reports of speed synchronise with the device
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def options(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of ``TrainingArguments`` for DeepSpeed; empty without it.

    Raises:
        BadInput: the package is missing.
    """
    if not is_used(workload):
        return {}
    if importlib.util.find_spec("deepspeed") is None:
        raise BadInput(supported.lacks_package("distributed_backend DeepSpeed", "deepspeed"))
    found: dict[str, Any] = {"deepspeed": configuration(workload), "ddp_backend": None}
    if not workload.number_gpus:
        # DeepSpeed's operator in shared memory would need a compiler, and minutes on first use
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        accelerate_state.declare_on_cpu("DEEPSPEED")
        found |= accelerate_state.DECLARED
    return found


def variables(workload: JobWorkload) -> dict[str, str]:
    """Return the environment variables that select DeepSpeed's accelerator; empty where it finds a GPU by itself."""
    return {"DS_ACCELERATOR": "cpu"} if is_used(workload) and not workload.number_gpus else {}


def partition(model: Any, arguments: Any, workload: JobWorkload) -> None:
    """Divide a model in host memory over the processes under stage 3, before DeepSpeed's engine would move it whole to a GPU.

    Args:
        model: the model, with adapters; changed in place.
        arguments: the trainer's ``TrainingArguments``.
        workload: the workload.
    """
    if not partitions_parameters(workload):
        return
    import deepspeed

    _cast(model, workload.mixed_precision)
    deepspeed.zero.Init(module=model, config_dict_or_path=_without_auto(arguments.hf_deepspeed_config.config))


@contextlib.contextmanager
def forgotten(workload: JobWorkload) -> Iterator[None]:
    """Afterwards remove DeepSpeed's configuration: while that of stage 3 is there, transformers builds every model in parts."""
    try:
        yield
    finally:
        if is_used(workload):
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()


def _cast(model: Any, mixed_precision: str) -> None:
    """Give the parameters the type of the computation, as the engine does for a model that is not divided yet."""
    import torch

    if (name := AUTOCAST_DTYPES.get(mixed_precision)) is None:
        return
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, name))


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the values that are filled in when the training begins."""
    return {
        name: _without_auto(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value != "auto"
    }


def wrapper(engine: Any) -> str:
    """Return what wraps a model, for example ``DeepSpeed ZeRO 2``, as DeepSpeed's engine says."""
    return f"{WRAPPER} {engine.zero_optimization_stage()}"


def facts(trainer: Any) -> dict[str, Any]:
    """Return what the engine keeps in host memory, as it says, and the types it computes with; empty without DeepSpeed."""
    engine = trainer.model_wrapped
    if type(engine).__name__ != "DeepSpeedEngine":
        return {}
    offloaded = [
        name
        for name, settings in (
            ("optimizer", engine.zero_offload_optimizer()),
            ("parameters", engine.zero_offload_param()),
        )
        if settings is not None and getattr(settings.device, "value", settings.device) != "none"
    ]
    return {"deepspeed_offload": "_and_".join(offloaded) or "none"}
