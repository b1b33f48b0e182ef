"""Measures the time per step that the plugin's own functions take during training: clock, counts and stopping rule.

python instrumented.py JOB.json RESULT.json; run by ``fidelity.py`` in the training environment. It imports only ``stack`` and
``trainer`` of the plugin.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ado_actuators.sfttrainer import stack
from ado_actuators.sfttrainer.core.protocol.messages import Job, Progress, ProgressCallback
from ado_actuators.sfttrainer.core.trainer import timing


class TimedCounts(timing.Counts):
    """Adds up the time spent in the hooks, seconds."""

    spent_s = 0.0

    def before(self, *call: Any) -> None:  # noqa: D102
        begin = time.perf_counter()
        super().before(*call)
        self.spent_s += time.perf_counter() - begin

    def after(self, *call: Any) -> None:  # noqa: D102
        begin = time.perf_counter()
        super().after(*call)
        self.spent_s += time.perf_counter() - begin


class TimedClock(timing.Clock):
    """Notes the time that each step spends in the plugin's code, seconds."""

    def __init__(self, job: Job, progress: ProgressCallback) -> None:
        super().__init__(job, progress)
        # the hooks are bound methods of this object, so it is replaced before training begins
        self._counts = self.counts = TimedCounts()
        self.spent_s: list[float] = []
        self.arguments: dict[str, Any] = {}
        self.timer_s = 0.0

    @property
    def callback(self) -> timing.StepCallback:
        """The plugin's callback, which here also keeps the arguments of the trainer."""
        clock = self

        class Callback(timing.StepCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.arguments = args.to_dict()
                super().on_train_begin(args, state, control, **kwargs)

        return Callback(self)

    def end(self) -> None:
        """Record the wall clock after synchronisation; the clock began after one, too."""
        super().end()
        assert self._ends is not None
        self.timer_s = time.perf_counter() - self._ends.begin_s

    def end_step(self) -> bool:  # noqa: D102
        begin = time.perf_counter()
        stop = super().end_step()
        self.spent_s.append(time.perf_counter() - begin + self.counts.spent_s)
        self.counts.spent_s = 0.0
        return stop


def main(job: Job) -> dict[str, Any]:
    """Train as ``job`` says; return the duration of each step, the plugin's share of it, and all steps by two clocks, seconds."""
    torch.set_num_threads(job.threads)
    Path(job.run_dir).mkdir(parents=True, exist_ok=True)
    with Path(os.devnull).open("w", encoding="utf-8") as channel:

        def tell(message: Progress) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        clock = TimedClock(job, tell)
        stack.load()
        stack.train(job, clock)
    record = clock.record()
    edges = [record["train_begin_s"], *record["step_end_s"]]
    return {
        "step_s": [after - before for before, after in itertools.pairwise(edges)],
        "spent_s": clock.spent_s,
        "clock_s": edges[-1] - edges[0],
        "timer_s": clock.timer_s,
        "arguments": clock.arguments,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(Job.from_line(Path(sys.argv[1]).read_text())), default=str))
