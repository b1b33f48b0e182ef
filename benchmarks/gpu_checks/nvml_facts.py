"""Clocks, limits and modes of a GPU from NVML, and recordings without UUIDs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# nvidia-ml-py's numbers of clock domains
SM, MEMORY = 1, 2
MILLI = 1e-3


def facts(nvml: Any, handle: Any) -> dict[str, Any]:
    """Return clocks (MHz), power limits (W), modes and buses of a GPU. What the driver does not say is in ``missing`` with its reason."""
    asked: dict[str, Callable[[], Any]] = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, MEMORY),
        "sm_clock_most_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, SM),
        "memory_clock_most_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, MEMORY),
        "sm_clock_of_applications_mhz": lambda: nvml.nvmlDeviceGetApplicationsClock(handle, SM),
        "power_limit_watts": lambda: MILLI * nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "power_limit_default_watts": lambda: MILLI * nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle),
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, 0),
        "persistence_mode": lambda: nvml.nvmlDeviceGetPersistenceMode(handle),
        "ecc_mode": lambda: nvml.nvmlDeviceGetEccMode(handle)[0],
        "compute_capability": lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "pcie_generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "pcie_width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        "cuda_of_driver": lambda: nvml.nvmlSystemGetCudaDriverVersion(),
        # bits: 1 idle, 2 application clocks, 4 power cap, 8 slowdown, 32 and 64 heat
        "clock_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, call in asked.items():
        try:
            found[name] = call()
        except (nvml.NVMLError, AttributeError) as error:
            missing[name] = str(error)
    return found | ({"missing": missing} if missing else {})


def computes_in(facts: dict[str, Any]) -> str:
    """Return the type to compute in: bfloat16 from compute capability 8 on, and where it is not known."""
    major = str(facts.get("compute_capability", "8")).partition(".")[0]
    return "bfloat16" if int(major) >= 8 else "float16"


def anonymous(recording: dict[str, Any]) -> dict[str, Any]:
    """Return a recording of ``tools/record_nvml.py`` with UUIDs replaced by numbered ones; it holds no serial numbers.

    The number of a GPU is its place in the recording, so an entry of CUDA_VISIBLE_DEVICES can still name it.
    """
    devices = [
        {**device, "nvmlDeviceGetUUID": f"GPU-{place:08x}-0000-0000-0000-000000000000"}
        if isinstance(device["nvmlDeviceGetUUID"], str)
        else device
        for place, device in enumerate(recording["devices"], 1)
    ]
    return {**recording, "devices": devices}


def summary(recording: dict[str, Any], place: int) -> dict[str, Any]:
    """Return what a recording shows of the GPU at ``place``: means of its frames, and how far the energy counter went.

    A counter that did not answer in every frame has its error instead, as NVML names it.
    """
    device = recording["devices"][place]
    series: dict[str, Callable[[Any], float]] = {
        "utilization_percent": lambda frame: float(frame["gpu"]),
        "memory_used_bytes": lambda frame: float(frame["used"]),
        "power_watts": lambda frame: MILLI * frame,
        "energy_joules": lambda frame: MILLI * frame,
    }
    calls = ("UtilizationRates", "MemoryInfo", "PowerUsage", "TotalEnergyConsumption")
    found: dict[str, Any] = {"frames": len(recording["time_s"])}
    for (name, value), call in zip(series.items(), calls, strict=True):
        frames = device[f"nvmlDeviceGet{call}"]
        failed = [frame["error"] for frame in frames if isinstance(frame, dict) and "error" in frame]
        if failed:
            found[name] = failed[0]
        elif name == "energy_joules":
            found[name] = value(frames[-1]) - value(frames[0])
        else:
            found[name] = sum(map(value, frames)) / len(frames)
    return found
