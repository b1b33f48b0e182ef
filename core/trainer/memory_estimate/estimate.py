"""Estimates the memory of a workload without a GPU and without weights, and the largest batch that fits. Imports torch.

One process is traced. The memory of each of several devices is computed from that trace:

- DDP keeps a copy of the gradients in its buckets.
- FSDP divides parameters, gradients and optimizer state. The trace includes those that it gathers temporarily (``fully_sharded``).
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import gc
import importlib.metadata
import time

import torch

from ...protocol import supported
from ...protocol.messages import (
    DeviceEstimate,
    Job,
    JobWorkload,
    MemoryEstimate,
    ModelDescription,
    OtherEstimates,
    ProgressCallback,
)
from ...protocol.messages import progress as progress_message
from ..errors import Refused
from ..stack import Stack
from . import alternatives, attention
from . import largest_batch as batches
from .accounts import Accounts, Layered, Passes, fixed
from .allocator import Reserved, replay
from .devices import TracedWorkload, estimates, total_by_batch
from .extrapolation import Irregular
from .four_bits import numbers
from .kept import Kept, Outline, key
from .ledger import PASSES, UPDATE, Ledger, Peak, Sharing
from .moments import Moments
from .one_device import block_bytes, is_sharded, sharing, single_process_job, wrapping
from .untraced import explained

# the upper bound of the property batch_size, and the most tokens of a batch whose padding a trace knows
MOST_SAMPLES, MOST_TOKENS = 65536, 2**22


def record(stack: Stack, job: Job, progress: ProgressCallback, kept: Kept | None = None) -> MemoryEstimate:
    """Return the memory estimate of a job.

    Args:
        stack: the stack that trains.
        job: the job.
        progress: called with progress messages.
        kept: traces of earlier jobs; None: there are none.

    Raises:
        Refused: the workload cannot be traced.
    """
    kept = Kept() if kept is None else kept
    # accelerate starts a garbage collection in each training; with the modules of torch and transformers it takes as long as the trace
    gc.collect()
    gc.freeze()
    if message := supported.untraceable(job.workload):
        raise Refused(message)
    if job.workload.method == "gptq_lora" and not getattr(stack, "TRACES_GPTQ", False):
        raise Refused("finetune_memory_estimate traces method gptq_lora in fms_hf_tuning only; use that actuator.")
    begin = time.perf_counter()
    estimator = Estimator(stack, job, progress, kept)
    processes, batch = estimator.processes, job.workload.batch_size // estimator.processes
    capacity = alternatives.capacity_bytes(job) if estimator.cuda else None
    compared: OtherEstimates = {}
    largest = None
    with explained(job.workload.model_name):
        peaks = estimator.peaks(batch)
        reserved = estimator.reserved.get(batch)
        if capacity is not None:
            compared = _compared(stack, job, progress, kept, estimator, estimator.needed(batch) <= capacity)
            # the memory that is unused between blocks is assumed to be the same for each batch
            capacity -= estimator.needed(batch) - max(peak.total for peak in peaks.values())
            most = min(MOST_SAMPLES // processes, MOST_TOKENS // job.workload.model_max_length)
            largest = processes * estimator.largest(batch, capacity, max(most, batch))
        devices = estimator.devices(batch) if job.capacities else None
    end, description = time.perf_counter(), estimator.description
    found: MemoryEstimate = {
        # the host reads these keys of every record
        "train_begin_s": begin,
        "step_end_s": [end],
        "warmup_steps": 0,
        "phases": {"measurement_s": end - begin},
        "peaks_bytes": {phase: dict(peak.parts) for phase, peak in peaks.items()},
        "reserved_bytes": None if reserved is None else {"most": reserved.most, "needed": reserved.needed},
        "largest_batch_size": largest,
        "traced_batches": sorted(processes * size for size in estimator.traced),
        "model_parameters": description["model_parameters"],
        "trainable_parameters": description["trainable_parameters"],
        "architecture": description["architecture"],
        "facts": description["facts"],
    }
    if "alternatives" in compared:
        found["alternatives"] = compared["alternatives"]
    if "minimum_gpus" in compared:
        found["minimum_gpus"] = compared["minimum_gpus"]
    if devices is not None:
        found["devices"] = devices
    return found


def _compared(
    stack: Stack, job: Job, progress: ProgressCallback, kept: Kept, estimator: Estimator, fits: bool
) -> OtherEstimates:
    """Estimate other workloads: the changes that make this one fit, and the fewest devices."""

    def estimator_of(asked: Job) -> Estimator:
        return Estimator(stack, asked, progress, kept)

    found: OtherEstimates = {}
    parameters = estimator.description["model_parameters"]
    if job.alternatives and not fits:
        update_bytes = estimator.peaks(job.workload.batch_size // estimator.processes)[UPDATE].total
        found["alternatives"] = alternatives.tried(job, update_bytes, estimator_of, parameters=parameters)
    if job.counts:
        found["minimum_gpus"] = alternatives.fewest(job, fits=fits, estimator_of=estimator_of, parameters=parameters)
    return found


class Estimator:
    """Peaks of one workload by batch size per device, each traced once."""

    def __init__(self, stack: Stack, job: Job, progress: ProgressCallback, kept: Kept | None = None) -> None:
        workload = job.workload
        self._kept = Kept() if kept is None else kept
        self._stack = stack
        self._job = job
        self._progress = progress
        self.cuda = workload.number_gpus > 0
        self._peaks: dict[int, dict[str, Peak]] = {}
        self.processes = workload.number_gpus or workload.number_nodes
        # set by the first trace
        self.description: ModelDescription
        self.reserved: dict[int, Reserved] = {}
        self._accounts = Accounts(job, self._trace, self._kept)

    @property
    def traced(self) -> list[int]:
        """The batch sizes per device that were traced."""
        return list(self._peaks)

    def totals(self, batch: int) -> dict[str, int]:
        """Return the peak bytes of each phase with ``batch`` samples per device, and the ``floor`` of the passes.

        The floor is the sum of parameters, optimizer state and the most activations and temporaries, without gradients. Unlike the
        peak it grows with the batch from the first sample on.
        """
        peaks = self.peaks(batch)
        passes = peaks[PASSES]
        floor = passes.parts["parameters"] + passes.parts["optimizer"] + passes.passing
        return {**{phase: peak.total for phase, peak in peaks.items()}, "floor": floor}

    def peaks(self, batch: int) -> dict[str, Peak]:
        """Return the peak of each phase with ``batch`` samples per device."""
        if batch not in self._peaks:
            self._progress(progress_message(f"tracing a batch of {batch} per device"))
            self._peaks[batch] = self._further(batch) if self._peaks else self._first(batch)
        return self._peaks[batch]

    def needed(self, batch: int) -> int:
        """Return the bytes that the allocator needs at least; for all batches but the first traced one, those of the peak."""
        total = max(peak.total for peak in self.peaks(batch).values())
        reserved = self.reserved.get(batch)
        return total if reserved is None else max(total, reserved.needed)

    def _first(self, batch: int) -> dict[str, Peak]:
        ledger, model = self._accounts.traced(batch, update=True)
        self._sharing = self._sharing_of(self._job.workload, model)
        parameters = list(model.parameters())
        self.description = {
            "model_parameters": sum(map(numbers, parameters)),
            "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "architecture": model.architecture,
            "facts": {
                "attn_implementation": self._named(model.config._attn_implementation),
                "device": "cuda" if self.cuda else "cpu",
            },
        }
        if self.cuda:
            self.reserved[batch] = replay(ledger.changes(self._sharing), self._sharing.constant_blocks)
        return ledger.peaks(self._sharing)

    def largest(self, batch: int, capacity: int, most: int) -> int:
        """Return the largest batch per device, up to ``most``, that fits; 0 if none does.

        Args:
            batch: a batch whose peaks are known.
            capacity: bytes of a device.
            most: upper bound of the result.
        """
        peaks = self.peaks(batch)
        if peaks[UPDATE].total > capacity or (batch == 1 and peaks[PASSES].total > capacity):
            return 0
        try:
            self._progress(progress_message("tracing how memory grows with the batch"))
            passes = self._accounts.passes()
        except Irregular:
            return batches.largest(batch, capacity, self.totals, most=most)
        moments = Moments(passes.grown, self._sharing.block_bytes)
        optimizer = self.peaks(batch)[PASSES].parts["optimizer"]
        about = total_by_batch(passes, moments, self._sharing, optimizer)

        def exactly(size: int) -> int:
            return self._beside_optimizer(passes.at(size).peaks(self._sharing)[PASSES])[PASSES].total

        if most < passes.base or about(passes.base) > capacity:
            return batches.largest(batch, capacity, self.totals, most=min(most, passes.base))
        found = passes.base + bisect.bisect_right(range(passes.base + 1, most + 1), capacity, key=about)
        while found > passes.base and exactly(found) > capacity:
            found -= 1
        return found

    def devices(self, batch: int, *, with_largest: bool = True) -> list[DeviceEstimate]:
        """Return the memory that the workload needs on each device type of ``Job.capacities``, with ``batch`` samples per device."""
        ledger, model = self._accounts.traced(batch, update=True)
        block = block_bytes(self._job.workload)

        @functools.cache
        def growth() -> tuple[Passes, Moments] | None:
            with contextlib.suppress(Irregular):
                passes = self._accounts.passes() if with_largest else None
                return (passes, Moments(passes.grown, block)) if passes else None
            return None

        traced = TracedWorkload(batch, model, ledger, Moments(fixed(ledger), block), growth)
        return estimates(self._job, traced, self._sharing_of)

    def _named(self, traced_attention: str) -> str:
        requested: str = self._job.workload.attn_implementation
        return requested if traced_attention == attention.FLASH else traced_attention

    def _further(self, batch: int) -> dict[str, Peak]:
        """Trace the passes without the update, which does not depend on the batch; the optimizer's state is known."""
        ledger, _ = self._accounts.traced(batch, update=False)
        return self._beside_optimizer(ledger.peaks(self._sharing)[PASSES])

    def _beside_optimizer(self, peak: Peak) -> dict[str, Peak]:
        """Add the optimizer's state to a peak of passes that were traced without it; return the peaks of both phases."""
        first = next(iter(self._peaks.values()))
        parts = {**peak.parts, "optimizer": first[PASSES].parts["optimizer"]}
        return {PASSES: Peak(parts, peak.passing), UPDATE: first[UPDATE]}

    def _sharing_of(self, workload: JobWorkload, model: torch.nn.Module | Layered) -> Sharing:
        return sharing(workload, model, self._job.workspaces.get(workload.gpu_model, 0))

    def _trace(self, job: Job, batch: int, update: bool) -> tuple[Ledger, Outline]:
        workload, single = job.workload, single_process_job(job, batch)
        accelerate = getattr(self._stack, "accelerate_version", "") or importlib.metadata.version("accelerate")
        wrapped: tuple[str, ...] = ()
        if is_sharded(workload):
            names = (workload.distributed_backend, workload.fsdp_sharding_strategy)
            wrapped = (*names, workload.fsdp_transformer_layer_cls_to_wrap, workload.mixed_precision, accelerate)
        known = key(single, self.cuda, update, wrapped)
        return self._kept.get(known, lambda: self._made(job, single, update, accelerate))

    def _made(self, job: Job, single: Job, update: bool, accelerate: str) -> tuple[Ledger, Outline]:
        from .tracing import trace

        workload = job.workload
        wrapped = (lambda model: wrapping(workload, model, accelerate)) if is_sharded(workload) else None
        ledger, model = trace(self._stack, single, cuda=self.cuda, update=update, wrapping=wrapped)
        return ledger, Outline(model)
