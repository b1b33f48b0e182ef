"""From the record of a memory estimate to its properties, with the bound on speed. Pure: no torch, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..protocol import supported
from ..protocol.messages import MEMORY_KINDS, EstimateRecord
from ..protocol.outside import between_devices_bytes
from ..workload import wording
from ..workload.fields import Workload
from ..workload.outputs import MEMORY_OUTPUTS
from ..workload.validation import without_effect
from . import accelerators, roofline
from .accelerators import GIB
from .report import Report

# no estimate was more than 3 % above a published measurement with the same releases of the libraries, see docs/memory-estimate.md
KNOWN_ERROR = 0.03
COST_LIMIT = "usd_per_million_tokens_limit"
# most changes that a note names
MOST_NAMED = 4
LIMITS = ("step_time_limit_s", "tokens_per_second_limit", COST_LIMIT)


def fullest(peaks: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """Return the parts of the phase that needs most, bytes by kind."""
    return max(peaks.values(), key=lambda parts: sum(parts.values()))


def needed_bytes(record: EstimateRecord) -> int:
    """Return the least memory with which the allocator can work: its segments with a used block or, if unknown, what is allocated."""
    reserved = record.get("reserved_bytes")
    total = sum(fullest(record["peaks_bytes"]).values())
    return total if reserved is None else max(total, int(reserved["needed"]))


def make(
    record: EstimateRecord, workload: Workload, *, total_s: float, price_usd_per_device_hour: float | None = None
) -> Report:
    """Return the report of an estimate.

    Args:
        record: as ``trainer.memory_estimate.estimate`` makes it.
        workload: what it was made for.
        total_s: wall time, seconds.
        price_usd_per_device_hour: price of a GPU-hour, or None.
    """
    parts = fullest(record["peaks_bytes"])
    total = sum(parts.values())
    properties: dict[str, Any] = {
        "is_valid": 1,
        "failure": "none",
        "memory_estimate_gib": total / GIB,
        "total_s": total_s,
    }
    properties |= {f"memory_{name}_gib": parts[name] / GIB for name in MEMORY_KINDS}
    device_gib, reason = memory_of(workload)
    omitted = {}
    usable = usable_bytes(workload)
    reserved = record.get("reserved_bytes")
    if reserved is None:
        omitted["memory_reserved_gib"] = "Without GPUs nothing is reserved."
    else:
        # when the device is full, the allocator gives back its segments without a used block
        most = reserved["most"] if usable is None else min(reserved["most"], max(usable, reserved["needed"]))
        properties["memory_reserved_gib"] = most / GIB
    if device_gib is None or usable is None:
        omitted |= dict.fromkeys(("device_memory_gib", "fits", "largest_batch_size"), reason)
    else:
        properties |= {"device_memory_gib": device_gib, "fits": int(needed_bytes(record) <= usable)}
        properties["largest_batch_size"] = record["largest_batch_size"]
    notes = without_effect(workload)
    if bounding := supported.bounding(workload):
        verb = "save" if len(bounding) > 1 else "saves"
        notes.append(f"An upper bound: it leaves out what {wording.listed(bounding)} {verb}.")
    if properties.get("fits") == 0 and usable is not None:
        notes.append(what_fits(record, workload, usable))
    if record.get("minimum_gpus") is not None:
        properties["minimum_gpus"] = record["minimum_gpus"]
    elif usable is None:
        omitted["minimum_gpus"] = reason
    else:
        omitted["minimum_gpus"] = f"method {workload.method} cannot be estimated under FSDP."
    bound, unbounded = limit_of(record, workload)
    if bound is None:
        omitted |= dict.fromkeys(LIMITS, unbounded)
    else:
        properties |= {"step_time_limit_s": bound.step_s, "tokens_per_second_limit": bound.tokens_per_second}
        notes.append(f"step_time_limit_s is set by {bound.resource}.")
        if price_usd_per_device_hour is None:
            omitted[COST_LIMIT] = "The actuator configuration has no price_usd_per_device_hour."
        else:
            properties[COST_LIMIT] = bound.usd_per_million_tokens(price_usd_per_device_hour, workload.number_gpus)
    return Report.complete(
        properties, omitted, "The record does not have it.", notes=tuple(notes), outputs=MEMORY_OUTPUTS
    )


def limit_of(record: EstimateRecord, workload: Workload) -> tuple[roofline.Limit | None, str]:
    """Return the bound on the speed of a workload, or None and the reason why there is none."""
    if not workload.number_gpus:
        return None, "Without GPUs there is no bound: the peak of the host is not known."
    if workload.gpu_model == "any":
        return None, "gpu_model any names no device."
    return roofline.limit(
        workload,
        record["architecture"],
        model_parameters=record["model_parameters"],
        trainable_parameters=record["trainable_parameters"],
    )


def memory_of(workload: Workload) -> tuple[float | None, str]:
    """Return the memory of a workload's devices in GiB, or None and the reason why it is not known."""
    if not workload.number_gpus:
        return None, "Without GPUs the memory is that of the host, which is not known."
    if workload.gpu_memory_gib:
        return workload.gpu_memory_gib, ""
    return accelerators.device_memory_gib(workload.gpu_model)


def usable_bytes(workload: Workload) -> int | None:
    """Return what a device of a workload can give, bytes; None where its memory is not known."""
    if not workload.number_gpus:
        return None
    usable = accelerators.usable_bytes(workload.gpu_model, workload.gpu_memory_gib)
    beside = between_devices_bytes(workload.distributed_backend, workload.number_gpus)
    return None if usable is None else usable - beside


def what_fits(record: EstimateRecord, workload: Workload, usable: int) -> str:
    """Return the note about a workload that does not fit: by how much, and with which changes it does; each was estimated."""
    begin = f"Does not fit: {needed_bytes(record) / GIB:.1f} GiB of {usable / GIB:.1f} GiB."
    found = [
        f"{_named(one['change'])} ({one['needed_bytes'] / GIB:.1f} GiB)"
        for one in record.get("alternatives", ())
        if one["fits"]
    ]
    if record["largest_batch_size"] and not any(one.startswith("batch_size") for one in found):
        found.insert(0, f"batch_size {record['largest_batch_size']}")
    fewest = record.get("minimum_gpus")
    if fewest:
        found.append(f"number_gpus {fewest} under FSDP" if fewest > 1 else "number_gpus 1")
    if not found:
        return f"{begin} Nothing that was tried makes it fit{', not even 512 GPUs under FSDP' if fewest == 0 else ''}."
    *others, last = found[:MOST_NAMED]
    return f"{begin} It fits with {', '.join(others)}{' or ' if others else ''}{last}."


def _named(change: Mapping[str, Any]) -> str:
    words = [name if value is True else f"{name} {value}" for name, value in change.items()]
    return " and ".join(words)


def certainly_too_large(record: EstimateRecord, workload: Workload) -> str | None:
    """Return the message for a workload that does not fit, even if the estimate is too high by its known error; None for others.

    The device is taken to give all but the least that the driver and CUDA's context are known to take.
    """
    known = workload.number_gpus > 0
    usable = accelerators.most_usable_bytes(workload.gpu_model, workload.gpu_memory_gib) if known else None
    total = sum(fullest(record["peaks_bytes"]).values())
    if usable is None or total * (1 - KNOWN_ERROR) <= usable:
        return None
    return (
        f"The workload is predicted not to fit: {total / GIB:.1f} GiB on each device, "
        f"of which {workload.gpu_model} can give {usable / GIB:.1f} GiB."
    )
