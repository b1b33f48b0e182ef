"""Estimates changes of a workload: which of them make it fit, and the fewest devices. Imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ...protocol.messages import Alternative, Job, JobWorkload, JsonObject
from ...protocol.outside import between_devices_bytes
from ..errors import BadInput, Refused

# changes that leave parameters, gradients and optimizer state as they are
ACTIVATIONS = {"gradient_checkpointing", "model_max_length", "batch_size"}

EstimatorOf = Callable[[Job], Any]


def capacity_bytes(job: Job) -> int | None:
    """Return what one of the devices of a job can give to torch's allocator, bytes; None if that is not asked."""
    workload = job.workload
    beside = between_devices_bytes(workload.distributed_backend, workload.number_gpus)
    return None if job.capacity_bytes is None else job.capacity_bytes - beside


def tried(job: Job, update_bytes: int, estimator_of: EstimatorOf, *, parameters: int = 0) -> list[Alternative]:
    """Return what each change of ``job.alternatives`` needs on a device; a group is tried if nothing of the groups before it fits.

    Changes with which the weights alone do not fit are left out.

    Args:
        job: a job with ``capacity_bytes``.
        update_bytes: what the optimizer's update needs without a change.
        estimator_of: makes the estimator of a job.
        parameters: number of the model's parameters; 0: not known.
    """
    capacity = capacity_bytes(job)
    assert capacity is not None
    found: list[Alternative] = []
    for group in job.alternatives:
        for change in group:
            if update_bytes > capacity and set(change) <= ACTIVATIONS:
                # such a change saves activations only, and the update alone does not fit
                continue
            asked = changed(job, change)
            if least_bytes(asked.workload, parameters) > capacity:
                continue
            needed = _needed(asked, estimator_of)
            if needed is not None:
                found.append({"change": change, "needed_bytes": needed, "fits": needed <= capacity})
        if any(one["fits"] for one in found):
            break
    return found


def fewest(job: Job, *, fits: bool, estimator_of: EstimatorOf, parameters: int = 0) -> int | None:
    """Return the smallest of 1, 2, 4, ... devices on which the workload fits with the same samples on each; 0 if none is enough.

    None if that cannot be estimated.

    Args:
        job: a job with ``capacity_bytes`` and ``counts``.
        fits: whether the workload fits as it is.
        estimator_of: makes the estimator of a job.
        parameters: number of the model's parameters; 0: not known.
    """
    unsharded = job.workload.distributed_backend not in ("FSDP", "FSDP2") or job.workload.number_gpus == 1
    if unsharded and fits:
        return 1
    for change in job.counts:
        if unsharded and change["number_gpus"] == job.workload.number_gpus:
            continue
        asked = changed(job, change)
        if change["number_gpus"] == 1 and least_bytes(asked.workload, parameters) > (job.capacity_bytes or 0):
            continue
        asked = dataclasses.replace(asked, capacities={job.workload.gpu_model: job.capacity_bytes or 0})
        try:
            estimator = estimator_of(asked)
            batch = asked.workload.batch_size // estimator.processes
            (found,) = estimator.devices(batch, with_largest=False)
        except (Refused, BadInput, RuntimeError):
            return None
        if found["fits"]:
            return int(found["number_gpus"])
    return 0


def least_bytes(workload: JobWorkload, parameters: int) -> int:
    """Return a lower bound of the memory of a device: the weights and, with full fine-tuning, gradients and AdamW's states.

    Args:
        workload: the workload.
        parameters: number of the model's parameters.
    """
    width = 0.5 if workload.method == "qlora" else 4 if workload.torch_dtype == "float32" else 2
    if workload.method == "full":
        # weights and gradients, and AdamW's two states in the type of the weights
        width *= 4 if workload.optim in ("adamw_torch", "adamw_torch_fused") else 2
    if workload.fsdp_cpu_offload:
        return 0
    sharded = workload.distributed_backend in ("FSDP", "FSDP2")
    return int(parameters * width / (workload.number_gpus if sharded else 1))


def changed(job: Job, change: JsonObject) -> Job:
    """Return the job with other values of its workload."""
    return dataclasses.replace(job, workload=dataclasses.replace(job.workload, **change))


def _needed(job: Job, estimator_of: EstimatorOf) -> int | None:
    try:
        estimator = estimator_of(job)
        return int(estimator.needed(job.workload.batch_size // estimator.processes))
    except (Refused, BadInput, RuntimeError):
        # what cannot be traced is no alternative
        return None
