"""A host holds the trainer processes of one node: starts them, hands them jobs, watches, limits and replaces them.

Process room: standard library and psutil (through ``devices``); neither ado nor Ray, so that it also works by itself under ``run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import failures
from ..measurement.outcome import Outcome
from ..measurement.plugin import ENVIRONMENTS
from . import environment
from . import sampler as devices
from . import state_dir as places
from .trainer_process import TrainerProcess

Progress = Callable[[dict[str, Any]], None]
STARTUP_TIMEOUT_S = 600.0
# a rank that lost its peer may speak before the peer that ran out of memory
LATE_CAUSE_S = 2.0
RELEASE_TIMEOUT_S = 30.0
LEFTOVER_S = 7 * 86400.0
LEAK_ALLOWANCE_BYTES = {"rss_bytes": 768 * 2**20, "allocated_bytes": 128 * 2**20}


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """What a host provides; two measurements with equal specs can use the same trainers.

    Attributes:
        environment: ``current``, ``managed`` or the path of a Python interpreter.
        requirements: pinned list of a managed environment, a file name in the plugin's ``environments``; or None.
        processes: trainer processes of this node.
        gpus: GPUs of this node, all visible to each process.
        threads: CPU threads of each process; 0 divides the node's CPUs evenly.
        state_dir: directory for logs and run files as configured: each node finds its own.
        reuse: whether a trainer may measure more than once.
    """

    environment: str
    requirements: str | None
    processes: int
    gpus: int
    threads: int
    state_dir: str
    reuse: bool = True


class Host:
    """The trainer processes of one node."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self._state_dir = places.state_dir(spec.state_dir)
        self._trainers: list[TrainerProcess] = []
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._base: list[dict[str, Any]] = []
        self._measured = 0
        self._begun_s = 0.0
        self._intact = False
        self._idle: dict[int, dict[str, Any]] = {}
        self._failed_rank = 0
        self._place = Path()

    def start(self, progress: Progress = lambda news: None) -> None:
        """Start the trainers and return; their imports go on meanwhile. Building a managed environment is waited for.

        Raises:
            failures.Failure: the environment cannot be used.
        """
        _sweep(self._state_dir / "runs")
        python = environment.resolve(
            self.spec.environment,
            requirements=ENVIRONMENTS / self.spec.requirements if self.spec.requirements else None,
            cache_dir=self._state_dir / "environments",
            progress=lambda line: progress({"state": line}),
        )
        self._place = python.parent.parent
        # building an environment has a limit of its own
        self._begun_s = time.perf_counter()
        self._messages = queue.Queue()
        self._measured = 0
        self._base = [{}] * self.spec.processes
        mask = visible_mask(self.spec.gpus)
        threads = self.spec.threads or max(1, cpu_count() // self.spec.processes)
        logs = self._state_dir / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise failures.Broken(f"nothing can be written in {self._state_dir}: {error.strerror}.") from None
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        # one by one: should one not start, those before it are known and are ended
        for rank in range(self.spec.processes):
            self._trainers.append(
                TrainerProcess(
                    python=python,
                    local_rank=rank,
                    threads=threads,
                    mask=mask,
                    log=logs / f"{stamp}-{time.monotonic_ns() % 10**9:09d}-{rank}.log",
                    messages=self._messages,
                    own_environment=self.spec.environment == "current",
                )
            )

    def address(self) -> tuple[str, int]:
        """Return an address of this node and a port free at this moment, for a rendezvous here."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return node_address(), probe.getsockname()[1]

    def measure(self, job: dict[str, Any], run_timeout_s: float, progress: Progress = lambda news: None) -> Outcome:
        """Measure ``job`` on this host's trainers.

        Args:
            job: the job of docs/architecture.md with ``rank`` that of the first local process; ``alone`` gives it fresh
                trainers, which nothing after it will use.
            run_timeout_s: limit in seconds from the moment the trainers have the workload.
            progress: called with the trainers' news.
        """
        begin, progress = time.perf_counter(), _unheard(progress)
        # of this node, unless the job names some
        job = {
            "run_dir": str(self._state_dir / "runs" / job["id"]),
            "cache_dir": str(self._state_dir / "models"),
            **job,
        }
        if any(trainer.ready and not trainer.alive for trainer in self._trainers):
            # killed while it had nothing to do, which is no fault of this measurement
            self.close()
        reused = self._measured > 0 and not job["alone"]
        log = ""
        summary: dict[str, Any] = {"properties": {}, "omitted": {}, "describe": devices.describe([])}
        records: list[dict[str, Any]] = []
        cause: failures.Cause | None = None
        startup_s = 0.0
        self._intact = False
        self._failed_rank = 0
        if job["alone"] and self._measured:
            self.close()
        try:
            if not self._trainers:
                self.start(progress)
            self._await_ready(progress)
            startup_s = time.perf_counter() - begin
            records, summary = self._run(job, run_timeout_s, progress)
        except failures.Failure as failure:
            cause = failure.cause
        except environment.EnvironmentProblem as problem:
            cause = failures.BadInput(str(problem)).cause
            log = str(problem.log or log)
        except Exception as error:
            cause = failures.classify_exception(type(error).__name__, str(error))
        except BaseException:
            # interrupted: what a trainer makes after the removal below would stay
            self.close()
            raise
        finally:
            shutil.rmtree(job["run_dir"], ignore_errors=True)
        log = log or (str(self._trainers[self._failed_rank].log) if self._trainers else "")
        if job["alone"] or not self.spec.reuse or (cause is not None and not self._intact):
            self.close()
            # what a trainer wrote between the removal and its end
            shutil.rmtree(job["run_dir"], ignore_errors=True)
        else:
            self._measured += 1
            self._settle()
        return Outcome(
            records=records,
            cause=cause,
            device=summary,
            total_s=time.perf_counter() - begin,
            startup_s=startup_s,
            log=log,
            hostname=socket.gethostname(),
            reused=reused,
        )

    def close(self) -> None:
        """End the trainers and everything they started."""
        for trainer in self._trainers:
            trainer.kill()
        self._trainers = []
        self._measured = 0

    # -- inside a measurement ------------------------------------------------------------------------------

    def _await_ready(self, progress: Progress) -> None:
        deadline = self._begun_s + STARTUP_TIMEOUT_S
        while waiting := [t for t in self._trainers if not t.ready]:
            progress({"state": "starting"})
            rank, message = self._next(deadline, f"the trainer did not start within {STARTUP_TIMEOUT_S:.0f} s.")
            if message is not None and message.get("missing") and self.spec.environment == "managed":
                raise failures.BadInput(
                    f"The managed environment lacks the package {message['missing']!r}: remove {self._place} and it is built anew."
                )
            if message is None or message["event"] == "failure":
                raise self._failure(rank, message)
            if message["event"] == "ready":
                self._trainers[rank].ready = True
                self._base[rank] = message
        assert not waiting

    def _run(
        self, job: dict[str, Any], run_timeout_s: float, progress: Progress
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        visible = devices.visible_devices(visible_mask(self.spec.gpus))
        sampler = devices.Sampler(visible, [trainer.pid for trainer in self._trainers])
        sampler.start()
        deadline = time.perf_counter() + run_timeout_s
        try:
            for local_rank, trainer in enumerate(self._trainers):
                trainer.send({"job": {**job, "rank": job["rank"] + local_rank, "local_rank": local_rank}})
            records = self._collect(deadline, run_timeout_s, progress)
        finally:
            samples = sampler.stop()
        begin_s, end_s = measured_phase(records)
        properties, omitted = devices.summarise(samples, begin_s, end_s)
        return records, {"properties": properties, "omitted": omitted, "describe": devices.describe(visible)}

    def _collect(self, deadline: float, run_timeout_s: float, progress: Progress) -> list[dict[str, Any]]:
        records: dict[int, dict[str, Any]] = {}
        self._idle = {}
        while len(records) < len(self._trainers):
            rank, message = self._next(deadline, f"the measurement took longer than run_timeout_s {run_timeout_s:g} s.")
            if message is None or message["event"] == "failure":
                # what a stack refuses by itself, before training, leaves its process as it was
                self._intact = (
                    len(self._trainers) == 1 and message is not None and message["kind"] in ("refused", "broken")
                )
                raise self._first_cause(self._failure(rank, message))
            if message["event"] == "progress":
                progress(message)
            elif message["event"] == "record":
                records[rank] = message
            elif message["event"] == "idle":
                # this rank is done while others still report
                self._idle[rank] = message
        return [records[rank] for rank in sorted(records)]

    def _settle(self) -> None:
        """Wait until the trainers have given everything back; replace them if they did not."""
        idle, self._idle = self._idle, {}
        try:
            deadline = time.perf_counter() + RELEASE_TIMEOUT_S
            while len(idle) < len(self._trainers):
                rank, message = self._next(deadline, "memory was not given back.")
                if message is None:
                    raise failures.Transient("the trainer ended after the measurement.")
                if message["event"] == "idle":
                    idle[rank] = message
        except failures.Failure:
            self.close()
            return
        if any(leaks(idle[rank], self._base[rank]) for rank in idle):
            self.close()

    def _next(self, deadline: float, sentence: str) -> tuple[int, dict[str, Any] | None]:
        try:
            return self._messages.get(timeout=max(0.0, deadline - time.perf_counter()))
        except queue.Empty:
            raise failures.Broken(sentence) from None

    def _failure(self, rank: int, message: dict[str, Any] | None) -> failures.Failure:
        trainer = self._trainers[rank]
        self._failed_rank = rank
        if message is None:
            return trainer.died()
        return failures.from_message(message)

    def _first_cause(self, failure: failures.Failure) -> failures.Failure:
        """Return the failure of the rank that failed for a reason of its own, if one speaks up soon: others lost its connection."""
        deadline = time.perf_counter() + LATE_CAUSE_S
        while len(self._trainers) > 1 and not isinstance(failure, failures.CannotRun):
            try:
                rank, message = self._messages.get(timeout=max(0.0, deadline - time.perf_counter()))
            except queue.Empty:
                break
            if message is None or message["event"] == "failure":
                first, later = self._failed_rank, self._failure(rank, message)
                if failures.most_telling([failure.cause, later.cause]) == failure.cause:
                    self._failed_rank = first
                else:
                    failure = later
        return failure


def measured_phase(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Return begin and end of the measured phase of these records, ``perf_counter`` seconds of their node."""
    first = records[0]
    edges = [first["train_begin_s"], *first["step_end_s"]]
    return edges[first["warmup_steps"]], edges[-1]


def leaks(now: dict[str, Any], base: dict[str, Any]) -> bool:
    """Whether a trainer holds more than its base line after a measurement."""
    return any(now[key] - base[key] > allowed for key, allowed in LEAK_ALLOWANCE_BYTES.items() if key in base)


def visible_mask(gpus: int) -> str:
    """Return CUDA_VISIBLE_DEVICES for trainers that use the first ``gpus`` of what this process may see."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mine is None:
        return ",".join(str(index) for index in range(gpus))
    return ",".join([entry.strip() for entry in mine.split(",")][:gpus])


def _unheard(progress: Progress) -> Progress:
    """Return ``progress`` without its troubles: a measurement goes on when nobody reads its news any more."""

    def tell(news: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            progress(news)

    return tell


def _sweep(runs: Path) -> None:
    """Remove what measurements left that were killed from outside a week ago or more."""
    with contextlib.suppress(OSError):
        for left in runs.iterdir():
            if left.stat().st_mtime < time.time() - LEFTOVER_S:
                shutil.rmtree(left, ignore_errors=True)


def cpu_count() -> int:
    """Return the CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node_address() -> str:
    """Return the address other nodes reach this one at; loopback when there is no network."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET: nothing is sent, the kernel only picks the interface
        return str(probe.getsockname()[0])
    return "127.0.0.1"
