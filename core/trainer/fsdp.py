"""Passes a workload's FSDP properties to accelerate, and finds out which wrapper a model has. Imports no third-party package."""

from __future__ import annotations

from typing import Any

from ..protocol.messages import JobWorkload
from . import deepspeed, parallel

EXPECTED = {"DDP": "DistributedDataParallel", "FSDP": "FullyShardedDataParallel", "FSDP2": "FSDP2"}
# FSDP version 2 has no wrapper module: it adds ``FSDPModule`` to the bases of the model's class
WRAPPERS = {name: name for name in ("DistributedDataParallel", "FullyShardedDataParallel")} | {"FSDPModule": "FSDP2"}


def options(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of ``TrainingArguments`` (transformers 5) for a workload's distributed backend; empty without FSDP."""
    backend = workload.distributed_backend
    if backend not in ("FSDP", "FSDP2") or workload.number_gpus < 2 or parallel.divides_layers(workload):
        return {}
    strategy = workload.fsdp_sharding_strategy
    config: dict[str, Any] = {
        "version": 2 if backend == "FSDP2" else 1,
        # version 2 has this flag instead of strategies: whether gathered parameters are freed before the backward pass
        "reshard_after_forward": strategy == "FULL_SHARD" if backend == "FSDP2" else strategy,
        "state_dict_type": workload.fsdp_state_dict_type,
        "use_orig_params": workload.fsdp_use_orig_params,
        "cpu_offload": workload.fsdp_cpu_offload,
    }
    if workload.fsdp_transformer_layer_cls_to_wrap != "auto":
        config["transformer_layer_cls_to_wrap"] = layer_classes(workload.fsdp_transformer_layer_cls_to_wrap)
    return {"fsdp": True, "fsdp_config": config}


def layer_classes(names: str) -> list[str]:
    """Split the names of classes at the commas."""
    return [name.strip() for name in names.split(",")]


def variables(workload: JobWorkload) -> dict[str, str]:
    """Return the environment variables with which ``accelerate launch`` configures FSDP; empty without FSDP.

    Two cases need them: releases of transformers whose ``TrainingArguments`` lack some of the options, and settings that accelerate
    reads before its plugin is created. Options without a property have the defaults of transformers.
    """
    config = options(workload).get("fsdp_config")
    if config is None:
        return {}
    layer = config.get("transformer_layer_cls_to_wrap")
    found = {
        "ACCELERATE_USE_FSDP": True,
        "FSDP_VERSION": config["version"],
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": config["state_dict_type"],
        "FSDP_OFFLOAD_PARAMS": config["cpu_offload"],
        **({"FSDP_TRANSFORMER_CLS_TO_WRAP": ",".join(layer)} if layer else {}),
    }
    if config["version"] == 2:
        found |= {"FSDP_RESHARD_AFTER_FORWARD": config["reshard_after_forward"]}
    else:
        found |= {
            "FSDP_SHARDING_STRATEGY": config["reshard_after_forward"],
            "FSDP_USE_ORIG_PARAMS": config["use_orig_params"],
            "FSDP_BACKWARD_PREFETCH": "NO_PREFETCH",
            "FSDP_SYNC_MODULE_STATES": True,
        }
    return {name: str(value) for name, value in found.items()}


def complete(arguments: Any, workload: JobWorkload) -> Any:
    """Add the sharding strategy, which transformers does not set, to the arguments of accelerate's plugin.

    accelerate (1.15) reads the strategy of version 1 from an older field than the one transformers sets. Without this every strategy
    would silently be FULL_SHARD.

    Args:
        arguments: ``TrainingArguments`` made with ``options``; changed in place and returned.
        workload: the workload.
    """
    plugin_arguments = getattr(arguments, "fsdp_plugin_args", None)
    if plugin_arguments and workload.distributed_backend == "FSDP":
        plugin_arguments["sharding_strategy"] = workload.fsdp_sharding_strategy
    return arguments


def wrapper(trainer: Any) -> str:
    """Return what wraps a trainer's model: ``none``, or a wrapper such as ``DistributedDataParallel``, ``FSDP2`` or ``DeepSpeed ZeRO 2``.

    The wrapper is identified by the type of ``model_wrapped``, below the wrapper of torch.compile. Comparing it with ``model`` is not
    enough, because under FSDP both are the wrapped model.
    """
    wrapped = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    if type(wrapped).__name__ == "DeepSpeedEngine":
        return deepspeed.wrapper(wrapped)
    names = [kind.__name__ for kind in type(wrapped).__mro__]
    found = next((wrapper for name, wrapper in WRAPPERS.items() if name in names), "none")
    return parallel.wrapper(trainer, found)


def is_whole(wrapped_by: str) -> bool:
    """Return whether each rank holds the whole model under this wrapper, and can therefore run it without the other ranks."""
    return not wrapped_by.startswith((EXPECTED["FSDP"], EXPECTED["FSDP2"], parallel.TENSOR, f"{deepspeed.WRAPPER} 3"))


def mismatch(workload: JobWorkload, world_size: int, wrapped_by: str) -> str | None:
    """Return an error message if the model was trained with another wrapper than the workload's, else None."""
    asked: str = workload.distributed_backend
    expected = parallel.expected(workload, world_size)
    if deepspeed.is_used(workload):
        asked = expected = f"{deepspeed.WRAPPER} {workload.deepspeed_stage}"
    elif expected is not None:
        asked = expected
    elif world_size == 1:
        return None
    if wrapped_by == (expected or EXPECTED.get(asked)):
        return None
    return f"distributed_backend is {asked}, but the model was trained with the wrapper {wrapped_by}."
