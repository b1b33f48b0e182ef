"""Measures on this machine in this process tree, without ado and without Ray."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Protocol

from .. import failures
from ..measurement import attempts
from ..measurement.outcome import Outcome
from ..measurement.plan import Plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import Verdict, refusal
from ..protocol.messages import ProgressCallback
from .host import Host, HostSpec
from .node import cpu_count
from .nvml import visible_devices


class Settings(attempts.Settings, Protocol):
    """The parameters of an actuator configuration that local measurements read."""

    environment: str
    reuse_workers: bool
    run_timeout_s: float
    trust_remote_code: bool


class Local:
    """Measures on one host of this machine at a time; a context manager that ends the host."""

    def __init__(
        self,
        plugin: Plugin,
        settings: Settings,
        state_dir: Path,
        progress: ProgressCallback = lambda message: None,
    ) -> None:
        self._plugin = plugin
        self._settings = settings
        self._state_dir = state_dir
        self._progress = progress
        self._host: Host | None = None
        self._known_out_of_memory = attempts.KnownOutOfMemory()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def measure(self, plan: Plan) -> Verdict:
        """Measure one workload; transient failures are retried as the settings allow.

        Raises:
            failures.Broken: this machine lacks the devices that the workload needs.
        """
        try:
            return self._measure(plan)
        except failures.CannotRun as failure:
            return refusal(failure, plan.actuator, plan.experiment)

    def _measure(self, plan: Plan) -> Verdict:
        if plan.runs_on.number_nodes > 1 and plan.runs_on.number_gpus:
            raise failures.Broken(
                f"number_nodes {plan.runs_on.number_nodes} needs a Ray cluster: measure it through ado."
            )
        if plan.kind.task != "memory_estimate":
            self._plugin.check(plan.workload, plan.source.architecture, environment=self._settings.environment)
        steps = attempts.procedure(plan, self._settings, self._known_out_of_memory, same_gpus=True)
        outcomes: list[Outcome] | None = None
        while True:
            try:
                step = steps.send(outcomes)
            except StopIteration as end:
                result: Verdict = end.value
                return result
            outcomes = None
            if isinstance(step, attempts.Attempt):
                outcomes = [self._attempt(step.plan)]
            else:
                time.sleep(step.seconds)

    def _check_gpus(self, wanted: int) -> None:
        """Reject a request for more GPUs than this machine has, before an environment is built."""
        if not wanted:
            return
        found = len(visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES")))
        if found < wanted:
            raise failures.Broken(
                f"number_gpus {wanted} is not possible: this machine has {found} visible NVIDIA GPUs; number_gpus 0 measures on the CPU."
            )

    def _check_cpus(self, processes: int, each: int) -> None:
        if processes * each > cpu_count():
            raise failures.Broken(
                f"{processes} processes with {each} CPUs each do not fit: this machine has {cpu_count()} CPUs."
            )

    def _attempt(self, plan: Plan) -> Outcome:
        needs = plan.runs_on
        # not earlier: the quick memory estimate, which needs no GPU, may already give the answer
        self._check_gpus(needs.number_gpus)
        self._check_cpus(needs.processes, needs.cpus_per_process)
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
        # all processes run on this machine, regardless of number_nodes
        job = dataclasses.replace(job, local_world_size=processes)
        return self._host.measure(job, self._settings.run_timeout_s, self._progress)

    def _end(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None
