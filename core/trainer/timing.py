"""Clock of one measurement: phases, step ends, token counts and losses, taken without waiting for the device.

Trainer room: torch and transformers. The callback is all a stack has to hand to its trainer: counts and losses come from hooks
on the model, so that no library needs to be changed, and stay on the device until training has ended.
"""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from ..protocol.messages import COUNTS, Job, ProgressCallback
from ..protocol.messages import progress as progress_message
from ..protocol.stopping import APART_FOR_RANKS, Protocol
from .memory import peak_resident_bytes, reset_peak_resident
from .ranks import Ranks


class StepEnds:
    """Times of step ends, ``perf_counter`` seconds; on CUDA by events that are read when they have happened.

    ``known()`` gives the ends that are known so far without waiting, ``all()`` waits for the device once.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._ends: list[float] = []
        self._pending: list[Any] = []
        if self._cuda:
            torch.cuda.synchronize()
            self._last_event = torch.cuda.Event(enable_timing=True)
            self._last_event.record()
            self._last_event.synchronize()
        self.begin_s = time.perf_counter()

    def mark(self) -> None:
        """Note that the work of a step has been issued."""
        if not self._cuda:
            self._ends.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append(event)

    def known(self) -> list[float]:
        """Return the ends known so far, in order."""
        while self._pending and self._pending[0].query():
            event = self._pending.pop(0)
            # from neighbour to neighbour: CUDA gives float32 milliseconds, which are coarse an hour after the origin
            before = self._ends[-1] if self._ends else self.begin_s
            self._ends.append(before + self._last_event.elapsed_time(event) / 1e3)
            self._last_event = event
        return self._ends

    def all(self) -> list[float]:
        """Return every end; waits for the device."""
        if self._pending:
            self._pending[-1].synchronize()
        return self.known()


class Counts:
    """What went through the model in each optimizer step: samples, token slots, tokens, squared lengths and losses.

    Lengths of ``input_ids`` are known on the host; sums of masks and labels stay tensors on the device until ``read``.
    """

    def __init__(self) -> None:
        self.slots = 0
        self._steps: list[list[tuple[Any, ...]]] = [[]]
        self._losses: list[list[Any]] = [[]]
        self._trained: Any = 0
        # samples of the batches that are loaded and have not gone through the model: loaders are one batch ahead
        self._loaded: collections.deque[int] = collections.deque()

    def watch(self, loader: Any) -> None:
        """Take from a trainer's data loader how many samples are in each batch: packed or without padding, all are one row."""
        loader = getattr(loader, "base_dataloader", loader)
        collate = loader.collate_fn

        def counted(samples: list[Any]) -> Any:
            self._loaded.append(len(samples))
            return collate(samples)

        loader.collate_fn = counted

    def before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        if not module.training:
            return
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows, slots = ids.shape
        mask, labels, positions = (kwargs.get(key) for key in ("attention_mask", "labels", "position_ids"))
        real: Any = mask.sum() if mask is not None and mask.dim() == 2 else rows * slots
        # nothing predicts the first token of a row, so it carries no loss whatever its label
        trained: Any = (labels[:, 1:] != -100).sum() if labels is not None else real - rows
        # sum over positions of 2p+1 is the square of a document's length, so packed documents need no search for edges
        squared: Any = (2 * positions + 1).sum() if positions is not None else rows * slots * slots
        loaded = self._loaded.popleft() if self._loaded else rows
        samples = loaded if rows == 1 else rows
        self.slots += rows * slots
        self._steps[-1].append((samples, rows * slots, real, trained, squared))
        self._trained = trained

    def after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook."""
        loss = getattr(output, "loss", None)
        if not module.training or loss is None:
            return
        # transformers has the model divide by the tokens of the whole optimizer step, all ranks, when it says how many they are;
        # before release 5 it counts tokens that nothing predicts among them
        items = kwargs.get("num_items_in_batch")
        self._losses[-1].append(loss.detach() * (self._trained if items is None else items))

    def end_step(self) -> None:
        """Close the current step."""
        self._steps.append([])
        self._losses.append([])

    def read(self) -> dict[str, list[Any]]:
        """Return lists per step, keyed as in the record; waits for the device."""
        columns: dict[str, list[Any]] = {field: [] for field in COUNTS}
        for passes in self._steps[:-1]:
            for i, field in enumerate(COUNTS):
                columns[field].append(sum(int(one[i]) for one in passes))
        # a model that gives no loss at all is another thing than a loss that is not finite
        columns["losses"] = [_sum(losses) for losses in self._losses[:-1]] if any(self._losses) else []
        return columns


def _sum(losses: list[Any]) -> float | None:
    """Return the loss of a step, summed over its passes; None when it is not finite."""
    total = sum(float(loss.float().mean()) for loss in losses)
    return total if math.isfinite(total) else None


class Clock:
    """Times one measurement and decides when it has been measured long enough.

    Args:
        job: what to do.
        progress: called with ``state``, ``step``, ``of`` and ``tokens_per_second``; at most about twice a second.
    """

    def __init__(self, job: Job, progress: ProgressCallback) -> None:
        workload = job.workload
        self._progress = progress
        self._world_size = job.world_size
        self._ranks = Ranks(job.rank, job.world_size)
        self._max_steps = workload.max_steps
        self.protocol = Protocol(
            target_ci_percent=workload.target_ci_percent,
            max_steps=workload.max_steps,
            stop_after_seconds=workload.stop_after_seconds or None,
            checks_apart=APART_FOR_RANKS if self._world_size > 1 else 1,
        )
        self.phases: dict[str, float] = {}
        self.stopped_by = ""
        self.model: torch.nn.Module | None = None
        self._ends: StepEnds | None = None
        self._counts = Counts()
        self._hooks: list[Any] = []
        self._fed = 0
        self._steps = 0
        self._warm = False
        self._last_progress_s = 0.0
        # of each step until warm-up has ended, and then of all further steps together
        self._peaks: list[dict[str, int]] = []
        self._peak_is_ours = False

    @property
    def callback(self) -> transformers.TrainerCallback:
        """What the stack hands to its trainer."""
        return StepCallback(self)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase as ``<name>_s``."""
        self._progress(progress_message(name.replace("_", " ")))
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.phases[f"{name}_s"] = self.phases.get(f"{name}_s", 0.0) + time.perf_counter() - begin

    def begin(self, model: torch.nn.Module, loader: Any = None) -> None:
        """Start the clock.

        Args:
            model: the module whose forward passes are counted.
            loader: where its batches come from; without it a row counts as a sample.
        """
        self.model = model
        if loader is not None:
            self._counts.watch(loader)
        device = next(model.parameters()).device
        self._hooks = [
            model.register_forward_pre_hook(self._counts.before, with_kwargs=True),
            model.register_forward_hook(self._counts.after, with_kwargs=True),
        ]
        self._peak_is_ours = _reset_peaks()
        self._progress({"event": "progress", "state": "training", "step": 0, "of": self._max_steps})
        self._ranks.start()
        self._ends = StepEnds(device)

    def end_step(self) -> bool:
        """Mark the end of an optimizer step; True when all ranks stop here."""
        assert self._ends is not None
        self._ends.mark()
        self._counts.end_step()
        self._steps += 1
        self._feed(self._ends.known())
        self._tell()
        self._note_peaks()
        if not self.protocol.check_steps(self._steps):
            return False
        # steps that are issued but have not ended on the device yet count for the limit too
        limit = "max_steps" if self._steps >= self._max_steps else ""
        self.stopped_by = self._ranks.agree(self.protocol.should_stop() or limit)
        return bool(self.stopped_by)

    def end(self) -> None:
        """Stop the clock: wait for the device and take the hooks off."""
        assert self._ends is not None
        self._ends.all()
        self._peaks.append(_peaks(resident=self._peak_is_ours))
        for hook in self._hooks:
            hook.remove()

    def record(self) -> dict[str, Any]:
        """Return the clock's part of the record."""
        assert self._ends is not None
        ends = self._ends.all()
        self._feed(ends)
        warmup_steps = self._ranks.share(self.protocol.warmup_steps)
        return {
            "train_begin_s": self._ends.begin_s,
            "step_end_s": ends,
            **self._counts.read(),
            "warmup_steps": warmup_steps,
            "steady": bool(self._ranks.share(int(self.protocol.steady))),
            "stopped_by": self.stopped_by or "data",
            "phases": self.phases,
            **self._measured_peaks(warmup_steps),
        }

    def _feed(self, ends: list[float]) -> None:
        assert self._ends is not None
        previous = ends[self._fed - 1] if self._fed else self._ends.begin_s
        for end in ends[self._fed :]:
            self.protocol.add(end - previous)
            previous = end
        self._fed = len(ends)

    def _note_peaks(self) -> None:
        # which steps are measured is only known once warm-up has ended; peaks of its steps (autotuning, caches) are not theirs
        if self._warm:
            return
        self._peaks.append(_peaks(resident=self._peak_is_ours))
        _reset_peaks()
        self._warm = self.protocol.warm

    def _measured_peaks(self, warmup_steps: int) -> dict[str, int]:
        measured = self._peaks[min(warmup_steps, len(self._peaks) - 1) :]
        return {name: max(peaks[name] for peaks in measured) for name in measured[0]}

    def _tell(self) -> None:
        assert self._ends is not None
        now = time.perf_counter()
        if now - self._last_progress_s < 0.5:
            return
        self._last_progress_s = now
        rate = self._world_size * self._counts.slots / (now - self._ends.begin_s)
        self._progress(
            {
                "event": "progress",
                "state": "training",
                "step": self._steps,
                "of": self._max_steps,
                "tokens_per_second": rate,
            }
        )


def _peaks(*, resident: bool) -> dict[str, int]:
    peaks = {"rss_peak_bytes": peak_resident_bytes()} if resident else {}
    if torch.cuda.is_available():
        peaks["torch_peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        peaks["torch_peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return peaks


def _reset_peaks() -> bool:
    """Forget the peaks so far; false where that of the resident set stays the process's own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return reset_peak_resident()


class StepCallback(transformers.TrainerCallback):
    """Tells a ``Clock`` what happens in a ``transformers.Trainer``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._clock.begin(kwargs["model"], kwargs.get("train_dataloader"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: D102
        if self._clock.end_step():
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._clock.end()
