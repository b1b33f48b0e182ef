"""The sampler and its process tree, with real processes and faulty devices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ado_actuators.sfttrainer.core.host import sampler as devices

pytestmark = [pytest.mark.torch, pytest.mark.timeout(60)]

BURN = """
import json, sys, time
held = bytearray(200 * 10**6)
print("ready", flush=True)
sys.stdin.readline()
begin_s, cpu_s = time.perf_counter(), time.process_time()
while time.perf_counter() < begin_s + 1:
    pass
print(json.dumps([begin_s, time.perf_counter(), time.process_time() - cpu_s]), flush=True)
sys.stdin.readline()
"""
PARENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[str]]:
    """Give a process whose child holds 200 MB, burns a CPU for 1 s on request, and reports when it did."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    if process.poll() is None:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
    process.communicate()


def report(process: subprocess.Popen[str]) -> list[float]:
    """Let the process burn; return begin and end on the clock of all processes, and the CPU seconds it used."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return list(json.loads(process.stdout.readline()))


def test_process_tree_is_measured_at_ten_hertz(burner: subprocess.Popen[str]) -> None:
    """CPU time and memory of a child's child are those of the phase."""
    sampler = devices.Sampler(devices.DeviceSet(), [burner.pid])
    sampler.start()
    time.sleep(0.3)
    begin_s, end_s, cpu_s = report(burner)
    samples = sampler.stop()
    found, omitted = devices.summarise(samples, begin_s, end_s)
    assert found["cpu_compute_utilization"] == pytest.approx(100 * cpu_s / (end_s - begin_s), abs=10)
    assert 200e6 < found["cpu_memory_peak_gib"] * 2**30 < 300e6
    assert omitted["gpu_memory_peak_gib"] == "No GPU is visible to the trainers."
    times = sorted(sample["time_s"] for sample in samples["samples"])
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    assert gaps[len(gaps) // 2] <= 0.1
    assert samples["samples"][0]["cpu_s"] == 0.0
    assert samples["samples"][-1]["time_s"] >= end_s


def test_sampler_sleeps(burner: subprocess.Popen[str]) -> None:
    """Sampling for a second costs this process less than a tenth of a core."""
    sampler = devices.Sampler(devices.DeviceSet(), [burner.pid])
    before = time.process_time()
    sampler.start()
    time.sleep(1)
    sampler.stop()
    assert time.process_time() - before < 0.1


def test_processes_that_vanish_are_tolerated(burner: subprocess.Popen[str]) -> None:
    """Sampling continues after the processes have ended, and their CPU time stays counted."""
    sampler = devices.Sampler(devices.DeviceSet(), [burner.pid, 2**22 + 1], interval_s=0.02)
    sampler.start()
    used_s = report(burner)[2]
    time.sleep(0.1)
    burner.communicate("\n")
    ended_s = time.perf_counter()
    time.sleep(0.2)
    samples = sampler.stop()["samples"]
    after = [sample for sample in samples if sample["time_s"] > ended_s]
    assert len(after) > 2
    assert {sample["rss_bytes"] for sample in after} == {None}
    assert after[-1]["cpu_s"] == max(sample["cpu_s"] for sample in samples) > used_s / 2


def test_later_child_counts_with_all_it_used() -> None:
    """A process that starts between two scans is found, and its CPU time counts."""
    tree = devices.ProcessTree([psutil.Process().pid])
    tree.rescan(0.0)
    base = tree.read()
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        cpu_s = report(child)[2]
        tree.rescan(float("inf"))
        used_s, rss_bytes = tree.read()
    finally:
        child.kill()
        child.communicate()
    assert base[0] == 0.0
    assert used_s > cpu_s - 0.02
    assert rss_bytes is not None
    assert base[1] is not None
    assert rss_bytes - base[1] > 150e6


def test_device_that_fails_is_noted() -> None:
    """After any exception of a driver, sampling continues, and the samples have the reason."""

    class Lost(devices.Device):
        def read(self) -> devices.Reading:
            raise OSError("the bus hung")

    lost = Lost("GPU", "GPU-0", 2**30, "1", 100.0, {})
    sampler = devices.Sampler(devices.DeviceSet((lost,), ""), [psutil.Process().pid], interval_s=0.02)
    sampler.start()
    time.sleep(0.2)
    samples = sampler.stop()
    found, omitted = devices.summarise(samples, samples["samples"][1]["time_s"], samples["samples"][-1]["time_s"])
    assert set(found) - {"cpu_share_percent"} == {"cpu_compute_utilization", "cpu_memory_peak_gib"}
    assert omitted["gpu_power_watts_avg"] == "GPU GPU-0 has no power: OSError: the bus hung."


def test_slow_device_does_not_turn_sampling_into_a_busy_loop() -> None:
    """The sampler always sleeps at least half the interval between two samples."""

    class Slow(devices.Device):
        def read(self) -> devices.Reading:
            time.sleep(0.05)
            return devices.Reading()

    slow = Slow("GPU", "GPU-0", None, "1", None, {})
    sampler = devices.Sampler(devices.DeviceSet((slow,), ""), [], interval_s=0.04)
    sampler.start()
    time.sleep(0.4)
    times = [sample["time_s"] for sample in sampler.stop()["samples"]]
    assert min(after - before for before, after in itertools.pairwise(times[:-1])) >= 0.065


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux counts the waiting of threads")
def test_two_processes_on_one_cpu_each_get_half() -> None:
    """What waits for a CPU that another process uses is measured; a process by itself on that CPU would get it all."""
    cpu = min(os.sched_getaffinity(0))
    burn = f"import os, time\nos.sched_setaffinity(0, [{cpu}])\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    burning = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(3)]
    try:
        time.sleep(1)
        sampler = devices.Sampler(devices.DeviceSet(), [burning[0].pid])
        sampler.start()
        time.sleep(2)
        samples = sampler.stop()
        first, last = samples["samples"][0]["time_s"], samples["samples"][-1]["time_s"]
        found, _ = devices.summarise(samples, first, last)
        # other work of the machine may take more of this CPU
        assert 0 < found["cpu_share_percent"] < 60
    finally:
        for process in burning:
            process.kill()
            process.wait()
