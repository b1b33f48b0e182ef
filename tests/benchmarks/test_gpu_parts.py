"""The parts of ``benchmarks/gpu.py`` on made-up measurements of a GPU: what they ask for, what they find, what they conclude."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.host import nvml

from .conftest import BATCH, GIB, H100_GIB, MIB, Failed, MadeUp, Nvml, h100

import fidelity  # isort: skip
from gpu_checks import against_bare, device, edge, energy, memory, nvml_facts, rates, reuse, stopping  # isort: skip
from gpu_checks.workloads import Choice, refusal  # isort: skip

pytestmark = pytest.mark.timeout(60)


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
    monkeypatch.setattr(device, "SETTLE_S", 0.0)
    monkeypatch.setattr(device, "APART_S", 0.0)
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
    monkeypatch.setattr(device, "SETTLE_S", 0.0)
    monkeypatch.setattr(device, "APART_S", 0.0)
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


def test_memory_says_that_nothing_was_predicted(bench: MadeUp) -> None:
    """Without memory_reserved_gib only that is not measured; without an estimate its reason is given."""
    bench.predicted = {"memory_estimate_gib": 10.1}
    checks = memory.judge(found_by(memory, bench))
    assert states(checks)[1:3] == ["met", "not measured"]
    assert checks[2].text == memory.NO_RESERVED
    bench.predicted = {"error": "it cannot be traced"}
    assert memory.judge(found_by(memory, bench))[1].text == "it cannot be traced"


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


def found_by_without_blocks(part: Any, bench: MadeUp) -> dict[str, Any]:
    """Run a part that finds nothing to show."""
    found: dict[str, Any] = {}
    part.run(bench, found)
    assert part.blocks(found) == []
    return found


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


# -- fidelity ----------------------------------------------------------------------------------------------------


def compared(ratio: float = 1.004, **changes: Any) -> dict[str, Any]:
    """Return what ``fidelity.compare`` would."""
    return {
        "workload": "llama3.2-1b full 2048x4",
        "values": {"max_steps": 20},
        "warmup_steps": 5,
        "turns": 3,
        "pairs": [
            {
                "bare_medians_s": [0.2, 0.2, 0.2],
                "ours_medians_s": [0.2 * ratio] * 3,
                "ratio": ratio,
                "ratio_of_means": ratio,
            }
        ],
        "ratio_median": ratio,
        "ratio_range": [ratio, ratio],
        "bare_against_itself_range": [0.999, 1.001],
        "cost": {
            "trainer_us_per_step": 150.0,
            "trainer_percent_of_step": 0.075,
            "trainer_us_of_the_dearest_step": 300.0,
            "host_cpu_percent_of_one_core": 0.8,
        },
        "identity": [{"samples": 60, "samples_per_second_times_seconds": 60.0, "exact": True}] * 3,
        "clock_over_timer": 0.9998,
        "differences": [],
        "limit": 0.01,
        "met": True,
        "versions": {"trl": "1.16"},
        **changes,
    }


def test_fidelity_compares_on_the_gpu_alone(bench: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs of turns of the 1B model in bfloat16, with the kept trainer ended before, to one percent."""
    asked: list[Any] = []

    def compare(*given: Any) -> dict[str, Any]:
        asked.append(given)
        return compared()

    monkeypatch.setattr(fidelity, "compare", compare)
    found = found_by(against_bare, bench)
    ((_, values, pairs, turns, warmup, _),) = asked
    assert (values["model_name"], values["torch_dtype"], values["max_steps"]) == ("llama3.2-1b", "bfloat16", 20)
    assert (pairs, turns, warmup, bench.released) == (1, 3, 5, 1)
    assert states(against_bare.judge(found)) == ["met"] * 5
    assert bench.versions == {"trl": "1.16"}


def test_fidelity_misses() -> None:
    """A ratio of 1.013, another optimizer, dear hooks, a clock that is 2 % off and lost samples, each by itself."""
    wrong: list[dict[str, Any]] = [
        {"ratio": 1.013},
        {"differences": ["optimizer: bare 'SGD', ours 'AdamW'"]},
        {"cost": {**compared()["cost"], "trainer_percent_of_step": 1.5}},
        {"clock_over_timer": 0.98},
        {"identity": [{"exact": False}, {"exact": True}]},
    ]
    for place, changes in enumerate(wrong):
        expected = ["missed" if other == place else "met" for other in range(5)]
        assert states(against_bare.judge({"result": compared(**changes)})) == expected


def test_limits_of_fidelity() -> None:
    """On a GPU 1 %, on CPUs 2 %."""
    assert fidelity.LIMITS == {"gpu": 0.01, "cpu": 0.02}


# -- rates -------------------------------------------------------------------------------------------------------


def test_rates_below_their_limits(bench: MadeUp) -> None:
    """40,000 tokens/s of 90,000, 300 of 700 TFLOP/s, MFU 30.3 %: all three shapes are met."""
    found = found_by(rates, bench)
    checks = rates.judge(found)
    assert states(checks) == ["met"] * 4
    assert checks[3].text == "300.00 of 700.00 TFLOP/s (43 %), peak 990"


def test_rates_above_their_limits(bench: MadeUp) -> None:
    """What is impossible is missed: above the limit, MFU above 100 %, faster than a matrix product."""
    bench.change = lambda values: {"train_tokens_per_second": 100_000.0, "mfu_percent": 130.0}
    assert states(rates.judge(found_by(rates, bench))) == ["met", "missed", "missed", "missed"]


def test_rates_without_a_limit(bench: MadeUp) -> None:
    """An estimate that gives none and a device without a peak are said; the matrix product remains."""
    bench.predicted = {}
    bench.change = lambda values: {"mfu_percent": None}
    found = found_by(rates, bench)
    for row in found["rows"]:
        del row["mfu_percent"]
    checks = rates.judge({**found, "peak": {"tflops": None, "reason": "the peak is not known."}})
    assert states(checks) == ["met", "not measured", "not measured", "met"]
    assert checks[1].text == "the estimate gives no tokens_per_second_limit"


# -- energy ------------------------------------------------------------------------------------------------------


def energy_found(**changes: Any) -> dict[str, Any]:
    """Return what the part finds on a GPU as it should be."""
    plugin = {energy.ENERGY: 3500.0, energy.POWER: 690.0, energy.UTILISATION: 99.0}
    return {
        "workload": "llama3.2-1b full 2048x4",
        "seconds": 5.0,
        "whole_seconds": 9.0,
        "plugin": plugin | changes.pop("plugin", {}),
        "second": {energy.ENERGY: 3490.0, energy.POWER: 688.0, energy.UTILISATION: 98.5},
        "whole": {energy.ENERGY: 4000.0, energy.POWER: 450.0, energy.UTILISATION: 60.0},
        "omitted": dict.fromkeys((energy.ENERGY, energy.POWER, energy.UTILISATION), "no counter"),
        **changes,
    }


def test_energy_by_counter_and_by_power() -> None:
    """3500 J and 690 W × 5 s agree within 5 %; 3800 J do not; utilisation has to be that of the phase."""
    assert states(energy.judge(energy_found())) == ["met", "met", "met"]
    assert states(energy.judge(energy_found(plugin={energy.ENERGY: 3800.0}))) == ["missed", "missed", "met"]
    assert states(energy.judge(energy_found(plugin={energy.UTILISATION: 60.0}))) == ["met", "met", "missed"]


def test_energy_without_a_counter(bench: MadeUp) -> None:
    """A GPU without an energy counter gives its reason."""
    bench.device = h100("vgpu-counters-missing")
    none = dict.fromkeys((energy.ENERGY, energy.POWER), None)

    def measure(values: dict[str, Any], **how: Any) -> Any:
        run = MadeUp.measure(bench, values, **how)
        for name in none:
            del run.properties[name]
        run.metadata["omitted"] = {"GRID T4-8Q gives no energy counter: Not Supported.": list(none)}
        return run

    bench.measure = measure  # type: ignore[method-assign]
    found = found_by(energy, bench)
    checks = energy.judge(found)
    assert states(checks)[:2] == ["not measured", "not measured"]
    assert checks[0].text == "GRID T4-8Q gives no energy counter: Not Supported."


# -- adaptive ----------------------------------------------------------------------------------------------------


def test_adaptive_agrees_with_sixty_seconds(bench: MadeUp) -> None:
    """A fixed protocol of 60 s between two adaptive measurements, in one trainer."""
    found = found_by(stopping, bench)
    assert [values.get("stop_after_seconds") for values in bench.asked] == [None, 50.0, 60.0, 50.0]
    assert found["result"]["fixed"]["training_s"] == pytest.approx(60.0, rel=0.01)
    checks = stopping.judge(found)
    assert states(checks)[:2] == ["met", "met"]
    assert checks[0].text.count("0.00 %") == 2
    # made-up adaptive measurements go on to their limit
    assert checks[2].state == "missed"


def test_adaptive_that_disagrees(bench: MadeUp) -> None:
    """Rates 3 % apart with narrow intervals, and stopping at the limit, are missed; a vague fixed protocol measures nothing."""
    found = found_by(stopping, bench)
    result = found["result"]
    result["median"]["agrees"], result["adaptive"][0]["stopped_by"] = False, "stop_after_seconds"
    result["median"]["time_ratio"] = 0.1
    assert states(stopping.judge(found)) == ["missed", "missed", "met"]
    result["fixed"]["ci95_percent"] = 9.0
    assert states(stopping.judge(found)) == ["not measured"] * 3


# -- reuse -------------------------------------------------------------------------------------------------------


def test_reuse_of_one_trainer(bench: MadeUp) -> None:
    """Ten measurements in turns, then Liger and torch.compile; cuBLAS's 64 MiB that stay are allowed."""
    found = found_by(reuse, bench)
    assert len(found["rows"]) == 10
    assert len({json.dumps(values, sort_keys=True) for values in bench.asked[:10]}) == 2
    assert list(found["patched"]) == ["use_liger_kernel", "torch_compile"]
    assert states(reuse.judge(found)) == ["met"] * 6


def test_reuse_that_leaks(bench: MadeUp) -> None:
    """A trainer that was replaced, memory that grows, steps that slow down, a compiler that fails: each is missed."""
    found = found_by(reuse, bench)
    found["rows"][4]["reused"] = False
    found["rows"][9]["after"]["allocated_bytes"] = 200 * MIB
    found["rows"][8]["step_ms"] *= 1.05
    found["patched"]["torch_compile"] = {"error": "no C compiler"}
    checks = reuse.judge(found)
    assert states(checks) == ["missed", "missed", "missed", "missed", "met", "missed"]
    assert checks[2].text == "+136.0 MiB after the second"


def test_reuse_leaves_out_what_is_not_installed(bench: MadeUp) -> None:
    """Liger is named with its reason, and measured is the rest."""
    bench.absent = {"liger-kernel": "use_liger_kernel"}
    checks = reuse.judge(found_by(reuse, bench))
    assert [(one.what, one.text) for one in checks if one.state == "not measured"] == [
        ("use_liger_kernel runs", "liger-kernel is not installed")
    ]


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
