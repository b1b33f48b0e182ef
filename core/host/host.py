"""A host runs the trainer processes of one node: it starts them, sends them jobs, enforces time limits and replaces them.

Imports neither ado nor Ray, so that it also works without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import failures
from ..measurement.outcome import Outcome
from ..measurement.plugin import ENVIRONMENTS
from ..protocol.messages import (
    EstimateRecord,
    FailureMessage,
    Idle,
    Job,
    MemoryInUse,
    Message,
    Progress,
    ProgressCallback,
    Record,
)
from ..protocol.messages import progress as progress_message
from ..protocol.results import DeviceSummary
from . import descendants, environment, preflight, uv
from . import sampler as devices
from .memory_growth import leaks
from .node import cpu_count, node_address, visible_mask
from .state_dir import make_subdirectory, state_dir
from .trainer_process import TrainerProcess

STARTUP_TIMEOUT_S = 600.0
# how long to wait for the failure that caused another rank's failure
LATE_CAUSE_S = 2.0
RELEASE_TIMEOUT_S = 30.0


class _TrainerFailed(Exception):
    """The trainer of a local rank reported a failure or ended."""

    def __init__(self, local_rank: int, failure: failures.Failure) -> None:
        super().__init__(str(failure))
        self.local_rank = local_rank
        self.failure = failure


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """What a host provides; two measurements with equal specs can use the same trainers.

    Attributes:
        environment: ``current``, ``managed`` or the path of a Python interpreter.
        requirements: pinned list of a managed environment, a file name in the plugin's ``environments``; or None.
        processes: trainer processes of this node.
        gpus: GPUs of this node, all visible to each process.
        threads: CPU threads of each process; 0 divides the node's CPUs evenly.
        state_dir: directory for logs and run files, as configured; each node resolves it.
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
        self._state_dir = state_dir(spec.state_dir)
        self._environment_dir = Path()
        self._trainers: list[TrainerProcess] = []
        self._messages: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        # memory in use before the first measurement, by local rank
        self._baseline: dict[int, MemoryInUse] = {}
        # memory in use after the latest measurement, when the trainers had released theirs
        self.released: Mapping[int, Idle] = {}
        self._start_s = 0.0
        self._measured = 0

    def start(self, progress: ProgressCallback = lambda message: None) -> None:
        """Start the trainers without waiting for their imports; a managed environment is built first if it is missing.

        Raises:
            failures.Failure: the environment cannot be used.
        """
        descendants.end_orphans()
        descendants.remove_leftover_runs(self._state_dir / "runs")
        python = environment.resolve(
            self.spec.environment,
            requirements=ENVIRONMENTS / self.spec.requirements if self.spec.requirements else None,
            cache_dir=self._state_dir / "environments",
            progress=lambda line: progress(progress_message(line)),
        )
        self._environment_dir = python.parent.parent
        # building an environment has its own time limit
        self._start_s = time.perf_counter()
        self._messages = queue.Queue()
        self._measured = 0
        self._baseline = {}
        self.released = {}
        mask = visible_mask(self.spec.gpus)
        threads = self.spec.threads or max(1, cpu_count() // self.spec.processes)
        try:
            logs = make_subdirectory(self._state_dir, "logs")
            make_subdirectory(self._state_dir, "runs")
        except OSError as error:
            raise failures.Broken(
                f"The state directory {self._state_dir} is not writable: {error.strerror}. Set state_dir to another directory."
            ) from None
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        # appended one by one, so that `close` ends the earlier ones if one does not start
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
        """Return an address of this node and a port that is free now, for the rendezvous of the processes."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return node_address(), probe.getsockname()[1]

    def measure(self, job: Job, run_timeout_s: float, progress: ProgressCallback = lambda message: None) -> Outcome:
        """Measure ``job`` on this host's trainers.

        Args:
            job: the job, with the rank of the first local process.
            run_timeout_s: limit in seconds from the moment the trainers have the job.
            progress: called with progress messages.
        """
        begin = time.perf_counter()
        job = self._with_directories(job)
        attempt = _Attempt(self, job, run_timeout_s, ignoring_closed_pipes(progress))
        if any(trainer.ready and not trainer.alive for trainer in self._trainers):
            # killed while idle: not a failure of this measurement
            self.close()
        reused = self._measured > 0 and not job.fresh_trainers
        if job.fresh_trainers and self._measured:
            self.close()
        try:
            attempt.run()
        except BaseException:
            # after an interrupt, a running trainer would write files after the removal below
            self.close()
            raise
        finally:
            shutil.rmtree(job.run_dir, ignore_errors=True)
        log = attempt.log
        if attempt.began:
            log = log or (str(self._trainers[attempt.failed_rank].log) if self._trainers else "")
            self._finish(job, attempt)
        return Outcome(
            records=attempt.records,
            cause=attempt.cause and attempt.cause.with_log(log),
            device=attempt.device,
            total_s=time.perf_counter() - begin,
            startup_s=attempt.startup_s,
            log=log,
            hostname=socket.gethostname(),
            reused=reused,
        )

    @property
    def baseline(self) -> Mapping[int, MemoryInUse]:
        """Memory in use before the first measurement (``MemoryInUse``), by local rank."""
        return self._baseline

    def close(self) -> None:
        """End the trainers and everything they started."""
        for trainer in self._trainers:
            trainer.kill()
        self._trainers = []
        self._measured = 0

    def _with_directories(self, job: Job) -> Job:
        """Return the job with directories of this node where it has none."""
        return dataclasses.replace(
            job,
            run_dir=job.run_dir or str(self._state_dir / "runs" / f"{job.id}@{descendants.this_host()}"),
            cache_dir=job.cache_dir or str(self._state_dir / "models"),
        )

    def _finish(self, job: Job, attempt: _Attempt) -> None:
        """Keep the trainers for the next job if they can be used again; otherwise end them."""
        if job.fresh_trainers or not self.spec.reuse or not attempt.trainers_usable:
            self.close()
            # remove the files that a trainer wrote between the first removal and its end
            shutil.rmtree(job.run_dir, ignore_errors=True)
        else:
            self._measured += 1
            self._wait_until_idle(attempt.idle)

    def _wait_until_idle(self, idle: dict[int, Idle]) -> None:
        """Wait until the trainers have released their memory; end them if they do not, or if they leak."""
        self.released = idle
        try:
            deadline = time.perf_counter() + RELEASE_TIMEOUT_S
            while len(idle) < len(self._trainers):
                rank, message = self._next(
                    deadline, f"The trainer did not release its memory within {RELEASE_TIMEOUT_S:g} s; see the log."
                )
                if message is None:
                    raise failures.Transient("The trainer ended after the measurement.")
                if message["event"] == "idle":
                    idle[rank] = message
        except failures.Failure:
            self.close()
            return
        if any(leaks(idle[rank], self._baseline[rank]) for rank in idle):
            self.close()

    def _await_ready(self, progress: ProgressCallback) -> None:
        deadline = self._start_s + STARTUP_TIMEOUT_S
        while any(not trainer.ready for trainer in self._trainers):
            progress(progress_message("starting"))
            rank, message = self._next(
                deadline, f"The trainer did not start within {STARTUP_TIMEOUT_S:.0f} s; see the log."
            )
            if failed := self._failure(rank, message):
                raise failed
            if message is not None and message["event"] == "ready":
                self._trainers[rank].ready = True
                self._baseline[rank] = message

    def _failure(self, rank: int, message: Message | None) -> _TrainerFailed | None:
        """Return the failure of a trainer that ended (no message) or reported one; None for other messages."""
        if message is None:
            return _TrainerFailed(rank, self._trainers[rank].died())
        return _TrainerFailed(rank, self._reported(message)) if message["event"] == "failure" else None

    def _reported(self, message: FailureMessage) -> failures.Failure:
        if message.get("missing") and self.spec.environment == "managed":
            return failures.BadInput(
                f"The managed environment lacks the package {message['missing']!r}: "
                f"remove {self._environment_dir} to have it built again."
            )
        return failures.from_message(message)

    def _next(self, deadline: float, reason: str) -> tuple[int, Message | None]:
        """Return the next message and its local rank; None for a message means that the trainer has ended.

        Raises:
            failures.Broken: with ``reason``, if there is none until ``deadline`` (``perf_counter`` seconds).
        """
        try:
            return self._messages.get(timeout=max(0.0, deadline - time.perf_counter()))
        except queue.Empty:
            raise failures.Broken(reason) from None


class _Attempt:
    """One call of ``Host.measure``: starts missing trainers, sends them the job and collects what they report.

    Attributes:
        records: one record per local rank, in their order; empty after a failure.
        device: summary of the samples of the measured phase; after a failure only the hardware, without GPUs.
        cause: why it failed; None if it did not.
        startup_s: seconds until the trainers were ready; 0 if they never were.
        log: log of an environment that could not be built; else empty.
        failed_rank: local rank of the trainer that failed; 0 if none did.
        began: whether trainers were needed; a job that is refused before leaves them as they are.
        trainers_usable: whether the trainers can measure another job.
        idle: the ``Idle`` messages of ranks that finished before others, by local rank.
    """

    def __init__(self, host: Host, job: Job, run_timeout_s: float, progress: ProgressCallback) -> None:
        self._begin = time.perf_counter()
        self._host = host
        self._job = job
        self._run_timeout_s = run_timeout_s
        self._progress = progress
        self.records: list[Record | EstimateRecord] = []
        self.device: DeviceSummary = {"properties": {}, "omitted": {}, "describe": devices.describe([])}
        self.cause: failures.Cause | None = None
        self.startup_s = 0.0
        self.log = ""
        self.failed_rank = 0
        self.began = False
        self.trainers_usable = False
        self.idle: dict[int, Idle] = {}

    def run(self) -> None:
        """Measure; a failure is stored in ``cause``, never raised."""
        try:
            self._start()
            self._measure()
            self.trainers_usable = True
        except _TrainerFailed as failed:
            self.cause, self.failed_rank = failed.failure.cause, failed.local_rank
        except failures.Failure as failure:
            self.cause = failure.cause
        except uv.EnvironmentProblem as problem:
            self.cause = failures.BadInput(str(problem)).cause
            self.log = str(problem.log or "")
        except Exception as error:
            self.cause = failures.classify_exception(type(error).__name__, str(error), "running the trainers")

    def _start(self) -> None:
        preflight.check(self._job, self._host.spec.environment)
        self.began = True
        if not self._host._trainers:
            self._host.start(self._progress)
        self._host._await_ready(self._progress)
        self.startup_s = time.perf_counter() - self._begin

    def _measure(self) -> None:
        visible = devices.visible_devices(visible_mask(self._host.spec.gpus))
        sampler = devices.Sampler(visible, [trainer.pid for trainer in self._host._trainers])
        sampler.start()
        deadline = time.perf_counter() + self._run_timeout_s
        try:
            self._send()
            records = self._collect(deadline)
        finally:
            samples = sampler.stop()
        begin_s, end_s = measured_phase(records)
        properties, omitted = devices.summarise(samples, begin_s, end_s)
        self.device = {"properties": properties, "omitted": omitted, "describe": devices.describe(visible)}
        self.records = records

    def _send(self) -> None:
        for local_rank, trainer in enumerate(self._host._trainers):
            trainer.send(dataclasses.replace(self._job, rank=self._job.rank + local_rank, local_rank=local_rank))

    def _collect(self, deadline: float) -> list[Record | EstimateRecord]:
        """Return the records of all ranks, in their order."""
        records: dict[int, Record | EstimateRecord] = {}
        late = (
            f"The measurement took longer than run_timeout_s {self._run_timeout_s:g} s; raise it, or lower min_steps."
        )
        while len(records) < len(self._host._trainers):
            rank, message = self._host._next(deadline, late)
            if failed := self._host._failure(rank, message):
                # an error that a stack raises before training leaves the process usable
                self.trainers_usable = len(self._host._trainers) == 1 and _refused_early(message)
                raise self._first_cause(failed)
            if message is None:
                continue
            if message["event"] == "progress":
                self._progress(message)
            elif message["event"] == "record":
                records[rank] = message
            elif message["event"] == "idle":
                # this rank has finished while others still measure
                self.idle[rank] = message
        return [records[rank] for rank in sorted(records)]

    def _first_cause(self, failed: _TrainerFailed) -> _TrainerFailed:
        """Return the failure that explains the others: a rank that lost its connection may report before the rank that failed."""
        deadline = time.perf_counter() + LATE_CAUSE_S
        while len(self._host._trainers) > 1 and not isinstance(failed.failure, failures.CannotRun):
            try:
                rank, message = self._host._messages.get(timeout=max(0.0, deadline - time.perf_counter()))
            except queue.Empty:
                break
            later = self._host._failure(rank, message)
            causes = [failed.failure.cause, later.failure.cause] if later else []
            if later and failures.root_cause(causes) != failed.failure.cause:
                failed = later
        return failed


def _refused_early(message: Message | None) -> bool:
    return message is not None and message["event"] == "failure" and message["kind"] in ("refused", "bad_input")


def measured_phase(records: Sequence[Record | EstimateRecord]) -> tuple[float, float]:
    """Return begin and end of the measured phase of these records, ``perf_counter`` seconds of their node."""
    first = records[0]
    edges = [first["train_begin_s"], *first["step_end_s"]]
    return edges[first["warmup_steps"]], edges[-1]


def ignoring_closed_pipes(progress: ProgressCallback) -> ProgressCallback:
    """Wrap ``progress`` so that a closed pipe does not abort the measurement."""

    def report(message: Progress) -> None:
        with contextlib.suppress(OSError):
            progress(message)

    return report
