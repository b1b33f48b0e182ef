"""The devices that trainers use, read outside the trainer's process: NVIDIA GPUs through NVML, or an empty set.

pynvml is imported only when a GPU is requested. Without a GPU the set of devices is empty and holds the reason, so callers
do not have to check for one.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from .. import failures

NO_VISIBLE_GPU = "No GPU is visible to the trainers."


class MigUnsupported(failures.Broken):
    """A MIG device is requested: NVML has no utilisation for one, and power and energy only for the whole GPU."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """The counters of a device at one moment; None if it has no such counter or did not answer.

    Attributes:
        utilization_percent: share of the driver's last sampling period (1/6 to 1 s) in which a kernel ran.
        memory_used_bytes: memory in use by all processes and by the driver.
        power_watts: power of the whole board; from Ampere on the mean of the last second, on GA100 an instantaneous value.
        energy_joules: total since the driver was loaded; only differences have a meaning. Volta and newer.
        missing: the reason for each field that is None, by name.
    """

    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Device(abc.ABC):
    """A device: its constant attributes, and ``read`` for its counters.

    Attributes:
        name: as the driver gives it, for example ``NVIDIA H100 80GB HBM3``.
        uuid: as the driver gives it, ``GPU-...``.
        memory_total_bytes: physical memory, or None.
        driver: version of the driver.
        power_limit_watts: the limit in force, or None.
        missing: the reason for each attribute that is None, by name.
    """

    name: str
    uuid: str
    memory_total_bytes: int | None
    driver: str
    power_limit_watts: float | None
    missing: dict[str, str]

    @abc.abstractmethod
    def read(self) -> Reading:
        """Return the current counters. A counter that cannot be read is None and has a reason in ``missing``."""


@dataclasses.dataclass(frozen=True)
class DeviceSet:
    """Devices in CUDA's order; iterable. If empty, ``absent`` is the reason."""

    devices: tuple[Device, ...] = ()
    absent: str = NO_VISIBLE_GPU

    def __iter__(self) -> Iterator[Device]:
        """Iterate over the devices."""
        return iter(self.devices)

    def __len__(self) -> int:
        """Return how many devices there are."""
        return len(self.devices)


@dataclasses.dataclass(frozen=True)
class NvmlDevice(Device):
    """A whole NVIDIA GPU. NVML allows calls from any thread."""

    nvml: Any = dataclasses.field(repr=False)
    handle: Any = dataclasses.field(repr=False)

    def read(self) -> Reading:
        """Return the current counters; the energy counter is read first, so that it belongs to the time taken just before the call."""
        missing: dict[str, str] = {}

        def ask(name: str, call: Callable[[], float]) -> float | None:
            return _ask(self.nvml, missing, name, call)

        nvml, handle = self.nvml, self.handle
        energy = ask("energy_joules", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        power = ask("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        utilization = ask("utilization_percent", lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        memory = ask("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        return Reading(utilization, None if memory is None else int(memory), power, energy, missing)


def visible_devices(mask: str | None, nvml: Any = None) -> DeviceSet:
    """Return the GPUs that a process with CUDA_VISIBLE_DEVICES ``mask`` computes on.

    The rules are CUDA's: entries are indices or UUIDs; a UUID may be abbreviated if it stays unique; the first invalid entry
    ends the list; a duplicate GPU empties it. Indices are in the order of PCI buses
    (CUDA_DEVICE_ORDER=PCI_BUS_ID), as those of NVML and Ray do.

    Args:
        mask: the variable's value; None: it is not set, so all GPUs are visible.
        nvml: replaces the pynvml module in tests.

    Raises:
        MigUnsupported: the mask names a MIG device, or a GPU it names is in MIG mode.
    """
    if mask is not None and not mask.strip():
        return DeviceSet()
    entries = None if mask is None else [entry.strip() for entry in mask.split(",")]
    for entry in entries or ():
        if entry.startswith("MIG-"):
            raise _mig_unsupported(entry)
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return DeviceSet(absent="GPUs cannot be read: the package nvidia-ml-py is not installed.")
    try:
        # never shut down: that would invalidate the handles of devices in use; NVML allows to initialise again
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
        handles = _in_bus_order(nvml)
        chosen = _chosen(entries, [nvml.nvmlDeviceGetUUID(handle) for handle in handles])
        devices = tuple(_device(nvml, handles[index], driver) for index in chosen)
    except nvml.NVMLError as error:
        return DeviceSet(absent=f"This node has no NVIDIA GPU that answers: {error}.")
    if not devices:
        named = "" if mask is None else f" that CUDA_VISIBLE_DEVICES={mask!r} names"
        return DeviceSet(absent=f"This node has no NVIDIA GPU{named}.")
    return DeviceSet(devices, absent="")


def _mig_unsupported(which: str) -> MigUnsupported:
    return MigUnsupported(
        f"{which} is in MIG mode, whose parts cannot be measured: "
        "switch MIG off, or choose another GPU with CUDA_VISIBLE_DEVICES."
    )


def _in_bus_order(nvml: Any) -> list[Any]:
    """Return the handles of all GPUs this process may use, by PCI bus."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            address = nvml.nvmlDeviceGetPciInfo(handle)
        except (nvml.NVMLError_NoPermission, nvml.NVMLError_GpuIsLost):
            continue  # counted by NVML, but CUDA does not see it either
        found.append(((address.domain, address.bus, address.device), handle))
    return [handle for _, handle in sorted(found, key=lambda pair: pair[0])]


def _chosen(entries: list[str] | None, uuids: list[str]) -> list[int]:
    """Return positions in ``uuids`` that ``entries`` of CUDA_VISIBLE_DEVICES choose, in their order."""
    if entries is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in entries:
        if entry.startswith("GPU-"):
            named = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
        else:
            named = [int(entry)] if entry.isdecimal() and int(entry) < len(uuids) else []
        if len(named) != 1:
            break
        if named[0] in chosen:
            return []
        chosen += named
    return chosen


def _device(nvml: Any, handle: Any, driver: str) -> NvmlDevice:
    missing: dict[str, str] = {}
    name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
    # GPUs without MIG do not support the query
    mode = _ask(nvml, {}, "mig", lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode:
        raise _mig_unsupported(f"{name} {uuid}")
    memory = _ask(nvml, missing, "memory_total_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total)
    limit = _ask(nvml, missing, "power_limit_watts", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
    return NvmlDevice(name, uuid, None if memory is None else int(memory), driver, limit, missing, nvml, handle)


def _ask(nvml: Any, missing: dict[str, str], name: str, call: Callable[[], float]) -> float | None:
    """Return the result of ``call``, or None with NVML's reason in ``missing``."""
    try:
        return call()
    except nvml.NVMLError as error:
        missing[name] = str(error)
        return None
