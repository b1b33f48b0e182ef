"""What a host returns beside the records of its trainers, and the metadata stored with a result, as types. Standard library only."""

from __future__ import annotations

from typing import TypedDict

from .messages import DeviceEstimate, JsonObject, StopReason


class DeviceDescription(TypedDict):
    """One GPU, for the metadata of a result; None if the driver does not report a value."""

    name: str
    uuid: str
    memory_gib: float | None
    power_limit_watts: float | None


class HardwareDescription(TypedDict, total=False):
    """The hardware of a node, for the metadata of a result; ``driver`` only where GPUs were measured."""

    devices: list[DeviceDescription]
    cpu: str
    logical_cores: int | None
    memory_gib: float
    driver: str


class DeviceSummary(TypedDict):
    """The host's device samples, summarised: ``properties`` by name, the reason for each ``omitted`` property, and the hardware."""

    properties: dict[str, float]
    omitted: dict[str, str]
    describe: HardwareDescription


class Steps(TypedDict):
    """The number of warm-up steps, and the reason why the measurement stopped."""

    warmup: int
    stopped_by: StopReason


class ResultMetadata(TypedDict, total=False):
    """Metadata stored with the properties of a result, with which the measurement can be understood and repeated.

    ``versions`` is always present. ``reason`` explains why a workload cannot run. ``hosts`` to ``device_per_host`` describe where the
    workload ran, ``facts`` to ``phases_s`` how it ran. ``peaks_bytes`` and ``traced_batches`` belong to memory estimates, ``errors`` and
    ``logs`` to experiments with several runs. ``omitted`` groups the properties without a value by reason.
    """

    versions: dict[str, str]
    reason: str
    omitted: dict[str, list[str]]
    workload: JsonObject
    command: str
    attempts: int
    hosts: list[str]
    log: str
    reused: bool
    device: HardwareDescription
    device_per_host: list[HardwareDescription]
    facts: JsonObject
    steps: Steps
    step_s: list[float]
    phases_s: dict[str, float]
    notes: list[str]
    peaks_bytes: dict[str, dict[str, int]]
    traced_batches: list[int]
    devices: list[DeviceEstimate]
    architecture: JsonObject
    model_parameters: int
    trainable_parameters: int
    errors: list[str]
    logs: list[str]
