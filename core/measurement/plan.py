"""Turns property values into a plan of one measurement: checks them, resolves the model and makes the trainers' job."""

from __future__ import annotations

import dataclasses
import os
import uuid
from typing import Any

from .. import failures
from ..metrics import accelerators
from ..protocol import supported
from ..protocol.messages import Job, JobWorkload
from ..workload import models
from ..workload.command import run_command
from ..workload.experiments import KINDS, Kind, fields, unknown_property
from ..workload.fields import Workload
from ..workload.validation import parse
from . import alternatives


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked measurement, ready to run.

    Attributes:
        actuator: identifier of the actuator, which is also the plugin's name.
        experiment: identifier of the experiment.
        workload: what to train.
        given: the property values as the user gave them.
        source: where the model comes from.
        quick: for a memory estimate: predict only the peak, not the largest batch that fits.
        capacities: for a memory estimate: usable memory, bytes, of further device types that it covers, by name.
    """

    actuator: str
    experiment: str
    workload: Workload
    given: dict[str, Any]
    source: models.ModelSource
    quick: bool = False
    capacities: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the experiment is for, and what it returns."""
        return KINDS[self.experiment]

    @property
    def runs_on(self) -> Workload:
        """The workload whose resources the measurement needs: its own, or for an estimate one process without GPU."""
        if self.kind.task != "memory_estimate":
            return self.workload
        # tracing runs in Python and uses one CPU
        single_process = {
            "number_gpus": 0,
            "number_nodes": 1,
            "gpu_model": "any",
            "batch_size": 1,
            "cpus_per_process": 1,
        }
        return self.workload.model_copy(update=single_process)

    def job(self, *, trust_remote_code: bool, address: tuple[str, int], rank: int, threads: int) -> Job:
        """Return the job for the host whose first process has ``rank``; the host adds its own directories."""
        values = self.workload.model_dump() | {"dataset_id": _located(self.workload.dataset_id)}
        usable = accelerators.usable_bytes(self.workload.gpu_model, self.workload.gpu_memory_gib)
        devices = {*self.capacities, self.workload.gpu_model} if self.workload.number_gpus else set()
        asks = self.kind.task == "memory_estimate" and usable is not None and not self.quick
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
            capacity_bytes=None if self.quick else usable,
            capacities=self.capacities,
            workspaces={name: accelerators.workspace_bytes(name) for name in devices},
            alternatives=alternatives.groups(self.workload, self.experiment) if asks else [],
            counts=alternatives.counts(self.workload) if asks else [],
        )

    def estimate(self) -> Plan | None:
        """Return the plan of a quick memory estimate of this workload, or None if it cannot be estimated."""
        workload = self.workload
        known = workload.number_gpus > 0 and accelerators.usable_bytes(workload.gpu_model) is not None
        if self.kind.task != "benchmark" or not known or workload.dataset_image_field:
            return None
        # if the estimate is only an upper bound, it may be too large for a device that the workload fits
        if supported.untraceable(workload) or supported.bounding(workload):
            return None
        return dataclasses.replace(self, experiment="finetune_memory_estimate", quick=True)

    def command(self) -> str:
        """Return the command that repeats the measurement without ado's store and without Ray."""
        return run_command(self.actuator, self.experiment, dict(sorted(self.given.items())))


def make_plan(actuator: str, experiment: str, values: dict[str, Any]) -> Plan:
    """Check property values and resolve the model, in milliseconds.

    Raises:
        failures.InvalidConfiguration: the workload is impossible.
        failures.BadInput: the model is unknown.
    """
    _check_properties(actuator, experiment, values)
    kind = KINDS[experiment]
    workload = parse({**kind.defaults, **values, **kind.sets})
    try:
        source = models.resolve(workload.model_name)
    except ValueError as error:
        raise failures.BadInput(str(error)) from None
    if workload.weights == "pretrained" and source.source is None:
        raise failures.BadInput(
            f"Model {workload.model_name} has no weights here; use weights random, or the hub id of a model."
        )
    _check_device(workload, experiment)
    if source.architecture and (message := supported.mismatch(workload, source.architecture)):
        raise failures.InvalidConfiguration(message)
    return Plan(actuator=actuator, experiment=experiment, workload=workload, given=dict(values), source=source)


def _check_device(workload: Workload, experiment: str) -> None:
    """Reject 8-bit products if the GPU is known not to have them, and a memory estimate if the memory of the GPU is not known."""
    needed = supported.FP8_CAPABILITY.get(workload.fp8_recipe)
    device = accelerators.find(workload.gpu_model)
    if needed and device is not None and (device.capability or 0.0) < needed:
        has = f"has {device.capability}" if device.capability else "is not a GPU of NVIDIA"
        raise failures.InvalidConfiguration(
            f"fp8_recipe {workload.fp8_recipe} needs compute capability {needed} or higher; gpu_model {workload.gpu_model!r} {has}."
        )
    estimated = KINDS[experiment].task == "memory_estimate" and workload.number_gpus and workload.gpu_model != "any"
    if estimated and accelerators.usable_bytes(workload.gpu_model, workload.gpu_memory_gib) is None:
        raise failures.InvalidConfiguration(accelerators.unknown(workload.gpu_model))


def _check_properties(actuator: str, experiment: str, values: dict[str, Any]) -> None:
    """Reject properties that the experiment lacks and values that it does not support."""
    kind = KINDS[experiment]
    known = fields(actuator, kind)
    for name, value in values.items():
        if name not in known:
            raise failures.InvalidConfiguration(unknown_property(name, value, experiment, actuator))
        allowed = kind.allowed(name, actuator)
        if allowed and value not in allowed:
            raise failures.InvalidConfiguration(
                f"{name} {value} is not supported by {experiment} in {actuator}; use {' or '.join(map(str, allowed))}."
            )


def _located(dataset: str) -> str:
    """Return the absolute path of a data file that exists here, since trainers run in another directory; any other name unchanged."""
    path = os.path.abspath(os.path.expanduser(dataset))  # noqa: PTH100, PTH111
    # os.path returns False for names that no file system allows; pathlib raises
    here = not dataset.startswith("synthetic-") and os.path.exists(path)  # noqa: PTH110
    return path if here else dataset
