"""A workload's FSDP properties as accelerate's plugin gets them, and what really wrapped a model. Trainer room."""

from __future__ import annotations

from typing import Any

from ..protocol.messages import JobWorkload

EXPECTED = {"DDP": "DistributedDataParallel", "FSDP": "FullyShardedDataParallel", "FSDP2": "FSDP2"}
# what FSDP version 2 mixes into a model's class is no wrapper of its own
WRAPPERS = {name: name for name in ("DistributedDataParallel", "FullyShardedDataParallel")} | {"FSDPModule": "FSDP2"}


def options(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of ``TrainingArguments`` (transformers 5) for a workload's distributed backend; empty without FSDP."""
    backend = workload.distributed_backend
    if backend not in ("FSDP", "FSDP2") or workload.number_gpus < 2:
        return {}
    strategy = workload.fsdp_sharding_strategy
    config: dict[str, Any] = {
        "version": 2 if backend == "FSDP2" else 1,
        # version 2 has no strategies: it keeps the gathered parameters until the backward pass, or not
        "reshard_after_forward": strategy == "FULL_SHARD" if backend == "FSDP2" else strategy,
        "state_dict_type": workload.fsdp_state_dict_type,
        "use_orig_params": workload.fsdp_use_orig_params,
        "cpu_offload": workload.fsdp_cpu_offload,
    }
    if workload.fsdp_transformer_layer_cls_to_wrap != "auto":
        config["transformer_layer_cls_to_wrap"] = layer_classes(workload.fsdp_transformer_layer_cls_to_wrap)
    return {"fsdp": True, "fsdp_config": config}


def layer_classes(asked: str) -> list[str]:
    """Return the names of classes, separated by commas, one by one."""
    return [name.strip() for name in asked.split(",")]


def variables(workload: JobWorkload) -> dict[str, str]:
    """Return the environment variables by which ``accelerate launch`` describes FSDP to a trainer; empty without FSDP.

    For releases of transformers whose ``TrainingArguments`` cannot say all of it, and for what accelerate looks up before it gets its
    plugin. What no property says is as transformers says it by default.
    """
    config = options(workload).get("fsdp_config")
    if config is None:
        return {}
    layer = config.get("transformer_layer_cls_to_wrap")
    said = {
        "ACCELERATE_USE_FSDP": True,
        "FSDP_VERSION": config["version"],
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": config["state_dict_type"],
        "FSDP_OFFLOAD_PARAMS": config["cpu_offload"],
        **({"FSDP_TRANSFORMER_CLS_TO_WRAP": ",".join(layer)} if layer else {}),
    }
    if config["version"] == 2:
        said |= {"FSDP_RESHARD_AFTER_FORWARD": config["reshard_after_forward"]}
    else:
        said |= {
            "FSDP_SHARDING_STRATEGY": config["reshard_after_forward"],
            "FSDP_USE_ORIG_PARAMS": config["use_orig_params"],
            "FSDP_BACKWARD_PREFETCH": "NO_PREFETCH",
            "FSDP_SYNC_MODULE_STATES": True,
        }
    return {name: str(value) for name, value in said.items()}


def complete(arguments: Any, workload: JobWorkload) -> Any:
    """Return ``arguments``, made with ``options``, with what transformers leaves out of accelerate's plugin.

    accelerate (1.15) reads the strategy of version 1 from its older field, which transformers does not set: without this
    every strategy would silently be FULL_SHARD.
    """
    handed = getattr(arguments, "fsdp_plugin_args", None)
    if handed and workload.distributed_backend == "FSDP":
        handed["sharding_strategy"] = workload.fsdp_sharding_strategy
    return arguments


def wrapper(trainer: Any) -> str:
    """Return what wraps a trainer's model: ``none``, ``DistributedDataParallel``, ``FullyShardedDataParallel`` or ``FSDP2``.

    Its type tells: under FSDP the Trainer calls the wrapped model its model too, and torch.compile wraps whatever is there.
    """
    wrapped = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    names = [kind.__name__ for kind in type(wrapped).__mro__]
    return next((told for name, told in WRAPPERS.items() if name in names), "none")


def is_whole(wrapped_by: str) -> bool:
    """Return whether each rank has the whole model under this wrapper, so that it can use it without the others."""
    return wrapped_by not in (EXPECTED["FSDP"], EXPECTED["FSDP2"])


def mismatch(workload: JobWorkload, world_size: int, wrapped_by: str) -> str | None:
    """Return the message for a model that ran under another wrapper than was asked for, or None."""
    expected = EXPECTED.get(workload.distributed_backend)
    if world_size == 1 or wrapped_by == expected:
        return None
    return f"distributed_backend {workload.distributed_backend} was asked for, but {wrapped_by} wrapped the model."
