"""The trainer process: reads jobs, measures them one after the other and writes messages for the host.

Jobs arrive on standard input. Messages (``core.protocol.messages``) go to a copy of standard output; file descriptor 1 itself is
redirected to the log, so that no library can write between two messages. When standard input is closed, the host has ended, and a
thread kills the whole process group. If the main thread blocks that thread, the host's guard process does it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ..protocol.messages import (
    EstimateRecord,
    FailureMessage,
    Idle,
    Job,
    JobWorkload,
    JsonObject,
    MemoryInUse,
    Message,
    ProgressCallback,
    Ready,
    Record,
    bounded,
)
from . import accelerate_state, deepspeed
from .errors import BadInput, Refused

if TYPE_CHECKING:
    from .memory_estimate.kept import Kept
    from .stack import Stack
    from .timing import Clock

BASE_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
# of linux/prctl.h: the signal that a process gets when its parent ends
_PR_SET_PDEATHSIG = 1
# and that a process becomes the parent of descendants whose parent ends
_PR_SET_CHILD_SUBREAPER = 36


def main(stack_module: str) -> None:
    """Measure jobs until the host closes standard input."""
    begin = time.perf_counter()
    _adopt_orphans()
    _continue_with_host_end()
    channel = _take_stdout()
    jobs = _follow(_take_stdin())
    try:
        stack = cast("Stack", importlib.import_module(stack_module))
        stack.load()
        # otherwise the first measurement would import it within its time limit
        from . import timing  # noqa: F401
    except Exception as error:
        traceback.print_exc()
        _send(
            channel,
            _import_failure(error) if isinstance(error, ImportError) else _failure(error, "importing libraries"),
        )
        return
    # imported modules are never freed; without this both full collections of a measurement would traverse them
    gc.freeze()
    versions = _versions(stack)
    startup_s = time.perf_counter() - begin
    ready: Ready = {
        "event": "ready",
        "versions": versions,
        "pid": os.getpid(),
        "startup_s": startup_s,
        **_release_memory(),
    }
    _send(channel, ready)
    from .memory_estimate.kept import Kept

    kept = Kept()
    while (job := jobs.get()) is not None:
        _send(channel, _answer(stack, job, channel, versions, kept))
        idle: Idle = {"event": "idle", **_release_memory()}
        _send(channel, idle)


def _answer(
    stack: Stack, job: Job, channel: IO[str], versions: dict[str, str], kept: Kept
) -> Record | EstimateRecord | FailureMessage:
    """Measure one job. This frame holds all objects of the measurement: returning from it frees the model."""
    doing = ["starting"]
    try:
        record = _measure(stack, job, _progress_callback(channel, job), doing, kept)
        record["versions"] = versions
        return record
    except (Refused, BadInput) as error:
        if error.__cause__ is not None:
            # the message says what to do; the log where it happened
            traceback.print_exc()
        return _known_failure(error)
    except BaseException as error:
        traceback.print_exc()
        # the traceback's frames refer to the model and would keep its memory allocated
        traceback.clear_frames(error.__traceback__)
        return _failure(error, doing[-1])


def _known_failure(error: Refused | BadInput) -> FailureMessage:
    kind: Literal["refused", "bad_input"] = "refused" if isinstance(error, Refused) else "bad_input"
    return {
        "event": "failure",
        "kind": kind,
        "type": type(error).__name__,
        "text": str(error),
        "quotes": error.quotes,
    }


def _failure(error: BaseException, doing: str) -> FailureMessage:
    return {
        "event": "failure",
        "kind": "exception",
        "type": type(error).__name__,
        "text": bounded(str(error)),
        "doing": doing,
    }


def _import_failure(error: ImportError) -> FailureMessage:
    return {
        "event": "failure",
        "kind": "import",
        "type": type(error).__name__,
        "text": str(error),
        "missing": error.name,
    }


# -- one job ---------------------------------------------------------------------------------------------------


def _measure(
    stack: Stack, job: Job, progress: ProgressCallback, doing: list[str], kept: Kept
) -> Record | EstimateRecord:
    Path(job.run_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    begin = time.perf_counter()
    with _distributed(job):
        if job.task == "memory_estimate":
            doing.append("estimating memory")
            return _estimate(stack, job, progress, kept)
        record = _train(stack, job, progress, doing)
        record["phases"]["measurement_s"] = time.perf_counter() - begin
        return record


def _estimate(stack: Stack, job: Job, progress: ProgressCallback, kept: Kept) -> EstimateRecord:
    from .memory_estimate import estimate

    found = estimate.record(stack, job, progress, kept)
    found["architecture"] = _json_values(found["architecture"])
    # the caller adds the versions
    return cast("EstimateRecord", {"event": "record", **found, "rank": 0, "world_size": 1})


def _train(stack: Stack, job: Job, progress: ProgressCallback, doing: list[str]) -> Record:
    from .timing import Clock

    clock = Clock(job, progress)
    try:
        facts = stack.train(job, clock)
    finally:
        doing.append(clock.doing)
    if clock.model is None:
        raise BadInput("The training library ended without training; see the log.")
    doing.append("reading back what was trained")
    return _record(job, clock, facts)


def _record(job: Job, clock: Clock, facts: JsonObject) -> Record:
    from . import flop_counter

    model: Any = clock.model
    parameters = list(model.parameters())
    if job.rank == 0 and (counted := flop_counter.facts(model.config, images=bool(job.workload.dataset_image_field))):
        facts |= counted
        facts["notes"] = [*facts.get("notes", ()), flop_counter.note(model.config)]
    # a stack counts the parameters itself if they are sharded or quantised
    total = facts.pop("model_parameters", None) or sum(one.numel() for one in parameters)
    trainable = facts.pop("trainable_parameters", None) or sum(one.numel() for one in parameters if one.requires_grad)
    record = {
        "event": "record",
        "rank": job.rank,
        "world_size": job.world_size,
        **clock.record(),
        "model_parameters": total,
        "trainable_parameters": trainable,
        "architecture": _json_values(model.config.to_dict()),
        "facts": {
            "device": str(parameters[0].device),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "cpu_threads": _cpu_threads(),
            **({"float32_products": float32_products()} if parameters[0].is_cuda else {}),
            **facts,
        },
    }
    return cast("Record", record)


def _cpu_threads() -> int:
    """Return the CPU threads that this process trains with."""
    import torch

    return int(torch.get_num_threads())


def float32_products() -> str:
    """Return the precision of float32 matrix products with CUDA: ``float32``, or ``tf32``, which libraries enable for torch.compile."""
    import torch

    matmul = torch.backends.cuda.matmul
    # torch before 2.9 has only ``allow_tf32``; later releases raise an error if both settings are used
    precision = getattr(matmul, "fp32_precision", None)
    return "tf32" if (matmul.allow_tf32 if precision is None else precision == "tf32") else "float32"


@contextlib.contextmanager
def _distributed(job: Job) -> Iterator[None]:
    """Set the environment variables that torchrun would set; afterwards reset them and accelerate's state for the next job."""
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    with accelerate_state.restored():
        if job.world_size > 1 or deepspeed.is_used(job.workload):
            os.environ.update(deepspeed.variables(job.workload))
            os.environ.update(_rank_variables(job) | _nccl_variables(job.workload))
        try:
            yield
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _rank_variables(job: Job) -> dict[str, str]:
    return {
        "RANK": str(job.rank),
        "WORLD_SIZE": str(job.world_size),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.local_world_size),
        "MASTER_ADDR": job.master_addr,
        "MASTER_PORT": str(job.master_port),
    }


def _nccl_variables(workload: JobWorkload) -> dict[str, str]:
    """Return the environment variables with which ``enable_roce`` configures NCCL; empty on a single node."""
    if workload.number_nodes == 1:
        return {}
    # GID index 3 is RoCE version 2
    return {"NCCL_IB_DISABLE": "0", "NCCL_IB_GID_INDEX": "3"} if workload.enable_roce else {"NCCL_IB_DISABLE": "1"}


def _release_memory() -> MemoryInUse:
    from .memory import in_use_bytes, release

    release()
    return in_use_bytes()


def _json_values(value: Any) -> Any:
    """Return ``value`` with everything JSON cannot represent, such as infinity, replaced by its text."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)


def _versions(stack: Stack) -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in (*BASE_PACKAGES, *stack.PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


# -- the pipes to the host -------------------------------------------------------------------------------------


def _progress_callback(channel: IO[str], job: Job) -> ProgressCallback:
    """Return the function that sends progress; only rank 0 does."""
    if job.rank != 0:
        return lambda message: None
    return lambda message: _send(channel, message)


def _send(channel: IO[str], message: Message) -> None:
    channel.write(json.dumps(message, allow_nan=False) + "\n")
    channel.flush()


def _take_stdout() -> IO[str]:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parents end, so that the host finds them below this process; on Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _continue_with_host_end() -> None:
    """Have the kernel continue this process when its host ends, so that a stopped one notices it; on Linux only."""
    # also sent when the thread of the host that started this process ends, which does no harm
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def _take_stdin() -> IO[str]:
    """Return a copy of standard input, which is empty from then on.

    A process that is forked, such as a worker of a data loader, closes its standard input, and would wait for ever for a thread that
    reads it in the parent.
    """
    channel = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    return channel


def _follow(channel: IO[str]) -> queue.Queue[Job | None]:
    """Return the queue of jobs that a thread fills from the host's lines; the thread kills the process group when they end."""
    jobs: queue.Queue[Job | None] = queue.Queue()

    def follow() -> None:
        for line in channel:
            jobs.put(Job.from_line(line))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, name="host-watch", daemon=True).start()
    return jobs
