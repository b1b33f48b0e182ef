"""Computes from one trace the memory of a workload on several device types: its parts, the largest batch, the fewest devices.

Imports numpy through ``moments``.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable

from ...protocol.messages import DeviceEstimate, Job, JobWorkload
from ...protocol.outside import between_devices_bytes
from .accounts import Layered, Passes
from .allocator import replay
from .ledger import PASSES, UPDATE, Ledger, Sharing
from .moments import Moments

# the numbers of devices that are tried; with more, the share of each hardly decreases
MOST_DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

SharingOf = Callable[[JobWorkload, Layered], Sharing]


@dataclasses.dataclass(frozen=True)
class TracedWorkload:
    """A workload that has been traced.

    Attributes:
        batch: samples per device in the trace with update.
        model: the model, for its parameters.
        ledger: the trace with update.
        step: moments of the trace with update.
        growth: returns the accounts of the passes for larger batches with their moments, or None if memory does not grow linearly; called
            only for a device that the workload fits, since it may need further traces.
    """

    batch: int
    model: Layered
    ledger: Ledger
    step: Moments
    growth: Callable[[], tuple[Passes, Moments] | None]


def estimates(job: Job, traced: TracedWorkload, sharing_of: SharingOf) -> list[DeviceEstimate]:
    """Return the memory that the workload needs on each device type of ``job.capacities``.

    Under FSDP the number of devices is the smallest of ``MOST_DEVICES`` with which the workload fits; else it is 1.
    """
    needs = _Needs(traced.ledger)
    return [_estimate(job.workload, name, usable, traced, sharing_of, needs) for name, usable in job.capacities.items()]


class _Needs:
    """The memory that the allocator needs at least, computed once for device types with equal shares."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[str, int] = {}

    def bytes_of(self, sharing: Sharing) -> int:
        key = repr(sharing)
        if key not in self._known:
            self._known[key] = replay(self._ledger.changes(sharing), sharing.constant_blocks).needed
        return self._known[key]


def _estimate(
    workload: JobWorkload, name: str, alone: int, traced: TracedWorkload, sharing_of: SharingOf, needs: _Needs
) -> DeviceEstimate:
    sharded = workload.distributed_backend in ("FSDP", "FSDP2")
    for count in MOST_DEVICES[1:] if sharded else MOST_DEVICES[:1]:
        asked = dataclasses.replace(workload, number_gpus=count, gpu_model=name, batch_size=count * traced.batch)
        usable = alone - between_devices_bytes(asked.distributed_backend, count)
        sharing = sharing_of(asked, traced.model)
        phases = {phase: traced.step.parts(sharing, phase) for phase in (PASSES, UPDATE)}
        parts = max(phases.values(), key=lambda one: sum(one.values()))
        total = sum(parts.values())
        # replaying the allocator takes longer than the rest, so not where too much is allocated anyway
        unused = max(0, needs.bytes_of(sharing) - total) if total <= usable else 0
        fits = total + unused <= usable
        found: DeviceEstimate = {
            "gpu_model": name,
            "number_gpus": count,
            "batch_size": count * traced.batch,
            "fits": fits,
            "parts_bytes": {**parts, "unused": unused},
            "largest_batch_size": 0,
        }
        if fits:
            optimizer = phases[PASSES]["optimizer"]
            found["largest_batch_size"] = count * _largest(traced, sharing, optimizer, usable - unused, workload)
            break
    return found


def _largest(traced: TracedWorkload, sharing: Sharing, optimizer: int, usable: int, workload: JobWorkload) -> int:
    """Return a batch per device that fits. From ``Passes.base`` on it is the largest.

    Below that, it is interpolated linearly. Memory is convex in the batch there, so the interpolated batch fits, but a larger one may, too.
    """
    growth = traced.growth()
    if growth is None:
        return traced.batch
    passes, moments = growth
    about = total_by_batch(passes, moments, sharing, optimizer)
    most = max(passes.base, 2**22 // workload.model_max_length)
    at_base = about(passes.base)
    if at_base <= usable:
        return passes.base + bisect.bisect_right(range(passes.base + 1, most + 1), usable, key=about)
    here = traced.step.total(sharing, PASSES)
    if passes.base <= traced.batch or at_base <= here:
        return traced.batch
    return traced.batch + (usable - here) * (passes.base - traced.batch) // (at_base - here)


def total_by_batch(passes: Passes, moments: Moments, sharing: Sharing, optimizer: int) -> Callable[[int], int]:
    """Return the function from a batch size per device to the peak bytes of the passes, the optimizer's state included."""
    return lambda size: moments.total(sharing, PASSES, float(passes.part(size))) + optimizer
