"""The tools of the parts: a reused trainer, memory estimates in the background, readings of the device, a matrix product.

Imports neither ado nor Ray, and torch only in child processes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import common

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host import host, node
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.host.nvml import Device
from ado_actuators.sfttrainer.core.host.trainer_process import trainer_environ
from ado_actuators.sfttrainer.core.measurement.outcome import Outcome
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.core.protocol.results import ResultMetadata

from .schedule import OutOfTime
from .workloads import Choice, Values

HERE = Path(__file__).resolve().parent
ESTIMATE = "finetune_memory_estimate"
# of a failed trainer's log in the results
LOG_CHARACTERS = 2000
POLL_S = 0.25


class Failed(Exception):
    """A measurement gave no result; ``log`` is the end of the trainer's log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished measurement.

    Attributes:
        properties: what a user gets, ``is_valid`` 0 included.
        metadata: what is stored beside it.
        step_s: duration of every step, seconds.
        phase_s: begin and end of the measured phase, ``perf_counter`` seconds; None if it did not train.
        memory_before: bytes in use in the trainer before its first measurement, by kind (``rss_bytes``, ``allocated_bytes``).
        memory_after: the same after this one; empty if the trainer was ended.
    """

    properties: dict[str, Any]
    metadata: ResultMetadata
    step_s: list[float]
    phase_s: tuple[float, float] | None = None
    memory_before: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memory_after: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Bench:
    """Measures on one device."""

    def __init__(
        self,
        *,
        choice: Choice,
        device: Device | None,
        state_dir: Path,
        absent: dict[str, str],
        name: str,
        recordings: Path | None = None,
    ) -> None:
        self.choice = choice
        self.device = device
        self.state_dir = state_dir
        self.absent = absent
        self.name = name
        self.recordings = recordings
        self.ends_s = time.perf_counter()
        self.versions: dict[str, str] = {}
        self._kept: _Watched | None = None
        self._estimator: _Estimator | None = None
        self._estimates: dict[str, dict[str, Any]] = {}
        self._product: dict[str, Any] | None = None

    # -- time ----------------------------------------------------------------------------------------------------

    def may_take(self, seconds: float) -> None:
        """Set when the current part has to end, from now."""
        self.ends_s = time.perf_counter() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left for the current part."""
        return self.ends_s - time.perf_counter()

    def say(self, text: str) -> None:
        """Show progress."""
        common.say(f"  {text}")

    # -- measurements --------------------------------------------------------------------------------------------

    def measure(self, values: Values, *, fresh: bool = False) -> Run:
        """Measure a workload in the reused trainer, or in a ``fresh`` one that is ended afterwards.

        Raises:
            Failed: there is no result; a workload that does not fit is one.
            OutOfTime: it was ended with the time of the part.
        """
        if fresh:
            with _Watched(self.state_dir, reuse=False) as local:
                return self._measure(local, values)
        if self._kept is None:
            self._kept = _Watched(self.state_dir, reuse=True)
        return self._measure(self._kept, values)

    def measured(self, values: Values, *, fresh: bool = False) -> Run:
        """Measure a workload that has to run.

        Raises:
            Failed: it did not.
        """
        run = self.measure(values, fresh=fresh)
        if not run.properties["is_valid"]:
            raise Failed(str(run.metadata.get("reason")), log_tail(run.metadata))
        return run

    def _measure(self, local: _Watched, values: Values) -> Run:
        local.settings.run_timeout_s = max(1.0, self.left_s())
        try:
            verdict = local.measure(_plan(values))
        except failures.Failure as failure:
            raise Failed(str(failure)) from None
        if not verdict.properties and self.left_s() <= 0:
            raise OutOfTime(f"its time was over while {_named(values)} was measured")
        if not verdict.properties:
            raise Failed(verdict.message, log_tail(verdict.metadata))
        self.versions |= verdict.metadata["versions"]
        records: Any = local.outcome.records if local.outcome is not None else []
        before, after = local.memory()
        return Run(
            verdict.properties,
            verdict.metadata,
            verdict.report.raw_step_s if verdict.report else [],
            host.measured_phase(records) if records else None,
            before,
            after,
        )

    def release(self) -> None:
        """End the reused trainer."""
        if self._kept is not None:
            self._kept.__exit__()
            self._kept = None

    # -- estimates -----------------------------------------------------------------------------------------------

    def expect(self, values: Values, *, largest: bool = False) -> None:
        """Start an estimate in the background; with the ``largest`` batch if the memory of the device is known."""
        key = _key(self.estimated(values), largest)
        if key in self._estimates:
            return
        if self._estimator is None:
            self._estimator = _Estimator(self.state_dir)
        self._estimator.submit(key, self.estimated(values), largest)

    def estimate(self, values: Values, *, largest: bool = False, keep_s: float = 0.0) -> dict[str, Any]:
        """Return the properties of an estimate, waiting for it; ``error`` says why there is none.

        Args:
            values: of the workload.
            largest: whether the largest batch is asked for.
            keep_s: what is not waited of the part's time, seconds, because measurements need it.
        """
        self.expect(values, largest=largest)
        key = _key(self.estimated(values), largest)
        if key not in self._estimates:
            assert self._estimator is not None
            return self._estimator.result(key, max(0.0, self.left_s() - keep_s))
        return self._estimates[key]

    def estimated(self, values: Values) -> Values:
        """Return the values of the estimate of a workload on this device."""
        steps = ("max_steps", "stop_after_seconds", "target_ci_percent")
        named = {"gpu_model": self.name} if self.device is not None else {}
        return {**{name: value for name, value in values.items() if name not in steps}, **named}

    def end_estimates(self) -> None:
        """Cancel unfinished estimates: they would disturb measurements of time."""
        if self._estimator is not None:
            self._estimates |= self._estimator.close()
            self._estimator = None

    # -- the device ----------------------------------------------------------------------------------------------

    def used_bytes(self) -> int | None:
        """Return the memory in use on the device, by whomever, or None."""
        return None if self.device is None else self.device.read().memory_used_bytes

    def settled_bytes(self, at_most: int, wait_s: float = 10.0) -> int | None:
        """Return the memory in use once it is ``at_most``, or what it is after ``wait_s`` seconds."""
        deadline = time.perf_counter() + wait_s
        while (used := self.used_bytes()) is not None and used > at_most and time.perf_counter() < deadline:
            time.sleep(POLL_S)
        return used

    def matrix_product(self) -> dict[str, Any]:
        """Return torch's description of the device and the speed of a matrix product, measured once.

        Raises:
            Failed: torch cannot use the device.
        """
        return self._product or self.load(lambda: None)

    def load(self, while_busy: Callable[[], None]) -> dict[str, Any]:
        """Multiply matrices in a separate process until ``while_busy`` has ended; returns the same as ``matrix_product``.

        Raises:
            Failed: torch cannot use the device.
        """
        seconds = 0.5 if self.choice.device == "cpu" else 3.0 if self.choice.quick else 6.0
        self._product = self._multiply(seconds, while_busy)
        return self._product

    def _multiply(self, seconds: float, while_busy: Callable[[], None]) -> dict[str, Any]:
        gpus = 0 if self.device is None else 1
        dtype = self.choice.dtype if gpus else "float32"
        arguments = ["cuda" if gpus else "cpu", str(seconds), dtype, "8192" if gpus else "512"]
        environ = trainer_environ(node.cpu_count(), node.visible_mask(gpus), own_environment=True)
        log = self.state_dir / "matrix_product.log"
        with (
            log.open("w", encoding="utf-8") as stream,
            ended(
                subprocess.Popen(
                    [sys.executable, str(HERE / "matrix_product.py"), *arguments],
                    env=environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    text=True,
                )
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            facts = process.stdout.readline()
            if facts and ("name" in json.loads(facts) or not gpus):
                while_busy()
            process.stdin.close()
            speed = process.stdout.readline()
        if not speed:
            tail = log.read_text(encoding="utf-8")[-LOG_CHARACTERS:]
            raise Failed(f"the matrix product failed: {tail.strip().rpartition(chr(10))[2]}", tail)
        return {**json.loads(facts), **json.loads(speed), "dtype": dtype}

    def close(self) -> None:
        """End everything that was started."""
        self.end_estimates()
        self.release()


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Return a process that is killed if the block fails."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def log_tail(metadata: Mapping[str, Any]) -> str:
    """Return the end of the log of a measurement, from which secrets are removed when it is written; empty if there is none."""
    try:
        return Path(metadata["log"]).read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
    except (KeyError, OSError):
        return ""


def _named(values: Values) -> str:
    return f"{values['model_name']} with {values['model_max_length']} tokens and batch {values['batch_size']}"


def _plan(values: Values) -> Plan:
    """Return the plan of a benchmark; ``method`` names the experiment.

    Raises:
        failures.Failure: the workload is impossible.
    """
    given = dict(values)
    method = given.pop("method", "full")
    return make_plan(common.PLUGIN.identifier, f"finetune_{method}_benchmark", given)


class _Watched(Local):
    """Also keeps the last outcome: its records are not part of the verdict."""

    def __enter__(self) -> _Watched:
        return self

    def __init__(self, state_dir: Path, *, reuse: bool) -> None:
        self.settings = common.Settings(reuse_workers=reuse)
        self.outcome: Outcome | None = None
        super().__init__(common.PLUGIN, self.settings, state_dir)

    def _attempt(self, plan: Plan) -> Outcome:
        self.outcome = None
        self.outcome = super()._attempt(plan)
        return self.outcome

    def memory(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the memory of the trainer before its first measurement and after the last; empty where it was ended."""
        if self._host is None:
            return {}, {}
        return self._host.baseline.get(0, {}), self._host.released.get(0, {})


class _Estimator:
    """Estimates workloads one after the other in a thread, in a separate trainer that uses one CPU."""

    def __init__(self, state_dir: Path) -> None:
        self._local = Local(common.PLUGIN, common.Settings(reuse_workers=True), state_dir)
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="estimates")
        self._made: dict[str, concurrent.futures.Future[dict[str, Any]]] = {}
        self._closed = False

    def submit(self, key: str, values: Values, largest: bool) -> None:
        """Estimate a workload when those before it are done."""
        if key not in self._made:
            self._made[key] = self._pool.submit(self._estimate, values, largest)

    def result(self, key: str, timeout_s: float) -> dict[str, Any]:
        """Return an estimate, or the ``error`` that there is none after ``timeout_s`` seconds."""
        try:
            return self._made[key].result(timeout_s)
        except concurrent.futures.TimeoutError:
            return {"error": f"the estimate was not ready after {timeout_s:.0f} s more"}

    def _estimate(self, values: Values, largest: bool) -> dict[str, Any]:
        if self._closed:
            return {"error": "it was not begun in time"}
        try:
            plan = make_plan(common.PLUGIN.identifier, ESTIMATE, values)
            verdict = self._local.measure(dataclasses.replace(plan, quick=not largest))
        except failures.Failure as failure:
            return {"error": str(failure)}
        except Exception as error:
            # whatever it is, the measurements go on without this prediction
            return {"error": f"{type(error).__name__}: {error}"}
        if not verdict.properties.get("is_valid"):
            return {"error": str(verdict.message or verdict.metadata.get("reason"))}
        return {name: value for name, value in verdict.properties.items() if value is not None}

    def close(self) -> dict[str, dict[str, Any]]:
        """End the trainer and return the estimates that are done."""
        self._closed = True
        done = {key: future.result() for key, future in self._made.items() if future.done()}
        self._pool.shutdown(wait=False, cancel_futures=True)
        while True:
            self._local.__exit__()
            if all(future.done() for future in self._made.values()):
                return done
            # the thread may have started another host meanwhile, which is not waited for either
            time.sleep(POLL_S)


def _key(values: Values, largest: bool) -> str:
    return json.dumps([values, largest], sort_keys=True)
