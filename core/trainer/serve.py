"""The trainer process: reads jobs, measures them one after the other, writes one JSON line for each thing worth telling.

Trainer room. Jobs come on standard input. Answers go to a private copy of standard output, while file descriptor 1 itself is pointed
at the log, so that no library can write between two records. When standard input ends, the host is gone and the process ends
its whole process group, wherever the main thread is; where that thread does not get to run, the host's guard does it.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import Broken, Refused

BASE_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def main(stack_module: str) -> None:
    """Serve until the host closes standard input."""
    born = time.perf_counter()
    channel = _take_stdout()
    jobs = _follow_stdin()
    try:
        stack = importlib.import_module(stack_module)
        stack.load()
        # what the first measurement would otherwise import within its time limit
        from . import timing  # noqa: F401
    except ImportError as error:
        traceback.print_exc()
        _send(channel, event="failure", kind="import", type=type(error).__name__, text=str(error), missing=error.name)
        return
    # modules stay as long as the process: each full collection, two in a measurement, would walk over all of them again
    gc.freeze()
    versions = _versions(stack)
    startup_s = time.perf_counter() - born
    _send(channel, event="ready", versions=versions, pid=os.getpid(), startup_s=startup_s, **_give_back())
    while (job := jobs.get()) is not None:
        _send(channel, **_answer(stack, job, channel, versions))
        _send(channel, event="idle", **_give_back())


def _answer(stack: ModuleType, job: dict[str, Any], channel: Any, versions: dict[str, str]) -> dict[str, Any]:
    # one function frame holds everything of a measurement, so that leaving it frees the model
    try:
        return _measure(stack, job, channel) | {"versions": versions}
    except Refused as error:
        return {"event": "failure", "kind": "refused", "type": "Refused", "text": str(error)}
    except Broken as error:
        return {"event": "failure", "kind": "broken", "type": "Broken", "text": str(error)}
    except BaseException as error:
        traceback.print_exc()
        text = str(error)
        # the frames of the traceback hold the model: without this the memory would stay
        traceback.clear_frames(error.__traceback__)
        return {"event": "failure", "kind": "exception", "type": type(error).__name__, "text": text[-4000:]}


def _measure(stack: ModuleType, job: dict[str, Any], channel: Any) -> dict[str, Any]:
    from .timing import Clock

    Path(job["run_dir"]).mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    tell = _teller(channel, job)
    with _distributed(job):
        if job["task"] == "memory_estimate":
            from .memory_estimate import estimate

            made = estimate.record(stack, job, tell)
            alone = {"rank": 0, "world_size": 1}
            return {"event": "record", **made, **alone, "architecture": _plain(made["architecture"])}
        clock = Clock(job, tell)
        facts = stack.train(job, clock)
        model = clock.model
        if model is None:
            raise Broken("the training library ended without training.")
        record = clock.record()
        record["phases"]["measurement_s"] = time.perf_counter() - begin
        parameters = list(model.parameters())
        return {
            "event": "record",
            "rank": job["rank"],
            "world_size": job["world_size"],
            **record,
            "model_parameters": facts.pop("model_parameters", None) or sum(p.numel() for p in parameters),
            "trainable_parameters": facts.pop("trainable_parameters", None)
            or sum(p.numel() for p in parameters if p.requires_grad),
            "architecture": _plain(model.config.to_dict()),
            "facts": {
                "device": str(parameters[0].device),
                "dtype": str(parameters[0].dtype).removeprefix("torch."),
                **({"float32_products": float32_products()} if parameters[0].is_cuda else {}),
                **facts,
            },
        }


def float32_products() -> str:
    """Return how CUDA multiplies float32 matrices now: ``tf32``, which libraries switch on for torch.compile, or ``float32``."""
    import torch

    matmul = torch.backends.cuda.matmul
    # torch before 2.9 has the older switch only, later ones refuse to be asked by both
    precision = getattr(matmul, "fp32_precision", None)
    return "tf32" if (matmul.allow_tf32 if precision is None else precision == "tf32") else "float32"


@contextlib.contextmanager
def _distributed(job: dict[str, Any]) -> Any:
    """Describe the ranks as torchrun would, and forget them afterwards, so that the next job can have other ones."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    ours = {
        "RANK": job["rank"],
        "WORLD_SIZE": job["world_size"],
        "LOCAL_RANK": job["local_rank"],
        "LOCAL_WORLD_SIZE": job["local_world_size"],
        "MASTER_ADDR": job["master_addr"],
        "MASTER_PORT": job["master_port"],
    }
    if job["workload"]["number_nodes"] > 1:
        # what NCCL would decide by itself is decided by the property; GID index 3 is RoCE version 2
        ours |= (
            {"NCCL_IB_DISABLE": 0, "NCCL_IB_GID_INDEX": 3} if job["workload"]["enable_roce"] else {"NCCL_IB_DISABLE": 1}
        )
    before = dict(os.environ)
    if job["world_size"] > 1:
        os.environ.update({key: str(value) for key, value in ours.items()})
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        # accelerate leaves variables of its own, such as ACCELERATE_USE_FSDP, which would shape the next job
        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        GradientState._reset_state()


def _give_back() -> dict[str, int]:
    from .memory import in_use_bytes, release

    release()
    return in_use_bytes()


def _teller(channel: Any, job: dict[str, Any]) -> Any:
    if job["rank"] != 0:
        return lambda **news: None
    return lambda **news: _send(channel, event="progress", **news)


def _send(channel: Any, **message: Any) -> None:
    channel.write(json.dumps(message, allow_nan=False) + "\n")
    channel.flush()


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can carry it; what it can't, infinity among it, becomes its text."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)


def _versions(stack: ModuleType) -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in (*BASE_PACKAGES, *stack.PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _take_stdout() -> Any:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _follow_stdin() -> queue.Queue[dict[str, Any] | None]:
    jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def follow() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line)["job"])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, name="host-watch", daemon=True).start()
    return jobs
