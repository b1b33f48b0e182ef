"""Measuring in this process tree, without ado and without Ray. Process room."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Protocol

from .. import failures
from ..measurement import verdict as measurement
from ..measurement.attempts import Knowledge
from ..measurement.outcome import Outcome
from ..measurement.plugin import Plugin
from ..protocol.messages import ProgressCallback
from . import sampler as devices
from .host import Host, HostSpec, cpu_count


class Settings(Protocol):
    """What of an actuator's configuration matters here."""

    environment: str
    reuse_workers: bool
    run_timeout_s: float
    max_retries: int
    retry_backoff_s: float
    price_usd_per_device_hour: float | None
    trust_remote_code: bool
    skip_predicted_oom: bool


class Local:
    """Hosts of this machine, one at a time; a context manager that ends them."""

    def __init__(
        self,
        plugin: Plugin,
        settings: Settings,
        state_dir: Path,
        tell: ProgressCallback = lambda message: None,
    ) -> None:
        self._plugin = plugin
        self._settings = settings
        self._state_dir = state_dir
        self._tell = tell
        self._host: Host | None = None
        self._knowledge = Knowledge()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def measure(self, plan: measurement.Plan) -> measurement.Verdict:
        """Measure one workload; transient failures are repeated as the settings say.

        Raises:
            failures.Broken: this machine does not have what the workload asks for.
        """
        try:
            return self._measure(plan)
        except failures.CannotRun as failure:
            return measurement.refusal(failure, plan.actuator, plan.experiment)

    def _measure(self, plan: measurement.Plan) -> measurement.Verdict:
        if plan.runs_on.number_nodes > 1 and plan.runs_on.number_gpus:
            raise failures.Broken(
                f"number_nodes {plan.runs_on.number_nodes} needs a Ray cluster: measure it through ado."
            )
        if plan.kind.task != "memory_estimate":
            self._plugin.check(plan.workload, plan.source.architecture, environment=self._settings.environment)
        if self._settings.skip_predicted_oom and plan.kind.task == "benchmark":
            self._refuse_too_large(plan)
        self._check_gpus(plan.runs_on.number_gpus)
        self._check_cpus(plan.runs_on.processes, plan.runs_on.cpus_per_process)
        runs: list[measurement.Run] = []
        while measurement.wants_run(plan, runs):
            runs.append(self._attempts(plan))
        price = self._settings.price_usd_per_device_hour
        verdict = measurement.conclude(plan, runs, price=price)
        self._knowledge.note(plan.workload, verdict.properties.get("failure"))
        return verdict

    def _check_gpus(self, wanted: int) -> None:
        """Refuse at once, before an environment is built for GPUs that are not here."""
        if not wanted:
            return
        found = len(devices.visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES")))
        if found < wanted:
            raise failures.Broken(
                f"number_gpus {wanted}, but this machine shows {found} NVIDIA GPUs; number_gpus 0 measures on the CPU."
            )

    def _check_cpus(self, processes: int, each: int) -> None:
        if processes * each > cpu_count():
            raise failures.Broken(f"there is no room for {processes} x {each} CPUs; this machine has {cpu_count()}.")

    def _refuse_too_large(self, plan: measurement.Plan) -> None:
        sentence = self._knowledge.too_large(plan.workload)
        if sentence is None and (estimate := plan.estimate()) is not None:
            sentence = measurement.too_large(estimate, self._attempts(estimate))
        if sentence is not None:
            raise failures.PredictedOutOfMemory(sentence)

    def _attempts(self, plan: measurement.Plan) -> measurement.Run:
        attempt = 0
        while True:
            attempt += 1
            run = measurement.Run([self._attempt(plan)], attempt)
            if not run.may_be_repeated(plan) or attempt > self._settings.max_retries:
                return run
            time.sleep(measurement.backoff_s(self._settings.retry_backoff_s, attempt))

    def _attempt(self, plan: measurement.Plan) -> Outcome:
        needs = plan.runs_on
        processes = needs.processes
        threads = needs.cpus_per_process or max(1, cpu_count() // processes)
        spec = HostSpec(
            environment=self._settings.environment,
            requirements=self._plugin.requirements_of(needs) if self._settings.environment == "managed" else None,
            processes=processes,
            gpus=needs.number_gpus,
            threads=threads,
            state_dir=str(self._state_dir),
            reuse=self._settings.reuse_workers,
        )
        if self._host is None or self._host.spec != spec:
            self._end()
            self._host = Host(spec)
        address = ("127.0.0.1", self._host.address()[1])
        job = plan.job(
            trust_remote_code=self._settings.trust_remote_code,
            address=address,
            rank=0,
            threads=threads,
        )
        # all processes are on this machine, however many nodes were asked for
        job = dataclasses.replace(job, local_world_size=processes)
        return self._host.measure(job, self._settings.run_timeout_s, self._tell)

    def _end(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None
