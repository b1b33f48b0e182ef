"""A stack with requested faults; test_faults.py puts it into a temporary plugin. Runs in the trainer."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from .core.protocol.messages import Job

PACKAGES = ()
kept: list[bytearray] = []


def die() -> None:
    """End as if killed by another process."""
    os.kill(os.getpid(), signal.SIGKILL)


def load() -> None:
    """Import what a real stack imports, or end the process if the test requests it."""
    if os.environ.get("FAULTY_IMPORT"):
        die()
    import accelerate  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401


def say(line: str) -> None:
    """Write a line to the pipe of messages."""
    gc.unfreeze()
    channels = [one for one in gc.get_objects() if isinstance(one, io.TextIOWrapper) and one.fileno() > 2]
    for channel in channels:
        if channel.writable():
            channel.write(f"{line}\n")
            channel.flush()


class Config:
    """Configuration of a model."""

    def __init__(self, what: str) -> None:
        self.what = what

    def to_dict(self) -> dict[str, str]:
        """Return the configuration, or end the process if the test requests it."""
        if self.what == "kill while reporting":
            die()
        if self.what == "error while reporting":
            raise ValueError("no configuration")
        return {"model_type": "linear"}


def train(job: Job, clock: Any) -> dict[str, Any]:
    """Cause the fault that ``dataset_text_field`` names; after @ follows the only rank that has it."""
    import torch

    what, _, rank = job.workload.dataset_text_field.partition("@")
    if what == "late" and int(rank) == job.rank:
        what = "late after training"
    elif rank and what != "late" and int(rank) != job.rank:
        time.sleep(60)
    if what == "kill":
        die()
    if what == "kill while loading":
        with clock.phase("model_load"):
            die()
    if what == "address space":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        torch.ones(2**29)
    if what == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what in ("child", "busy child"):
        import subprocess

        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        Path(os.environ["FAULTY"], "child").write_text(str(started.pid))
        if what == "busy child":
            # one long call that lets no other thread run
            sum(range(10**10))
        time.sleep(60)
    if what == "flood":
        block = b"x" * 2**20
        for _ in range(1024):
            os.write(1, block)
    if what == "garbage":
        say("no record")
        time.sleep(30)
    if what == "empty record":
        say('{"event": "record"}')
        time.sleep(30)
    if what == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if what in ("oom among peers", "error among peers"):
        torch.distributed.init_process_group("gloo")
        if job.rank == 1 and what == "error among peers":
            raise ValueError("rank 1 has no data.")
        if job.rank == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        torch.distributed.all_reduce(torch.ones(1))
    if what == "leak":
        # written to, so that the memory is resident
        kept.append(bytearray(b"x") * (900 * 2**20))
    if what == "segfault":
        import ctypes

        ctypes.string_at(0)
    model = torch.nn.Linear(2, 2)
    model.config = Config(what)
    clock.begin(model)
    for step in range(1, job.workload.max_steps + 1):
        if what == f"kill in step {step}":
            die()
        time.sleep(0.01)
        if clock.end_step():
            break
    clock.end()
    if what == "late after training":
        time.sleep(2)
    return {}
