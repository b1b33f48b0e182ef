"""The least time of a training step on a device: a bound from its peaks, never a prediction.

A step takes at least as long as each of three things that it must do, each at the peak rate of the data sheet:

- compute: the matrix products of forward and backward pass, and those of the layers once more under gradient checkpointing;
- memory: reading each weight that is used once in every pass, and what the optimizer reads and writes;
- link: what FSDP gathers in both passes and what FSDP or DDP reduce, to and from each device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..protocol.messages import AUTOCAST_DTYPES
from ..workload.fields import Workload
from . import accelerators, flops

# how many numbers the update reads or writes at least for each trained parameter. Three: it reads parameter and gradient, and writes the
# parameter. AdamW also reads and writes both moments, in the type of the weights; the moments of others are fewer, smaller or factored,
# and do not count. LOMO keeps no gradients, so two are left
UPDATE_ACCESSES = {"adamw_torch": 7, "adamw_torch_fused": 7, "lomo": 2, "adalomo": 2}
LEAST_ACCESSES = 3
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
# bytes of a quantised weight, without its scale
QUANTISED_WIDTH = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
GPTQ_WIDTH = 0.5


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound.

    Attributes:
        step_s: seconds that an optimizer step takes at least.
        resource: ``compute``, ``memory bandwidth`` or ``link``.
        tokens_per_second: token slots of all devices at most.
    """

    step_s: float
    resource: str
    tokens_per_second: float

    def usd_per_million_tokens(self, usd_per_device_hour: float, devices: int) -> float:
        """Return what a million token slots cost at least."""
        return usd_per_device_hour * devices / 3600 / self.tokens_per_second * 1e6


def limit(
    workload: Workload,
    architecture: Mapping[str, Any],
    *,
    model_parameters: int,
    trainable_parameters: int,
    computed: str | None = None,
) -> tuple[Limit | None, str]:
    """Return the bound of a workload whose samples are all as long as they may be, or None and one message that says why there is none.

    Args:
        workload: with the ``gpu_model`` it runs on.
        architecture: the model's Hugging Face configuration.
        model_parameters: parameters of the model, with adapters.
        trainable_parameters: those that are trained.
        computed: type of the matrix products as read back from a run; None: that of the workload.
    """
    if workload.replicas != workload.processes:
        return None, "No bound is known for devices that share samples (tensor_parallel_size, context_parallel_size)."
    asked = AUTOCAST_DTYPES.get(workload.mixed_precision, workload.torch_dtype)
    row = accelerators.find(workload.gpu_model)
    if computed is None:
        computed = asked
    if computed == "float32" and workload.torch_compile and row is not None and "tf32" in row.tflops:
        # libraries turn it on for compiled models
        computed = "tf32"
    peak, reason = accelerators.peak_tflops(workload.gpu_model, computed)
    if peak is None or row is None:
        return None, reason
    if row.bandwidth_gb_s is None:
        return None, f"The memory bandwidth of device {workload.gpu_model!r} is not known."
    try:
        work = _flops(workload, architecture)
        used = sum(one.inputs * one.outputs * one.times for one in flops.model(architecture).products)
    except flops.UnknownArchitecture as unknown:
        return None, str(unknown)
    width = WIDTH[workload.torch_dtype]
    weight = {"qlora": QUANTISED_WIDTH[workload.quantisation], "gptq_lora": GPTQ_WIDTH}.get(workload.method, width)
    micro = workload.gradient_accumulation_steps
    passes = (2 + _recomputed(workload)) * micro
    sharded = workload.distributed_backend in ("FSDP", "FSDP2", "DeepSpeed") and workload.processes > 1
    trained_here = trainable_parameters / (workload.processes if sharded else 1)
    accesses = UPDATE_ACCESSES.get(workload.optim, LEAST_ACCESSES)
    if workload.deepspeed_offload != "none":
        # the host updates
        accesses = 0
    moved = passes * used * weight + accesses * trained_here * width
    times = {
        "compute": work / (peak * 1e12),
        "memory bandwidth": moved / (row.bandwidth_gb_s * 1e9),
        "link": _linked_bytes(workload, model_parameters * weight, trainable_parameters * width)
        / (row.link_gb_s * 1e9),
    }
    resource = max(times, key=lambda name: times[name])
    tokens = workload.batch_size * workload.model_max_length * micro
    return Limit(times[resource], resource, tokens / times[resource]), ""


def _flops(workload: Workload, architecture: Mapping[str, Any]) -> float:
    """Return the FLOP of an optimizer step on one device."""
    length = workload.model_max_length
    slots = workload.device_batch_size * length * workload.gradient_accumulation_steps
    per_token = flops.per_token(
        architecture,
        method=workload.method,
        token_slots=slots,
        squared_lengths=slots * length,
        r=workload.r,
        target_modules=workload.target_modules,
    )
    if workload.gradient_checkpointing:
        model = flops.model(architecture)
        again = sum(one.flops for one in model.products if one.module != flops.OUTPUT_LAYER)
        if not workload.gradient_checkpointing_selective:
            again += sum(one.flops(length) for one in model.attention)
        per_token += _recomputed(workload) * again
    return per_token * slots


def _recomputed(workload: Workload) -> float:
    """Return the share of the layers that the backward pass computes again, at least."""
    return 1 / workload.gradient_checkpointing_every_n_layers if workload.gradient_checkpointing else 0


def _linked_bytes(workload: Workload, parameters: float, gradients: float) -> float:
    """Return the bytes that reach one device in an optimizer step."""
    count = workload.processes
    others = (count - 1) / count
    zero3 = workload.distributed_backend == "DeepSpeed" and workload.deepspeed_stage == 3
    if workload.distributed_backend in ("FSDP", "FSDP2") or zero3:
        gathers = 1 if workload.fsdp_sharding_strategy in ("SHARD_GRAD_OP", "HYBRID_SHARD_ZERO2") else 2
        return others * (gathers * parameters + gradients) * workload.gradient_accumulation_steps
    return others * 2 * gradients
