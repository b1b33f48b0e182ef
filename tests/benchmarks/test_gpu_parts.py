"""The parts of ``benchmarks/gpu.py`` on made-up measurements of a GPU: what they ask for, what they find, what they conclude."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.host import nvml
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict

from .conftest import (
    BATCH,
    GIB,
    H100_GIB,
    MIB,
    Failed,
    MadeUp,
    Nvml,
    estimated,
    found_by,
    found_by_without_blocks,
    states,
)

from gpu_checks import against_bare, device, edge, energy, memory, nvml_facts, rates, reuse, stopping  # isort: skip
from gpu_checks.bench import Bench  # isort: skip
from gpu_checks.schedule import OutOfTime  # isort: skip
from gpu_checks.workloads import Choice, refusal  # isort: skip

pytestmark = pytest.mark.timeout(60)


# -- workloads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gib", [8.0, 15.0, 22.5, 24.0, 39.5, 79.6, 139.8])
def test_every_workload_can_be_planned_and_fits_its_device(gib: float, bench: MadeUp) -> None:
    """Each is a valid workload of the plugin, and on small cards large ones are left out."""
    from gpu_checks.bench import _plan

    choice = Choice("gpu", gib)
    cases = [case for case in (*choice.memory(), *choice.rates(), *choice.patched()) if not refusal(case, gib, {})]
    assert all(case.needs_gib <= gib for case in cases)
    for values in [*(case.values for case in cases), choice.base, choice.edge(), *choice.repeated()]:
        assert _plan(values).workload.number_gpus == 1
    assert len(choice.memory()) >= 10
    assert {case.name for case in cases} >= {"135M full 512x4, fused", "base", "torch_compile"}
    names = {case.name for case in cases}
    assert ("8B LoRA 2048x1, checkpointing" in names) == (gib >= 22)


def test_a_workload_whose_package_is_missing_is_left_out() -> None:
    """The reason names the package."""
    (qlora,) = (case for case in Choice("gpu", 80.0).memory() if case.package == "bitsandbytes")
    assert refusal(qlora, 80.0, {"bitsandbytes": "QLoRA"}) == "bitsandbytes is not installed"
    assert refusal(qlora, 80.0, {}) == ""


def test_gpus_without_bfloat16_compute_in_float16() -> None:
    """From compute capability 8 on bfloat16; below float16, autocast too."""
    assert nvml_facts.computes_in({"compute_capability": "9.0"}) == "bfloat16"
    assert nvml_facts.computes_in({}) == "bfloat16"
    assert nvml_facts.computes_in({"compute_capability": "7.5"}) == "float16"
    types = {case.values["torch_dtype"] for case in Choice("gpu", 80.0, "float16").memory()}
    assert types == {"float16", "float32"}
    assert {case.values.get("mixed_precision") for case in Choice("gpu", 80.0, "float16").memory()} == {None, "fp16"}


# -- device ------------------------------------------------------------------------------------------------------


def doctor_line(text: str) -> Callable[[], list[dict[str, str]]]:
    """Stand in for doctor, which looks at this machine."""
    return lambda: [{"what": "GPU", "state": "ok", "text": text, "remedy": ""}]


def test_device_is_recorded_idle_and_busy_without_its_uuid(bench: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings replay, say which GPU it was by a number, and hold no UUID of the machine."""
    monkeypatch.setattr(device, "doctor", doctor_line("NVIDIA H100 80GB HBM3, 79.6 GiB"))
    bench.recordings = bench.state_dir / "gpu-made-up.json"
    real = bench.device
    assert real is not None
    found = found_by(device, bench)
    paths = sorted(bench.state_dir.glob("*.json"))
    assert [path.name for path in paths] == ["gpu-made-up-nvml-busy.json", "gpu-made-up-nvml-idle.json"]
    for path in paths:
        text = path.read_text()
        assert not any(one["nvmlDeviceGetUUID"] in text for one in real.nvml.recording["devices"])  # type: ignore[attr-defined]
        replayed = Nvml()
        replayed.recording = json.loads(text)
        again = list(nvml.visible_devices(None, replayed))
        assert len(again) == 4
        assert len({one.uuid for one in again}) == 4
    assert found["nvml_busy"]["sm_clock_mhz"] == 1980
    assert "temperature_celsius" in found["nvml_busy"]["missing"]
    # the same frame, idle and busy: only that cannot be met
    assert states(device.judge(found)) == ["met", "met", "met", "met", "missed"]
    found["recorded_busy"] = {"frames": 30, "utilization_percent": 100.0, "power_watts": 650.0, "energy_joules": 2000.0}
    assert states(device.judge(found))[-1] == "met"


def test_device_says_what_is_wrong(bench: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device for torch, memory that is not the table's, silent counters, a doctor that finds nothing."""
    monkeypatch.setattr(device, "doctor", doctor_line("nothing"))
    found = found_by(device, bench)
    found["matrix_product"]["name"] = "NVIDIA T4"
    found["device"]["memory_total_gib"] = 94.0
    found["recorded_busy"]["energy_joules"] = "NOT_SUPPORTED"
    checks = device.judge(found)
    assert states(checks) == ["missed", "missed", "missed", "missed", "not measured"]
    assert checks[3].text == "energy_joules NOT_SUPPORTED"


def test_torch_that_cannot_use_the_gpu_ends_the_other_parts(
    bench: MadeUp, proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are skipped with the reason instead of failing one after the other."""
    monkeypatch.setattr(device, "doctor", doctor_line("nothing"))

    def refuse(*call: Any) -> dict[str, Any]:
        raise Failed("the matrix product failed: no kernel image is available", "log")

    monkeypatch.setattr(bench, "_multiply", refuse)
    results = proof(bench, "device", "memory", "reuse", expected=1)
    assert not bench.asked
    assert {name: part["state"] for name, part in results["parts"].items()} == {
        "device": "ran",
        "memory": "skipped",
        "reuse": "skipped",
    }
    assert "no kernel image" in results["parts"]["memory"]["reason"]


# -- memory ------------------------------------------------------------------------------------------------------


def test_memory_within_its_targets(bench: MadeUp) -> None:
    """10.1 for 10.0 GiB allocated and 11.2 for 11.0 reserved are met, and what the driver takes is small enough."""
    found = found_by(memory, bench)
    assert len(found["rows"]) == len(Choice("gpu", H100_GIB).memory())
    assert states(memory.judge(found)) == ["met", "met", "met", "met"]
    assert memory.judge(found)[1].text.startswith("12 of 12 workloads; worst +1.0 %")


def test_memory_names_the_worst_prediction(bench: MadeUp) -> None:
    """One of twelve is 9.2 % off; NVML is 3 GiB above torch's allocator."""
    lora = Choice("gpu", H100_GIB).memory()[6]
    bench.change = lambda values: (
        {"torch_peak_allocated_gib": 9.25, "gpu_memory_peak_gib": 14.0} if values == lora.values else None
    )
    checks = memory.judge(found_by(memory, bench))
    assert states(checks) == ["met", "missed", "met", "missed"]
    assert checks[1].text == "11 of 12 workloads; worst +9.2 % (1B LoRA 512x4)"


@pytest.mark.parametrize(
    ("allocated", "reserved", "expected"),
    [(10.19, 11.54, ["met", "met"]), (10.21, 11.54, ["missed", "met"]), (10.19, 11.56, ["met", "missed"])],
)
def test_memory_is_judged_by_the_estimate(
    bench: MadeUp, allocated: float, reserved: float, expected: list[str]
) -> None:
    """2 % of 10 GiB allocated and 5 % of 11 GiB reserved, in the units that the estimate returns."""
    bench.estimate = lambda values, **how: estimated(bench.estimated(values), allocated, reserved)  # type: ignore[method-assign]
    bench.change = lambda values: {"torch_peak_allocated_gib": 10.0, "torch_peak_reserved_gib": 11.0}
    assert states(memory.judge(found_by(memory, bench)))[1:3] == expected


def test_memory_says_that_nothing_was_predicted(bench: MadeUp) -> None:
    """Without memory_reserved_gib only that is not measured; without an estimate its reason is given."""
    bench.predicted = {"memory_estimate_gib": 10.1}
    checks = memory.judge(found_by(memory, bench))
    assert states(checks)[1:3] == ["met", "not measured"]
    assert checks[2].text == memory.NO_RESERVED
    bench.predicted = {"error": "it cannot be traced"}
    assert memory.judge(found_by(memory, bench))[1].text == "it cannot be traced"


def test_memory_that_is_cut_off_has_the_predictions_that_are_done(bench: MadeUp) -> None:
    """They are not waited for; the workload that was interrupted is no result, and those that ran do not stand for all."""
    waits: list[float] = []

    def change(values: dict[str, Any]) -> None:
        if len(bench.asked) == 3:
            raise OutOfTime("it took longer than its 95 s")

    def estimate(values: dict[str, Any], *, keep_s: float = 0.0, **how: Any) -> dict[str, Any]:
        waits.append(max(0.0, bench.left_s() - keep_s))
        return bench.predicted

    bench.estimate = estimate  # type: ignore[method-assign]
    bench.change = change
    found: dict[str, Any] = {}
    with pytest.raises(OutOfTime):
        memory.run(bench, found)
    checks = memory.judge(found)
    assert waits == [0.0, 0.0]
    assert states(checks) == ["not measured", "met", "met", "met"]
    assert checks[0].text == "2 ran; no time was left for 10"


def test_memory_ends_with_the_time_it_has(bench: MadeUp) -> None:
    """What is not begun is named, and a failed workload is a missed target."""
    bench.may_take(memory.LEAST_S - 1)
    found = found_by_without_blocks(memory, bench)
    assert set(found["left_out"].values()) == {"no time was left"}
    assert states(memory.judge(found))[0] == "not measured"
    bench.may_take(100)
    bench.change = lambda values: Failed("the trainer was killed", "log")
    checks = memory.judge(found_by(memory, bench))
    assert checks[0].state == "missed"
    assert "the trainer was killed" in checks[0].text


@pytest.mark.parametrize("left_s", [0.0, 100.0])
def test_a_measurement_that_ends_with_the_time_of_its_part_is_no_failure(
    left_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time limit is what is left of the part's; a failure before that is the workload's."""
    bench = Bench(choice=Choice("cpu"), device=None, state_dir=tmp_path, absent={}, name="cpu")
    bench.may_take(left_s)
    monkeypatch.setattr(Local, "measure", lambda self, plan: Verdict({}, "it took longer.", {"versions": {}}))
    with pytest.raises(Failed if left_s else OutOfTime):
        bench.measure(Choice("cpu").base)


def test_estimates_that_have_just_begun_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that starts while the others are ended is ended too."""
    begun, ended = threading.Event(), threading.Event()
    ends: list[bool] = []

    def measure(self: Local, plan: Any) -> Any:
        begun.set()
        assert ended.wait(30)
        raise ValueError("write to closed file")

    def end(self: Local, *error: object) -> None:
        ends.append(True)
        if len(ends) == 2:
            ended.set()

    monkeypatch.setattr(Local, "measure", measure)
    monkeypatch.setattr(Local, "__exit__", end)
    bench = Bench(choice=Choice("cpu"), device=None, state_dir=tmp_path, absent={}, name="cpu")
    values = Choice("cpu").base
    bench.expect(values)
    assert begun.wait(30)
    bench.end_estimates()
    assert len(ends) >= 2
    assert not bench._estimates


def test_an_estimate_that_fails_in_any_way_is_only_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that asks for it goes on."""

    def measure(self: Local, plan: Any) -> Any:
        raise ValueError("write to closed file")

    monkeypatch.setattr(Local, "measure", measure)
    bench = Bench(choice=Choice("cpu"), device=None, state_dir=tmp_path, absent={}, name="cpu")
    bench.may_take(30)
    assert bench.estimate(Choice("cpu").base) == {"error": "ValueError: write to closed file"}
    bench.close()


# -- edge --------------------------------------------------------------------------------------------------------


def beyond(values: dict[str, Any], fits: int = BATCH) -> dict[str, Any] | None:
    """Run out of memory above ``fits``."""
    return {"is_valid": 0, "failure": "gpu_oom"} if values["batch_size"] > fits else None


def test_edge_of_a_right_prediction(bench: MadeUp) -> None:
    """The largest batch runs, 1.1 times it does not, and a new trainer measures afterwards."""
    bench.change = beyond
    found = found_by(edge, bench)
    assert [values["batch_size"] for values in bench.asked] == [37, 41, 4]
    assert bench.released == 1
    assert states(edge.judge(found)) == ["met"] * 5
    assert found["next"]["reused"] is False


def test_edge_of_wrong_predictions(bench: MadeUp) -> None:
    """Too high: the largest batch runs out of memory. Too low: 1.1 times it runs, so nothing is classified."""
    bench.change = lambda values: beyond(values, 20)
    assert states(edge.judge(found_by(edge, bench))) == ["missed", "met", "met", "met", "met"]
    bench.change = lambda values: None
    assert states(edge.judge(found_by(edge, bench))) == ["met", "missed", "not measured", "met", "met"]


def test_edge_of_a_trainer_that_is_not_replaced(bench: MadeUp) -> None:
    """Memory that stays in use, another failure than gpu_oom and a trainer that is used again are missed targets."""
    bench.change = lambda values: Failed("CUDA error: illegal memory access") if values["batch_size"] > BATCH else None
    bench.used = [600 * MIB, 600 * MIB + GIB]
    bench.settled_bytes = lambda at_most, wait_s=0.0: bench.used_bytes()  # type: ignore[method-assign]
    found = found_by(edge, bench)
    found["next"]["reused"] = True
    checks = edge.judge(found)
    assert states(checks) == ["met", "not measured", "missed", "missed", "missed"]
    assert checks[3].text == "0.59 GiB before, +1024 MiB after"


def test_edge_of_an_unknown_device(bench: MadeUp) -> None:
    """Without the device's memory no largest batch is predicted: nothing is measured, and the reason is given."""
    del bench.predicted["largest_batch_size"]
    checks = edge.judge(found_by_without_blocks(edge, bench))
    assert states(checks) == ["not measured"] * 5
    assert checks[0].text == "no largest batch was predicted for NVIDIA H100 80GB HBM3"


def test_settled_memory_is_waited_for(bench: MadeUp) -> None:
    """Memory that the driver gives back after a moment is back."""
    bench.used = [5 * GIB, 5 * GIB, 600 * MIB]
    assert bench.settled_bytes(GIB, wait_s=60.0) == 600 * MIB
    bench.used = [5 * GIB]
    assert bench.settled_bytes(GIB, wait_s=0.0) == 5 * GIB


def test_a_recording_lacks_gpus_that_may_not_be_used() -> None:
    """GPUs of other containers, which NVML counts, are left out instead of ending the recording."""
    import pynvml

    others = Nvml()
    others.no_handle = {0: pynvml.NVML_ERROR_NO_PERMISSION, 2: pynvml.NVML_ERROR_GPU_IS_LOST}
    made = device._recorder().record(others, 1, lambda: None)
    assert len(made["devices"]) == 2


def test_what_nothing_was_found_of_is_not_measured(tmp_path: Path) -> None:
    """Each part can be judged and shown before it has found anything."""
    for part in (device, memory, edge, against_bare, rates, energy, stopping, reuse):
        assert "met" not in states(part.judge({}))
        assert part.blocks({}) == []
