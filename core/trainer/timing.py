"""Clock of one measurement: phases, step ends, token counts and losses, recorded without waiting for the device.

A stack passes only the clock's callback to its trainer. Hooks on the model collect counts and losses, so that no library needs to be
changed; their values stay on the device until training has ended. Imports torch and transformers.
"""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers

from ..protocol.messages import COUNTS, ClockRecord, Job, ProgressCallback
from ..protocol.messages import progress as progress_message
from ..protocol.stopping import APART_FOR_RANKS, StoppingRule
from .memory import peak_resident_bytes, reset_peak_resident
from .ranks import Ranks

_DOING = {
    "model_load": "building the model",
    "data": "preparing the data",
    "setup": "preparing the training",
    "": "reading back what was trained",
}


class StepEnds:
    """Times at which steps ended, ``perf_counter`` seconds. With CUDA they are measured with events.

    ``known()`` returns the ends that are known without waiting; ``all()`` waits for the device once.

    Args:
        device: the device that trains.
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
        """Record the end of a step, whose work has been issued to the device but may still run."""
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
            # elapsed from the previous event, not from the first: CUDA returns float32 milliseconds, which are coarse after an hour
            before = self._ends[-1] if self._ends else self.begin_s
            self._ends.append(before + self._last_event.elapsed_time(event) / 1e3)
            self._last_event = event
        return self._ends

    def all(self) -> list[float]:
        """Return all ends. Waits for the device."""
        if self._pending:
            self._pending[-1].synchronize()
        return self.known()


class Counts:
    """Counts the input of the model in each optimizer step: samples, token slots, tokens, squared lengths and losses.

    The shape of ``input_ids`` is known on the host. Sums over masks and labels stay tensors on the device until ``read``.

    Args:
        sharers: ranks that share each sample; only the first of them counts, so that no sample counts twice.
        rank: this rank.
        divided: whether each of them gets a part of the tokens, not all.
    """

    def __init__(self, sharers: int = 1, rank: int = 0, *, divided: bool = False) -> None:
        self.slots = 0
        # ranks that share samples are consecutive
        self._counts_samples = rank % sharers == 0
        self._divided = divided
        self._steps: list[list[tuple[Any, ...]]] = [[]]
        self._losses: list[list[Any]] = [[]]
        self._trained: Any = 0
        # samples of the batches that are loaded but have not reached the model; data loaders are one batch ahead
        self._loaded: collections.deque[tuple[int, Any]] = collections.deque()

    def watch(self, loader: Any) -> None:
        """Count the samples of each batch in a trainer's data loader: with packing or without padding, a whole batch is one row."""
        loader = getattr(loader, "base_dataloader", loader)
        collate = loader.collate_fn

        def counted(samples: list[Any]) -> Any:
            batch = collate(samples)
            self._loaded.append((len(samples), dict(batch) if self._divided else None))
            return batch

        loader.collate_fn = counted

    def before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: counts a batch."""
        if not module.training:
            return
        loaded, whole = self._loaded.popleft() if self._loaded else (0, None)
        if whole is not None:
            kwargs = whole
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows, slots = ids.shape
        mask, labels, positions = (kwargs.get(key) for key in ("attention_mask", "labels", "position_ids"))
        real: Any = mask.sum() if mask is not None and mask.dim() == 2 else rows * slots
        # no position predicts the first token of a row, so its label is not used
        trained: Any = (labels[:, 1:] != -100).sum() if labels is not None else real - rows
        # summed over the positions p of a document, 2p+1 gives the square of its length, so packed documents need not be separated
        squared: Any = (2 * positions + 1).sum() if positions is not None else rows * slots * slots
        samples = loaded if rows == 1 and loaded else rows
        self.slots += rows * slots
        self._steps[-1].append((samples, rows * slots, real, trained, squared))
        self._trained = trained

    def after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: keeps the loss."""
        loss = getattr(output, "loss", None)
        if not module.training or loss is None:
            return
        # with ``num_items_in_batch`` the model divides its loss by that number, the tokens of the whole optimizer step on all ranks;
        # before release 5 of transformers it includes the first token of each row
        items = kwargs.get("num_items_in_batch")
        self._losses[-1].append(loss.detach() * (self._trained if items is None else items))

    def end_step(self) -> None:
        """Close the current step."""
        self._steps.append([])
        self._losses.append([])

    def read(self) -> dict[str, list[Any]]:
        """Return one list per count, with a number for each step, under the keys of the record. Waits for the device."""
        columns: dict[str, list[Any]] = {field: [] for field in COUNTS}
        for passes in self._steps[:-1]:
            for i, field in enumerate(COUNTS):
                columns[field].append(sum(int(one[i]) for one in passes) if self._counts_samples else 0)
        # an empty list means that the model returns no loss, None in the list that a loss is not finite
        columns["losses"] = [_sum(losses) for losses in self._losses[:-1]] if any(self._losses) else []
        if not self._counts_samples and not self._divided:
            # another rank computed the loss of the same tokens, and reports it
            columns["losses"] = [0.0 for _ in columns["losses"]]
        return columns


def _sum(losses: list[Any]) -> float | None:
    """Return the loss of a step, summed over its forward passes; None if it is not finite."""
    total = sum(float(loss.float().mean()) for loss in losses)
    return total if math.isfinite(total) else None


class Clock:
    """Times one measurement and decides when to stop it.

    Args:
        job: the job.
        progress: called when a phase begins, and at most about twice a second during training.
    """

    def __init__(self, job: Job, progress: ProgressCallback) -> None:
        workload = job.workload
        self._progress = progress
        self._world_size = job.world_size
        self._ranks = Ranks(job.rank, job.world_size)
        self._max_steps = workload.max_steps
        self._phase = "starting"
        self.stopping = StoppingRule(
            target_ci_percent=workload.target_ci_percent,
            max_steps=workload.max_steps,
            stop_after_seconds=workload.stop_after_seconds or None,
            checks_apart=APART_FOR_RANKS if self._world_size > 1 else 1,
            min_steps=workload.min_steps,
        )
        self.phases: dict[str, float] = {}
        self.stopped_by = ""
        self.model: torch.nn.Module | None = None
        self._ends: StepEnds | None = None
        self._counts = Counts(workload.sharers, job.rank, divided=workload.context_parallel_size > 1)
        self._groups = job.world_size // workload.sharers
        self._hooks: list[Any] = []
        self._added = 0
        self._steps = 0
        self._warm = False
        self._last_progress_s = 0.0
        # one entry for each step until warm-up has ended, then one for all further steps together
        self._peaks: list[dict[str, int]] = []
        self._resident_peak_is_reset = False

    @property
    def callback(self) -> transformers.TrainerCallback:
        """The callback that the stack passes to its trainer."""
        return StepCallback(self)

    @property
    def doing(self) -> str:
        """What the measurement does now, for a message: ``building the model``, ``training step 3``."""
        return f"training step {self._steps + 1}" if self._phase == "train" else _DOING.get(self._phase, self._phase)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase under the key ``<name>_s``, and report it as progress."""
        self._progress(progress_message(name.replace("_", " ")))
        self._phase = name
        begin = time.perf_counter()
        try:
            yield
            if name == "train":
                self._phase = ""
        finally:
            self.phases[f"{name}_s"] = self.phases.get(f"{name}_s", 0.0) + time.perf_counter() - begin

    def begin(self, model: torch.nn.Module, loader: Any = None) -> None:
        """Start the clock.

        Args:
            model: the model to train; its forward passes are counted.
            loader: the data loader of its batches; None: each row counts as a sample.
        """
        self.model = model
        if loader is not None:
            self._counts.watch(loader)
        device = next(model.parameters()).device
        self._hooks = [
            model.register_forward_pre_hook(self._counts.before, with_kwargs=True),
            model.register_forward_hook(self._counts.after, with_kwargs=True),
        ]
        self._resident_peak_is_reset = _reset_peaks()
        self._progress({"event": "progress", "state": "training", "step": 0, "of": self._max_steps})
        self._ranks.start()
        self._ends = StepEnds(device)

    def end_step(self) -> bool:
        """Record the end of an optimizer step; return True if all ranks stop after it."""
        assert self._ends is not None
        self._ends.mark()
        self._counts.end_step()
        self._steps += 1
        self._add_durations(self._ends.known())
        self._report_progress()
        self._record_peaks()
        if not self.stopping.check_steps(self._steps):
            return False
        # max_steps also counts steps that are issued but have not ended on the device
        limit = "max_steps" if self._steps >= self._max_steps else ""
        self.stopped_by = self._ranks.agree(self.stopping.should_stop() or limit)
        return bool(self.stopped_by)

    def end(self) -> None:
        """Stop the clock: wait for the device and remove the hooks."""
        assert self._ends is not None
        self._ends.all()
        self._peaks.append(_peaks(resident=self._resident_peak_is_reset))
        for hook in self._hooks:
            hook.remove()

    def record(self) -> ClockRecord:
        """Return the clock's part of the record."""
        assert self._ends is not None
        ends = self._ends.all()
        self._add_durations(ends)
        warmup_steps = self._ranks.share(self.stopping.warmup_steps)
        record = {
            "train_begin_s": self._ends.begin_s,
            "step_end_s": ends,
            **self._counts.read(),
            "warmup_steps": warmup_steps,
            "steady": bool(self._ranks.share(int(self.stopping.steady))),
            "stopped_by": self.stopped_by or "data",
            "phases": self.phases,
            **self._measured_peaks(warmup_steps),
        }
        return cast("ClockRecord", record)

    def _add_durations(self, ends: list[float]) -> None:
        assert self._ends is not None
        previous = ends[self._added - 1] if self._added else self._ends.begin_s
        for end in ends[self._added :]:
            self.stopping.add(end - previous)
            previous = end
        self._added = len(ends)

    def _record_peaks(self) -> None:
        # Which steps are measured is known only once warm-up has ended. Until then peaks are recorded for each step, so that those of
        # warm-up (autotuning, caches) can be excluded
        if self._warm:
            return
        self._peaks.append(_peaks(resident=self._resident_peak_is_reset))
        _reset_peaks()
        self._warm = self.stopping.warm

    def _measured_peaks(self, warmup_steps: int) -> dict[str, int]:
        measured = self._peaks[min(warmup_steps, len(self._peaks) - 1) :]
        return {name: max(peaks[name] for peaks in measured) for name in measured[0]}

    def _report_progress(self) -> None:
        assert self._ends is not None
        now = time.perf_counter()
        if now - self._last_progress_s < 0.5:
            return
        self._last_progress_s = now
        rate = self._groups * self._counts.slots / (now - self._ends.begin_s)
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
    """Reset the peaks; return False where the peak of the resident set cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return reset_peak_resident()


class StepCallback(transformers.TrainerCallback):
    """Calls the methods of a ``Clock`` from a ``transformers.Trainer``."""

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
