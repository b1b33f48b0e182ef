"""A GPU that is not there: NVML from a recording, and measurements with made-up numbers, for the parts of ``benchmarks/gpu.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from ..core.host.test_sampler import Replay

ROOT = Path(__file__).parents[2]
# the benchmarks are scripts that import each other
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from gpu_checks import device, edge  # noqa: E402
from gpu_checks.bench import Bench, Failed, Run  # noqa: E402
from gpu_checks.workloads import Choice  # noqa: E402

from ado_actuators.sfttrainer.core.host import nvml  # noqa: E402
from ado_actuators.sfttrainer.core.metrics import memory_estimate  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import MEMORY_KINDS  # noqa: E402
from ado_actuators.sfttrainer.core.workload import models, validation  # noqa: E402

GIB, MIB = 2**30, 2**20
H100_GIB = 79.6
BATCH = 37
TOKENS_PER_SECOND = 40_000.0


class Nvml(Replay):
    """NVML of four H100 whose clocks can be asked too; what else it is asked is not supported. Every reading is the next frame."""

    def __init__(self, name: str = "h100-four") -> None:
        super().__init__(name)
        self.used: list[int] = []

    def nvmlDeviceGetClockInfo(self, handle: int, domain: int) -> int:
        """Return 1980 MHz for SMs and 2619 MHz for memory."""
        return 1980 if domain == 1 else 2619

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        """Return that of an H100."""
        return 9, 0

    def __getattr__(self, call: str) -> Any:
        answer = super().__getattr__(call)
        if call.startswith("NVML_ERROR_"):
            return answer

        def ask(*arguments: Any) -> Any:
            try:
                return answer(*arguments[:1])
            except KeyError:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED) from None

        return ask


class MadeUp(Bench):
    """A bench on which nothing is measured: numbers are those of a GPU as it should be, changed by ``change``.

    ``asked`` holds the workloads in their order, ``released`` how often the trainer was ended.
    """

    def __init__(self, directory: Path, device: nvml.Device | None, change: Callable[[dict[str, Any]], Any]) -> None:
        gib = H100_GIB if device else 0.0
        super().__init__(
            choice=Choice("gpu" if device else "cpu", gib),
            device=device,
            state_dir=directory,
            absent={},
            name=device.name if device else "cpu",
        )
        self.change = change
        self.asked: list[dict[str, Any]] = []
        self.released = 0
        self.trained = 0
        self.used = [600 * MIB]
        self.predicted: dict[str, Any] = {
            "memory_estimate_gib": 10.1,
            "memory_reserved_gib": 11.2,
            "largest_batch_size": BATCH,
            "tokens_per_second_limit": 90_000.0,
        }
        self.may_take(1000.0)

    def measure(self, values: dict[str, Any], *, fresh: bool = False) -> Run:
        """Return a made-up measurement; ``change`` may give properties, or an exception to raise."""
        self.asked.append(values)
        changed = self.change(values)
        if isinstance(changed, Exception):
            raise changed
        got = properties(values) | (changed or {})
        reused, self.trained = self.trained > 0 and not fresh, self.trained + 1
        metadata: Any = {
            "reused": reused,
            "versions": {"torch": "2.9"},
            "omitted": {},
            "steps": {"stopped_by": "confidence" if values.get("target_ci_percent", 2) else "stop_after_seconds"},
        }
        if not got["is_valid"]:
            self.trained = 0
            return Run({"is_valid": 0, "failure": got["failure"]}, metadata | {"reason": "it does not fit."}, [])
        # training by steps whose times vary a little around the rate
        step_s = values["batch_size"] * values["model_max_length"] / got["train_tokens_per_second"]
        count = int(min(values.get("max_steps", 100), (values.get("stop_after_seconds") or 1e9) / step_s))
        # 3 are warm-up; of an even number of others the mean is exactly the rate's
        count = max(20, count) - (max(20, count) - 3) % 2
        steps = [step_s * (1 + 0.001 * (-1) ** number) for number in range(count)]
        memory = {"rss_bytes": 3 * GIB, "allocated_bytes": 64 * MIB}
        before = {"rss_bytes": 3 * GIB, "allocated_bytes": 0}
        return Run(got, metadata, steps, (100.0, 105.0), before, memory)

    def release(self) -> None:
        """Count."""
        self.released += 1
        self.trained = 0

    def expect(self, values: dict[str, Any], *, largest: bool = False) -> None:
        """Estimate nothing."""

    def estimate(self, values: dict[str, Any], *, largest: bool = False, keep_s: float = 0.0) -> dict[str, Any]:
        """Return ``predicted``."""
        return self.predicted

    def used_bytes(self) -> int | None:
        """Return what is in use, from the list; the last stays."""
        return self.used.pop(0) if len(self.used) > 1 else self.used[0]

    def _multiply(self, seconds: float, while_busy: Callable[[], None]) -> dict[str, Any]:
        while_busy()
        return {"torch": "2.9", "name": self.name, "tflops": 700.0, "size": 8192, "dtype": "bfloat16"}


def properties(values: dict[str, Any]) -> dict[str, Any]:
    """Return what an H100 could measure."""
    return {
        "is_valid": 1,
        "failure": "none",
        "warmup_steps": 3,
        "measured_steps": 17,
        "torch_peak_allocated_gib": 10.0,
        "torch_peak_reserved_gib": 11.0,
        "gpu_memory_peak_gib": 11.9,
        "cpu_memory_peak_gib": 4.0,
        "train_tokens_per_second": TOKENS_PER_SECOND,
        "train_samples_per_second": TOKENS_PER_SECOND / values["model_max_length"],
        "throughput_ci95_percent": 0.1,
        "model_flops_per_token": 7.5e9,
        "mfu_percent": 30.3,
        "energy_joules": 3500.0,
        "gpu_power_watts_avg": 690.0,
        "gpu_compute_utilization_avg": 99.0,
        "first_step_s": 2.0,
        "step_time_median_s": 0.2,
        "total_s": 9.0,
    }


def estimated(values: dict[str, Any], allocated_gib: float = 10.0, reserved_gib: float = 11.0) -> dict[str, Any]:
    """Return the properties of the memory estimate for a trace that needed this memory."""
    workload = validation.parse(values)
    architecture = models.resolve(workload.model_name).architecture
    parts = dict.fromkeys(MEMORY_KINDS, 0) | {"parameters": int(allocated_gib * GIB)}
    record: Any = {
        "peaks_bytes": {"passes": parts},
        "reserved_bytes": {"most": int(reserved_gib * GIB), "needed": int(allocated_gib * GIB)},
        "largest_batch_size": None,
        "architecture": architecture,
        "model_parameters": 10**9,
        "trainable_parameters": 10**9 if workload.method == "full" else 10**7,
    }
    report = memory_estimate.make(record, workload, total_s=1.0)
    return {name: value for name, value in report.properties.items() if value is not None}


def h100(name: str = "h100-four") -> nvml.Device:
    """Return the first GPU of a recording."""
    return next(iter(nvml.visible_devices("0", Nvml(name))))


def states(checks: list[Any]) -> list[str]:
    """Return the states of checks, in their order."""
    return [one.state for one in checks]


def found_by(part: Any, bench: MadeUp) -> dict[str, Any]:
    """Run a part and return what it found, as it is read back from a file."""
    found: dict[str, Any] = {}
    part.run(bench, found)
    again: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    assert part.blocks(again)
    return again


def found_by_without_blocks(part: Any, bench: MadeUp) -> dict[str, Any]:
    """Run a part that finds nothing to show."""
    found: dict[str, Any] = {}
    part.run(bench, found)
    assert part.blocks(found) == []
    return found


@pytest.fixture(autouse=True)
def _installed_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a run from putting the source tree before the installed plugin, in this process and in those of later tests."""
    monkeypatch.setattr(gpu, "use_source_tree", lambda: None)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """A bench on an H100 on which everything is as it should be, without waiting for a device to become idle."""
    monkeypatch.setattr("gpu_checks.bench.POLL_S", 0.01)
    monkeypatch.setattr(edge, "BASE_LINE_WAIT_S", 0.0)
    monkeypatch.setattr(device, "SETTLE_S", 0.0)
    monkeypatch.setattr(device, "APART_S", 0.0)
    return MadeUp(tmp_path, h100(), lambda values: None)


@pytest.fixture
def proof(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Give a function that runs parts on a bench and returns the results as they are read back from their file."""

    def run(bench: Bench, *parts: str, limit: float = 480.0, expected: int | None = None) -> dict[str, Any]:
        output = tmp_path / "results" / "gpu-made-up.json"
        given = argparse.Namespace(part=list(parts), device="gpu", limit=limit, quick=False, output=output)
        status = gpu.GpuRun(given, bench, circumstances(limit)).run()
        assert expected in (None, status)
        made: dict[str, Any] = json.loads(output.read_text())
        return made

    return run


def circumstances(limit: float = 480.0) -> dict[str, Any]:
    """Return results without any part."""
    gpu_described = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.6, "power_limit_watts": 700.0}
    hardware = {
        "devices": [gpu_described],
        "cpu": "made up",
        "memory_gib": 128,
        "usable_cores": 16,
        "driver": "570.86.15",
    }
    return {
        "benchmark": "gpu", "device": "gpu", "quick": False, "date": "2026-01-01 00:00 UTC", "hardware": hardware,
        "load_average_before": 0.1, "versions": {}, "commit": None, "command": "python benchmarks/gpu.py", "limit_s": limit,
        "took_s": 0.0, "complete": False, "left_out": {"flash-attn": "attn_implementation flash_attention_2"}, "notes": [], "parts": {},
    }  # fmt: skip


__all__ = ["Failed", "MadeUp", "Nvml"]
