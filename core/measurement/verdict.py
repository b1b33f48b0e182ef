"""Computes the verdict of a measurement from its runs: properties, or the message that says why there are none."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from .. import failures
from ..metrics import benchmark, device_samples, memory_estimate, stability
from ..protocol.messages import EstimateRecord, Record
from ..protocol.results import ResultMetadata
from ..workload.command import distribution
from ..workload.experiments import KINDS
from .distribution import installed_version
from .outcome import Outcome, Run
from .plan import Plan

# ado keeps the metadata of every result in its store
MOST_STEPS_STORED = 5000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a measurement: properties, or the message that says why there are none."""

    properties: dict[str, Any]
    message: str
    metadata: ResultMetadata
    report: benchmark.Report | None = None


def refusal(
    failure: failures.Failure, actuator: str, experiment: str, metadata: ResultMetadata | None = None
) -> Verdict:
    """Return the verdict of a measurement that ended without records."""
    stored: ResultMetadata = {"versions": _own_versions(actuator)}
    stored.update(metadata or {})
    if isinstance(failure, failures.CannotRun):
        result = benchmark.Report.for_refusal(failure.cause.what, failure.cause.message, KINDS[experiment].outputs)
        return Verdict(
            result.properties,
            "",
            {**stored, "reason": failure.cause.message, "omitted": _by_reason(result.omitted)},
            result,
        )
    return Verdict({}, failure.cause.message, stored)


def too_large(estimate: Plan, run: Run) -> str | None:
    """Return a message if the estimate says that the workload cannot fit; None if it may fit or the estimate failed."""
    if run.cause is not None:
        return None
    record = cast("EstimateRecord", run.outcomes[0].records[0])
    return memory_estimate.certainly_too_large(record, estimate.workload)


def conclude(plan: Plan, runs: list[Run], *, price: float | None) -> Verdict:
    """Return the verdict of a measurement from its runs."""
    if plan.kind.task == "stability" and not stability.verdict_is_known(runs[-1].cause):
        return _fractions(plan, runs)
    (run,) = runs[-1:]
    if run.cause is not None:
        return refusal(failures.raised(run.cause), plan.actuator, plan.experiment, _metadata(plan, run))
    if plan.kind.task == "memory_estimate":
        return _estimate(plan, run, price)
    return _benchmark(plan, run, price)


def _fractions(plan: Plan, runs: list[Run]) -> Verdict:
    result = stability.summarise([run.cause for run in runs])
    ends = [run.cause.message if run.cause else "none" for run in runs]
    logs = [run.outcomes[0].log for run in runs]
    return Verdict(result.properties, "", {**_metadata(plan, runs[0]), "errors": ends, "logs": logs}, result)


def _estimate(plan: Plan, run: Run, price: float | None) -> Verdict:
    record = cast("EstimateRecord", run.outcomes[0].records[0])
    result = memory_estimate.make(
        record, plan.workload, total_s=run.outcomes[0].total_s, price_usd_per_device_hour=price
    )
    metadata = _metadata(plan, run)
    metadata["versions"] |= record["versions"]
    found: ResultMetadata = {
        "peaks_bytes": record["peaks_bytes"],
        "traced_batches": record["traced_batches"],
        "model_parameters": record["model_parameters"],
        "trainable_parameters": record["trainable_parameters"],
        "facts": record["facts"],
        "omitted": _by_reason(result.omitted),
        "notes": list(result.notes),
    }
    metadata.update(found)
    if "devices" in record:
        metadata.update({"devices": record["devices"], "architecture": record["architecture"]})
    return Verdict(result.properties, "", metadata, result)


def _benchmark(plan: Plan, run: Run, price: float | None) -> Verdict:
    outcomes, metadata = run.outcomes, _metadata(plan, run)
    records = cast("list[Record]", [record for outcome in outcomes for record in outcome.records])
    device, omitted = device_samples.join_hosts([outcome.device for outcome in outcomes])
    result = benchmark.make(
        records,
        plan.workload,
        device=device,
        device_names=_device_names(outcomes),
        price_usd_per_device_hour=price,
        startup_s=max(outcome.startup_s for outcome in outcomes),
        # only the last attempt counts, without the wait for resources
        total_s=max(outcome.total_s for outcome in outcomes),
        omitted=omitted,
    )
    first = records[0]
    metadata["versions"] |= first["versions"]
    found: ResultMetadata = {
        "facts": first["facts"],
        "steps": {"warmup": first["warmup_steps"], "stopped_by": first["stopped_by"]},
        "step_s": [round(step, 6) for step in result.raw_step_s[:MOST_STEPS_STORED]],
        "phases_s": {name.removesuffix("_s"): round(spent, 6) for name, spent in first["phases"].items()},
        "omitted": _by_reason(result.omitted),
        "notes": list(result.notes),
    }
    metadata.update(found)
    if len(result.raw_step_s) > MOST_STEPS_STORED:
        metadata["notes"].append(f"step_s holds the first {MOST_STEPS_STORED} of {len(result.raw_step_s)} steps.")
    return Verdict(result.properties, "", metadata, result)


def _metadata(plan: Plan, run: Run) -> ResultMetadata:
    outcomes = run.outcomes
    described = [outcome.device["describe"] for outcome in outcomes]
    metadata: ResultMetadata = {
        "workload": plan.workload.model_dump(),
        "command": plan.command(),
        "versions": _own_versions(plan.actuator),
        "attempts": run.attempts,
        "hosts": [outcome.hostname for outcome in outcomes],
        # the log of the host that failed, if one did
        "log": next(
            (outcome.log for outcome in outcomes if outcome.cause is not None and outcome.log), outcomes[0].log
        ),
        "reused": outcomes[0].reused,
        "device": described[0],
    }
    if any(one != described[0] for one in described):
        metadata["device_per_host"] = described
    return metadata


def _device_names(outcomes: list[Outcome]) -> set[str]:
    return {gpu["name"] for outcome in outcomes for gpu in outcome.device["describe"].get("devices") or []} or {"cpu"}


def _by_reason(omitted: dict[str, str]) -> dict[str, list[str]]:
    """Group omitted properties by their reason, which keeps the metadata small."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in omitted.items():
        by_reason.setdefault(reason, []).append(name)
    return by_reason


def _own_versions(actuator: str) -> dict[str, str]:
    version = installed_version(actuator)
    return {} if version is None else {distribution(actuator): version}
