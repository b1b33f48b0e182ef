"""One measurement from property values to a verdict, whoever runs it: Ray's dispatcher or the ``run`` command.

Arithmetic room: neither ado, Ray nor torch; what happens in between is a host's business.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shlex
import uuid
from collections.abc import Mapping
from typing import Any

import yaml

from .. import failures
from ..metrics import benchmark as report
from ..metrics import capacity, stability
from ..metrics import memory_estimate as memory_report
from ..protocol import supported
from ..protocol.messages import Job, JobWorkload
from ..workload import models
from ..workload.experiments import KINDS, Kind, fields
from ..workload.fields import Workload, parse
from .outcome import Outcome

LONGEST_BACKOFF_S = 300.0
# ado keeps the metadata of every result in its store
MOST_STEPS_STORED = 5000


def backoff_s(first_s: float, attempt: int) -> float:
    """Return the seconds to wait after ``attempt`` (1 is the first) has failed: ``first_s``, doubled each time, up to a limit."""
    return min(LONGEST_BACKOFF_S, first_s * 2.0 ** (attempt - 1))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A measurement that can be made.

    Attributes:
        actuator: identifier of the actuator, which is also the plugin's name.
        experiment: identifier of the experiment.
        workload: what to train.
        given: the property values as they were given.
        source: where the model comes from.
        quick: of a memory estimate only the peak is wanted, not the largest batch that fits.
    """

    actuator: str
    experiment: str
    workload: Workload
    given: dict[str, Any]
    source: models.ModelSource
    quick: bool = False

    @property
    def kind(self) -> Kind:
        """What the experiment is for, and what it returns."""
        return KINDS[self.experiment]

    @property
    def runs_on(self) -> Workload:
        """What has to be there to measure: the workload's own devices, or one process without GPU for an estimate."""
        if self.kind.task != "memory_estimate":
            return self.workload
        # a trace is Python's work: it uses one CPU
        alone = {"number_gpus": 0, "number_nodes": 1, "gpu_model": "any", "batch_size": 1, "cpus_per_process": 1}
        return self.workload.model_copy(update=alone)

    def job(self, *, trust_remote_code: bool, address: tuple[str, int], rank: int, threads: int) -> Job:
        """Return the job of docs/architecture.md for the host whose first process has ``rank``; its directories are the host's to add."""
        values = self.workload.model_dump() | {"dataset_id": _located(self.workload.dataset_id)}
        return Job(
            id=uuid.uuid4().hex[:12],
            workload=JobWorkload(**values),
            task=self.kind.task,
            architecture=self.source.architecture,
            source=self.source.source,
            rank=rank,
            world_size=self.runs_on.processes,
            local_world_size=self.runs_on.processes // self.runs_on.number_nodes,
            master_addr=address[0],
            master_port=address[1],
            threads=threads,
            trust_remote_code=trust_remote_code,
            fresh_trainers=self.kind.runs > 1 or self.workload.patches_libraries,
            capacity_bytes=None if self.quick else capacity.usable_bytes(self.workload.gpu_model),
        )

    def estimate(self) -> Plan | None:
        """Return the plan of a quick memory estimate that can say whether this workload is too large; None: none can."""
        workload = self.workload
        known = workload.number_gpus > 0 and capacity.usable_bytes(workload.gpu_model) is not None
        if self.kind.task != "benchmark" or not known or workload.dataset_image_field:
            return None
        if supported.untraceable(workload):
            return None
        return dataclasses.replace(self, experiment="finetune_memory_estimate", quick=True)

    def command(self) -> str:
        """Return the command that repeats the measurement without ado's store and without Ray."""
        values = (f"{name}={_written(value)}" for name, value in sorted(self.given.items()))
        return shlex.join(
            ["python", "-m", f"ado_actuators.{self.actuator}.run", "--experiment", self.experiment, *values]
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a measurement ended: with properties, or with the sentence that says why there are none."""

    properties: dict[str, Any]
    sentence: str
    metadata: dict[str, Any]
    report: report.Report | None = None


def _located(dataset: str) -> str:
    """Return the path of a file that is here as an absolute one, since trainers run elsewhere; whatever else is asked for as it is."""
    path = os.path.abspath(os.path.expanduser(dataset))  # noqa: PTH100, PTH111
    # os.path takes names no file system could hold for absent
    here = not dataset.startswith("synthetic-") and os.path.exists(path)  # noqa: PTH110
    return path if here else dataset


def _check_properties(actuator: str, experiment: str, values: dict[str, Any]) -> None:
    """Refuse what an experiment would leave unheard: properties it does not have, and values it cannot have here."""
    kind = KINDS[experiment]
    known = fields(actuator, kind)
    for name, value in values.items():
        if name not in known:
            raise failures.InvalidConfiguration(f"{name} is not a property of {experiment} in {actuator}.")
        allowed = kind.limits.get(name)
        if allowed and value not in allowed:
            raise failures.InvalidConfiguration(
                f"{name} {value} is not measured by {experiment} in {actuator}; use {' or '.join(map(str, allowed))}."
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a workload, after repetitions for transient failures.

    Attributes:
        outcomes: of its hosts; the first one holds rank 0.
        attempts: how often it was tried.
    """

    outcomes: list[Outcome]
    attempts: int

    @property
    def cause(self) -> failures.Cause | None:
        """Why it failed: the cause that explains most of those its hosts give; None when it ended well."""
        causes = [outcome.cause for outcome in self.outcomes if outcome.cause is not None]
        return failures.most_telling(causes)

    def may_be_repeated(self, made: Plan) -> bool:
        """Whether the failure is transient; where crashes are counted, only the loss of a host is."""
        lost = any(outcome.host_lost for outcome in self.outcomes)
        return self.cause is not None and self.cause.group == "transient" and (made.kind.task != "stability" or lost)


def plan(actuator: str, experiment: str, values: dict[str, Any]) -> Plan:
    """Check property values and resolve the model, in milliseconds.

    Raises:
        failures.InvalidConfiguration: the workload is impossible.
        failures.BadInput: the model is unknown.
    """
    _check_properties(actuator, experiment, values)
    workload = parse({**values, **KINDS[experiment].sets})
    try:
        source = models.resolve(workload.model_name)
    except ValueError as error:
        raise failures.BadInput(str(error)) from None
    if workload.weights == "pretrained" and source.source is None:
        raise failures.BadInput(f"model {workload.model_name} has no published weights; use weights random.")
    if source.architecture and (sentence := supported.image_mismatch(workload, source.architecture)):
        raise failures.InvalidConfiguration(sentence)
    return Plan(actuator=actuator, experiment=experiment, workload=workload, given=dict(values), source=source)


def refusal(
    failure: failures.Failure, actuator: str, experiment: str, metadata: dict[str, Any] | None = None
) -> Verdict:
    """Return the verdict of a measurement that ended without records."""
    metadata = {"versions": _own_versions(actuator), **(metadata or {})}
    if isinstance(failure, failures.CannotRun):
        result = report.Report.for_refusal(failure.cause.what, failure.cause.sentence, KINDS[experiment].outputs)
        return Verdict(
            result.properties,
            "",
            {**metadata, "reason": failure.cause.sentence, "omitted": _short(result.omitted)},
            result,
        )
    return Verdict({}, failure.cause.sentence, metadata)


def too_large(estimate: Plan, run: Run) -> str | None:
    """Return the sentence for a workload whose estimate says that it cannot fit; None where it may, or where no estimate was made."""
    if run.cause is not None:
        return None
    return memory_report.certainly_too_large(run.outcomes[0].records[0], estimate.workload)


def wants_run(made: Plan, runs: list[Run]) -> bool:
    """Whether a measurement needs another run of its workload."""
    return not runs or (len(runs) < made.kind.runs and not stability.verdict_is_known(runs[-1].cause))


def conclude(made: Plan, runs: list[Run], *, price: float | None) -> Verdict:
    """Return the verdict of a measurement from its runs."""
    if made.kind.task == "stability" and not stability.verdict_is_known(runs[-1].cause):
        return _fractions(made, runs)
    (run,) = runs[-1:]
    if run.cause is not None:
        return refusal(failures.raised(run.cause), made.actuator, made.experiment, _metadata(made, run))
    if made.kind.task == "memory_estimate":
        return _estimate(made, run)
    return _benchmark(made, run, price)


def _fractions(made: Plan, runs: list[Run]) -> Verdict:
    result = stability.summarise([run.cause for run in runs])
    ends = [run.cause.sentence if run.cause else "none" for run in runs]
    logs = [run.outcomes[0].log for run in runs]
    return Verdict(result.properties, "", {**_metadata(made, runs[0]), "errors": ends, "logs": logs}, result)


def _estimate(made: Plan, run: Run) -> Verdict:
    record: Mapping[str, Any] = run.outcomes[0].records[0]
    result = memory_report.make(record, made.workload, total_s=run.outcomes[0].total_s)
    metadata = _metadata(made, run)
    metadata["versions"] |= record["versions"]
    told = ("peaks_bytes", "traced_batches", "model_parameters", "trainable_parameters", "facts")
    metadata |= {name: record[name] for name in told}
    return Verdict(result.properties, "", {**metadata, "omitted": _short(result.omitted)}, result)


def _benchmark(made: Plan, run: Run, price: float | None) -> Verdict:
    outcomes, metadata = run.outcomes, _metadata(made, run)
    records = [record for outcome in outcomes for record in outcome.records]
    device, omitted = _devices(outcomes)
    result = report.make(
        records,
        made.workload,
        device=device,
        device_names=_device_names(outcomes),
        price_usd_per_device_hour=price,
        startup_s=max(outcome.startup_s for outcome in outcomes),
        # of the attempt that counts, without waiting for a place
        total_s=max(outcome.total_s for outcome in outcomes),
        omitted=omitted,
    )
    first: Mapping[str, Any] = records[0]
    facts = first["facts"]
    metadata["versions"] |= records[0]["versions"]
    metadata |= {
        "facts": facts,
        "steps": {"warmup": first["warmup_steps"], "stopped_by": first["stopped_by"]},
        "step_s": [round(step, 6) for step in result.raw_step_s[:MOST_STEPS_STORED]],
        "phases_s": {name.removesuffix("_s"): round(spent, 6) for name, spent in records[0]["phases"].items()},
        "omitted": _short(result.omitted),
        "notes": list(result.notes),
    }
    if len(result.raw_step_s) > MOST_STEPS_STORED:
        metadata["notes"].append(f"step_s holds the first {MOST_STEPS_STORED} of {len(result.raw_step_s)} steps.")
    return Verdict(result.properties, "", metadata, result)


def _written(value: Any) -> str:
    """Return ``value`` as the ``run`` command reads it again, by YAML's rules: the word no, for one, has to be quoted."""
    if isinstance(value, bytes):
        value = value.decode()
    text = str(value)
    if not isinstance(value, str):
        return text
    try:
        plain = yaml.safe_load(text) == text
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that does not exist is a ValueError
        plain = False
    return text if plain else yaml.safe_dump(value, default_style='"', width=10**6).strip()


def _metadata(made: Plan, run: Run) -> dict[str, Any]:
    outcomes = run.outcomes
    described = [outcome.device["describe"] for outcome in outcomes]
    others = {"device_per_host": described} if any(one != described[0] for one in described) else {}
    return {
        "workload": made.workload.model_dump(),
        "command": made.command(),
        "versions": _own_versions(made.actuator),
        "attempts": run.attempts,
        "hosts": [outcome.hostname for outcome in outcomes],
        # of the host that failed, where one did
        "log": next(
            (outcome.log for outcome in outcomes if outcome.cause is not None and outcome.log), outcomes[0].log
        ),
        "reused": outcomes[0].reused,
        "device": described[0],
        **others,
    }


def _devices(outcomes: list[Outcome]) -> tuple[dict[str, float], dict[str, str]]:
    """Join what the hosts' samplers saw: energy, CPUs and memory of processes add up, extremes stay, averages are of equal nodes."""
    seen = [outcome.device["properties"] for outcome in outcomes]
    joined: dict[str, float] = {}
    for name in seen[0]:
        values = [properties[name] for properties in seen if name in properties]
        if len(values) != len(seen):
            continue
        if name in ("energy_joules", "cpu_compute_utilization", "cpu_memory_peak_gib"):
            joined[name] = sum(values)
        elif name.endswith("_min"):
            joined[name] = min(values)
        elif name.endswith("_avg"):
            joined[name] = sum(values) / len(values)
        else:
            joined[name] = max(values)
    return joined, {
        name: reason for outcome in outcomes for name, reason in outcome.device["omitted"].items() if name not in joined
    }


def _device_names(outcomes: list[Outcome]) -> set[str]:
    return {gpu["name"] for outcome in outcomes for gpu in outcome.device["describe"].get("devices") or []} or {"cpu"}


def _short(omitted: dict[str, str]) -> dict[str, list[str]]:
    """Group omitted properties by their reason: the metadata stay small."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in omitted.items():
        by_reason.setdefault(reason, []).append(name)
    return by_reason


def _own_versions(actuator: str) -> dict[str, str]:
    name = f"ado-{actuator.replace('_', '-')}"
    try:
        return {name: importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return {}
