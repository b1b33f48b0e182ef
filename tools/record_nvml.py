"""Records NVML's answers on this machine into a file that the tests of device sampling replay.

    python tools/record_nvml.py FILE [FRAMES] [SECONDS_BETWEEN]

It records the calls that ``core/host/nvml.py`` makes, for all GPUs in NVML's order. Errors are stored by NVML's names.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONCE = ("Name", "UUID", "PciInfo", "MigMode", "EnforcedPowerLimit")
EACH_FRAME = ("MemoryInfo", "UtilizationRates", "PowerUsage", "TotalEnergyConsumption")
FIELDS = {
    "PciInfo": ("domain", "bus", "device"),
    "MemoryInfo": ("total", "used", "free"),
    "UtilizationRates": ("gpu", "memory"),
}


def record(
    nvml: Any,
    frames: int,
    pause: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    source: str = "Recorded by record_nvml.py.",
    about: str = "",
) -> dict[str, Any]:
    """Return a recording of ``frames`` readings of every GPU that this process may use; ``pause`` is called after each of them."""
    nvml.nvmlInit()
    handles = []
    for index in range(nvml.nvmlDeviceGetCount()):
        # NVML also counts lost GPUs and GPUs of other containers
        with contextlib.suppress(nvml.NVMLError_NoPermission, nvml.NVMLError_GpuIsLost):
            handles.append(nvml.nvmlDeviceGetHandleByIndex(index))
    devices = [
        {f"nvmlDeviceGet{what}": answer(nvml, handle, what) for what in ONCE}
        | {f"nvmlDeviceGet{what}": [] for what in EACH_FRAME}
        for handle in handles
    ]
    times = []
    for _ in range(frames):
        times.append(clock())
        for handle, device in zip(handles, devices, strict=True):
            for what in EACH_FRAME:
                device[f"nvmlDeviceGet{what}"].append(answer(nvml, handle, what))
        pause()
    driver = nvml.nvmlSystemGetDriverVersion()
    return {
        "source": source,
        "about": about,
        "time_s": times,
        "nvmlSystemGetDriverVersion": driver,
        "devices": devices,
    }


def answer(nvml: Any, handle: Any, what: str) -> Any:
    """Return NVML's answer as a JSON value."""
    try:
        given = getattr(nvml, f"nvmlDeviceGet{what}")(handle)
    except nvml.NVMLError as error:
        names = [name for name in dir(nvml) if name.startswith("NVML_ERROR_") and getattr(nvml, name) == error.value]
        return {"error": names[0].removeprefix("NVML_ERROR_") if names else "UNKNOWN"}
    return {field: getattr(given, field) for field in FIELDS[what]} if what in FIELDS else given


def main(path: str, frames: str = "20", seconds: str = "0.1") -> None:
    """Record this machine's GPUs to a file."""
    nvml = importlib.import_module("pynvml")
    recording = record(nvml, int(frames), lambda: time.sleep(float(seconds)))
    Path(path).write_text(json.dumps(recording, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
