"""What a trace of one process and the memory of one of several devices have to do with each other. Imports torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...protocol import supported
from ...protocol.messages import AUTOCAST_DTYPES, Job, JobWorkload
from ...protocol.releases import release_of
from .. import fsdp
from ..errors import Refused
from . import attention
from .accounts import Layered
from .fully_sharded import Wrapping
from .ledger import PASSES, UPDATE, Sharing
from .optimizer_states import follows_parameters

CUDA_BLOCK_BYTES = 512
# the first release that makes embedding and output layer units of their own under FSDP2
ACCELERATE_DIVIDES_OUTSIDE = (1, 14)


def single_process_job(job: Job, batch: int) -> Job:
    """Return a job for one process without GPU that allocates the same as a device of ``job`` with ``batch`` samples."""
    workload = job.workload
    changes: dict[str, Any] = {
        "batch_size": batch,
        "number_gpus": 0,
        "number_nodes": 1,
        "gpu_model": "any",
        "distributed_backend": "DDP",
        "weights": "random",
        # without them the trace is an upper bound; TRL computes its own loss with the first two
        **dict.fromkeys(supported.BOUNDED_FROM_ABOVE, False),
        # further passes allocate the same as the second one
        "gradient_accumulation_steps": min(2, workload.gradient_accumulation_steps),
    }
    if workload.mixed_precision == "fp16":
        # fp16 needs the gradient scaler, which needs CUDA and holds only two numbers; bfloat16 has the same size
        changes["mixed_precision"] = "bf16"
        if workload.torch_dtype == "float16":
            changes["torch_dtype"] = "bfloat16"
    if supported.is_flash(workload.attn_implementation):
        changes["attn_implementation"] = attention.FLASH
    if is_sharded(workload) and workload.mixed_precision != "no":
        # FSDP gathers parameters in the type of the computation, so autocast makes no copies of them
        changes |= {"torch_dtype": "bfloat16"}
    traced = dataclasses.replace(workload, **changes)
    return dataclasses.replace(job, workload=traced, world_size=1, rank=0, local_rank=0, local_world_size=1)


def sharing(workload: JobWorkload, model: torch.nn.Module | Layered, workspaces: int = 0) -> Sharing:
    """Return the share of the traced memory that one device holds.

    Args:
        workload: what to train.
        model: the traced model.
        workspaces: bytes of cuBLAS's workspaces on one device.
    """
    block = block_bytes(workload)
    extra: dict[str, dict[str, int]] = {phase: {"temporaries": workspaces} for phase in (PASSES, UPDATE)}
    # one of the forward and one of the backward pass
    constant: tuple[int, ...] = (workspaces // 2, workspaces // 2) if workspaces else ()
    if is_sharded(workload):
        return dataclasses.replace(_sharded(workload, *_both(model), block, extra), constant_blocks=constant)
    if (workload.number_gpus or workload.number_nodes) > 1 and workload.distributed_backend == "DDP":
        buckets = bucket_bytes(model)
        for phase in (PASSES, UPDATE):
            extra[phase]["gradients"] = sum(buckets)
        constant += tuple(buckets)
    return Sharing(extra_bytes=extra, block_bytes=block, constant_blocks=constant)


def bucket_bytes(model: torch.nn.Module | Layered) -> list[int]:
    """Return the sizes of DDP's buckets, divided as PyTorch does it by default: the first up to 1 MiB, others up to 25 MiB."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return []
    # the function looks at sizes and types only
    shapes = [torch.empty(parameter.shape, dtype=parameter.dtype, device="meta") for parameter in trained]
    buckets, _ = torch.distributed._compute_bucket_assignment_by_size(
        shapes, [2**20, 25 * 2**20], [False] * len(shapes)
    )
    return [sum(_bytes(trained[index]) for index in bucket) for bucket in buckets]


def wrapping(workload: JobWorkload, model: torch.nn.Module, accelerate: str) -> Wrapping:
    """Return how the release ``accelerate`` of that library wraps ``model`` with FSDP.

    Raises:
        Refused: the model contains none of the classes to wrap.
    """
    asked = workload.fsdp_transformer_layer_cls_to_wrap
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ()) if asked == "auto" else set(fsdp.layer_classes(asked))
    if not any(type(module).__name__ in names for module in model.modules()):
        raise Refused(f"fsdp_transformer_layer_cls_to_wrap {asked} names no layer of this model; auto takes its own.")
    return Wrapping(
        version=2 if workload.distributed_backend == "FSDP2" else 1,
        releases=workload.fsdp_sharding_strategy in ("FULL_SHARD", "HYBRID_SHARD"),
        layers=frozenset(names),
        one_type=workload.mixed_precision != "no",
        divides_outside=release_of(accelerate) >= ACCELERATE_DIVIDES_OUTSIDE,
    )


def _sharded(workload: JobWorkload, whole: int, trained: int, block: int, extra: dict[str, dict[str, int]]) -> Sharing:
    """Return the shares of a device under FSDP; ``whole`` and ``trained`` are bytes of parameters in the trace."""
    strategy = workload.fsdp_sharding_strategy
    devices = workload.number_gpus
    if strategy.startswith("HYBRID"):
        devices //= workload.number_nodes
    # The trace has the type of the computation, shards have the type of the weights. With mixed precision accelerate keeps the shards of
    # trained parameters in float32, and therefore their gradients and optimizer state, too
    computed = _width(AUTOCAST_DTYPES.get(workload.mixed_precision, workload.torch_dtype))
    kept = _width(workload.torch_dtype if workload.mixed_precision == "no" else "float32") / computed
    frozen = _width(workload.torch_dtype) / computed
    ratios = {
        "parameters": (trained * kept + (whole - trained) * frozen) / whole,
        "gradients": kept,
        "optimizer": kept if follows_parameters(workload.optim) else 1.0,
    }
    here = 0.0 if workload.fsdp_cpu_offload else 1 / devices
    return Sharing(
        shares={kind: ratio * here for kind, ratio in ratios.items()},
        update_share=kept * here,
        extra_bytes=extra,
        block_bytes=block,
    )


def block_bytes(workload: JobWorkload) -> int:
    """Return the bytes to whose multiple the device's allocator rounds sizes."""
    return CUDA_BLOCK_BYTES if workload.number_gpus > 0 else 1


def is_sharded(workload: JobWorkload) -> bool:
    """Return whether FSDP divides the model among devices."""
    return (
        workload.distributed_backend in ("FSDP", "FSDP2")
        and workload.number_gpus > 1
        and workload.fsdp_sharding_strategy != "NO_SHARD"
    )


def _both(module: torch.nn.Module | Layered) -> tuple[int, int]:
    parameters = list(module.parameters())
    return sum(map(_bytes, parameters)), sum(_bytes(one) for one in parameters if one.requires_grad)


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _width(name: str) -> int:
    return 4 if name == "float32" else 2
