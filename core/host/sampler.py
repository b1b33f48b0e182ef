"""Samples GPUs and processes while trainers run; describes the hardware.

Times are those of ``time.perf_counter``, which on Linux is CLOCK_MONOTONIC and shared by the processes of a node, so that
the edges of the measured phase can come from the trainers.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from ..metrics.accelerators import GIB
from ..metrics.device_samples import COUNTERS, DeviceFacts, DeviceSample, Sample, Samples, summarise
from ..protocol.results import HardwareDescription
from .nvml import Device, DeviceSet, MigUnsupported, Reading, visible_devices

__all__ = [
    "Device",
    "DeviceSet",
    "MigUnsupported",
    "ProcessTree",
    "Reading",
    "Sampler",
    "Samples",
    "describe",
    "summarise",
    "visible_devices",
]

# 12.5 Hz; drivers update utilisation and energy hardly more often
INTERVAL_S = 0.08
RESCAN_S = 1.0
# a scan for new child processes reads every process of the node; scans may take at most 1/200 of the time
RESCAN_COST = 200
# a process of PyTorch may have a hundred threads, each with a file to read
WAIT_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 5.0


class Sampler:
    """A thread that samples devices and process trees periodically. Use it once: ``start``, then ``stop``."""

    def __init__(
        self,
        devices: DeviceSet,
        pids: Iterable[int],
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare without reading.

        Args:
            devices: what to read.
            pids: roots of the process trees.
            interval_s: seconds from the beginning of a sample to the beginning of the next.
            clock: returns seconds.
        """
        self._devices = devices
        self._tree = ProcessTree(pids)
        self._interval_s = interval_s
        self._clock = clock
        self._facts = [_facts(device) for device in devices]
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        # a daemon thread, because a driver call that hangs must not keep the host process alive
        self._thread = threading.Thread(target=self._run, name="device-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> Samples:
        """Take a last sample, end the thread and return all samples; without ``start``, the samples of ``take``."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        return {"absent": self._devices.absent, "devices": self._facts, "samples": list(self._samples)}

    def take(self, *, last: bool = False) -> None:
        """Take one sample now; the last one is complete, however long it takes."""
        self._tree.rescan(self._clock())
        # taken after the scan, which may be long: the time must be that of the readings
        time_s = self._clock()
        cpu_s, rss_bytes = self._tree.read()
        readings = [self._read(device, facts) for device, facts in zip(self._devices, self._facts, strict=True)]
        self._samples.append(
            {
                "time_s": time_s,
                "cpu_s": cpu_s,
                "wait_s": self._tree.waited(math.inf if last else time_s),
                "rss_bytes": rss_bytes,
                "devices": readings,
            }
        )

    def _run(self) -> None:
        due = self._clock()
        while True:
            self.take()
            # late samples are not repeated, and slow devices do not cause a busy loop
            now = self._clock()
            due = max(due + self._interval_s, now + self._interval_s / 2)
            if self._ended.wait(due - now):
                break
        self.take(last=True)

    def _read(self, device: Device, facts: DeviceFacts) -> DeviceSample:
        time_s = self._clock()
        try:
            reading = device.read()
        except Exception as error:  # after any error of a driver, the measurement continues without its counters
            reading = Reading(missing=dict.fromkeys(COUNTERS, f"{type(error).__name__}: {error}"))
        for counter, reason in reading.missing.items():
            facts["missing"].setdefault(counter, reason)
        return {
            "time_s": time_s,
            "utilization_percent": reading.utilization_percent,
            "memory_used_bytes": reading.memory_used_bytes,
            "power_watts": reading.power_watts,
            "energy_joules": reading.energy_joules,
        }


class ProcessTree:
    """Processes and their descendants, read together."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._roots = set(pids)
        self._live: list[psutil.Process] = []
        self._used_s: dict[psutil.Process, float] = {}
        self._cpu_s = 0.0
        self._rescan_s = float("-inf")
        self._waited_s: dict[tuple[int, int], float] = {}
        self._wait_s = 0.0
        self._wait_due_s = float("-inf")

    def rescan(self, now_s: float) -> None:
        """Look for started and ended processes, unless the last scan was shortly before ``now_s``, seconds."""
        if now_s >= self._rescan_s:
            begin = time.perf_counter()
            self._live = self._scan()
            self._rescan_s = now_s + max(RESCAN_S, RESCAN_COST * (time.perf_counter() - begin))

    def read(self) -> tuple[float, int | None]:
        """Return CPU seconds used since the first reading, and the sum of resident sets in bytes, None without processes.

        The first reading is the baseline and returns 0 CPU seconds. The CPU time of ended processes is kept.
        """
        first = not self._used_s
        sizes: list[int] = []
        for process in self._live:
            try:
                with process.oneshot():
                    times, size = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue  # it ended
            used_s = times.user + times.system
            # all CPU time of a process that started after the baseline counts
            before = self._used_s.get(process, used_s if first else 0.0)
            self._cpu_s += max(0.0, used_s - before)
            self._used_s[process] = used_s
            if size:  # a zombie process has none
                sizes.append(size)
        return self._cpu_s, sum(sizes) if sizes else None

    def waited(self, now_s: float) -> float | None:
        """Return the seconds that the threads have been ready to run and waited for a CPU, since the first reading.

        Linux counts them for each thread. None on other systems, and where the last reading was a moment before ``now_s``, seconds.
        """
        if now_s < self._wait_due_s:
            return None
        begin = time.perf_counter()
        first, found = not self._waited_s, False
        for process in self._live:
            for thread, waited_s in _run_delays(process.pid):
                found = True
                key = (process.pid, thread)
                self._wait_s += max(0.0, waited_s - self._waited_s.get(key, waited_s if first else 0.0))
                self._waited_s[key] = waited_s
        self._wait_due_s = now_s + max(WAIT_INTERVAL_S, RESCAN_COST * (time.perf_counter() - begin))
        return self._wait_s if found else None

    def _scan(self) -> list[psutil.Process]:
        """Return the roots and their descendants, from one pass over the processes of the node."""
        if not self._roots:
            return []
        children: dict[int, list[psutil.Process]] = {}
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            if process.pid in self._roots:
                found.append(process)
                continue
            try:
                children.setdefault(process.ppid(), []).append(process)
            except psutil.Error:
                continue
        for process in found:  # grows during the loop
            found += children.pop(process.pid, [])
        return found


def _run_delays(pid: int) -> Iterator[tuple[int, float]]:
    """Yield for each thread of a process its id and the seconds it has waited for a CPU; nothing if the system does not report it."""
    with contextlib.suppress(OSError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                yield int(task.name), int(Path(task.path, "schedstat").read_text().split()[1]) / 1e9


def describe(devices: Iterable[Device]) -> HardwareDescription:
    """Return a description of the hardware for the metadata of a result, JSON-serialisable. Memory in GiB, power in W."""
    devices = list(devices)
    described: HardwareDescription = {
        "devices": [
            {
                "name": device.name,
                "uuid": device.uuid,
                "memory_gib": None if device.memory_total_bytes is None else round(device.memory_total_bytes / GIB, 2),
                "power_limit_watts": device.power_limit_watts,
            }
            for device in devices
        ],
        "cpu": _cpu_name(),
        "logical_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 2),
    }
    if devices:
        described["driver"] = devices[0].driver
    return described


def _facts(device: Device) -> DeviceFacts:
    return {
        "name": device.name,
        "uuid": device.uuid,
        "memory_total_bytes": device.memory_total_bytes,
        "power_limit_watts": device.power_limit_watts,
        "missing": dict(device.missing),
    }


def _cpu_name() -> str:
    """Return the processor's name as Linux gives it, or the machine type."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
