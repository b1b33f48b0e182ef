"""TRL's real stack, with a fault in the third step if the workload's seed selects one. Runs in the training environment."""

from __future__ import annotations

import gc
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import trl_stack
from .core.protocol.messages import Job

PACKAGES = trl_stack.PACKAGES
load = trl_stack.load
FAULTY_STEP = 3


def train(job: Job, clock: Any) -> dict[str, Any]:
    """Train as TRL does until the fault, if there is one."""
    fault = FAULTS.get(job.workload.seed % 100)
    if fault is not None:
        _after_step(clock, lambda: fault(job))
    return trl_stack.train(job, clock)


def _after_step(clock: Any, act: Callable[[], None]) -> None:
    end_step, ended = clock.end_step, [0]

    def faulty_end() -> bool:
        ended[0] += 1
        if ended[0] == FAULTY_STEP:
            act()
        return bool(end_step())

    clock.end_step = faulty_end


def _once(job: Job, number: int) -> None:
    """Send this process a signal, the first time that this workload gets here."""
    workload = job.workload
    marker = Path(job.cache_dir).parent / "injected" / f"{workload.seed}-{workload.batch_size}"
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        os.kill(os.getpid(), number)


def _kill(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(job: Job) -> None:
    raise ValueError("injected")


def _gpu_memory(job: Job) -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB.")


def _host_memory(job: Job) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes.")


def _garbage(job: Job) -> None:
    gc.unfreeze()  # the trainer has frozen its channel, so that the collector ignores it
    for one in gc.get_objects():
        if isinstance(one, io.TextIOWrapper) and one.writable() and one.fileno() > 2:
            one.write("no record\n")
            one.flush()


FAULTS: dict[int, Callable[[Job], None]] = {
    **dict.fromkeys((3, 23, 43), lambda job: _once(job, signal.SIGKILL)),
    63: _kill,
    83: lambda job: _once(job, signal.SIGSEGV),
    **dict.fromkeys((13, 33), _fail),
    53: _gpu_memory,
    73: _host_memory,
    93: _garbage,
}
