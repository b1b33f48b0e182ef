"""The parts of ``benchmarks/gpu.py`` about time, energy and reuse, on made-up measurements of a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import MIB, MadeUp, estimated, found_by, h100, states

import fidelity  # isort: skip
from gpu_checks import against_bare, energy, rates, reuse, stopping  # isort: skip
from gpu_checks.workloads import Choice  # isort: skip

pytestmark = pytest.mark.timeout(60)


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
    assert (values["model_name"], values["torch_dtype"], values["max_steps"]) == ("llama3.2-1b", "bfloat16", 12)
    assert (pairs, turns, warmup, bench.released) == (1, 3, 4, 1)
    assert states(against_bare.judge(found)) == ["met"] * 5
    assert bench.versions == {"trl": "1.16"}


def test_fidelity_misses() -> None:
    """A ratio of 1.013, another optimizer, slow hooks, a clock that is 2 % off and lost samples, each by itself."""
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


def test_the_plain_script_has_the_threads_of_a_trainer(tmp_path: Path) -> None:
    """By OMP_NUM_THREADS alone MKL takes one per physical core, which is half of the threads of most machines."""
    values = {**Choice("cpu").base, "cpus_per_process": 3}
    assert fidelity.bare_spec(values, 4, tmp_path)["threads"] == 3


def test_limits_of_fidelity() -> None:
    """On a GPU 1 %, on CPUs 2 %."""
    assert fidelity.LIMITS == {"gpu": 0.01, "cpu": 0.02}


# -- rates -------------------------------------------------------------------------------------------------------


def test_rates_do_not_wait_for_estimates_without_a_limit(bench: MadeUp) -> None:
    """A device without a known peak has none; estimates take time that the measurements need."""
    bench.name = "Abacus 3"
    bench.estimate = bench.expect = None  # type: ignore[assignment]
    rates.prepare(bench)
    found = found_by(rates, bench)
    assert states(rates.judge(found)) == ["met", "not measured", "met", "met"]


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


@pytest.mark.parametrize(("share", "state"), [(0.6, "met"), (0.999, "met"), (1.001, "missed")])
def test_the_limit_is_that_of_the_memory_estimate(bench: MadeUp, share: float, state: str) -> None:
    """The rate of token slots that a benchmark measures is compared with the bound, for each workload its own."""

    def limit(values: dict[str, Any]) -> float:
        rate: float = estimated(bench.estimated(values))[rates.LIMIT]
        return rate

    def change(values: dict[str, Any]) -> dict[str, Any]:
        return {"train_tokens_per_second": share * limit(values)}

    bench.estimate = lambda values, **how: estimated(bench.estimated(values))  # type: ignore[method-assign]
    bench.change = change
    found = found_by(rates, bench)
    assert [row["tokens_per_second"] / row["limit"] for row in found["rows"]] == pytest.approx([share] * 3)
    assert len({row["limit"] for row in found["rows"]}) == 3
    assert states(rates.judge(found))[1] == state


def test_rates_say_why_there_was_no_estimate(bench: MadeUp) -> None:
    """The message of the estimate is that of the check."""
    bench.predicted = {"error": "it cannot be traced"}
    assert rates.judge(found_by(rates, bench))[1].text == "it cannot be traced"


def test_rates_that_were_not_all_measured(bench: MadeUp) -> None:
    """Shapes without time, all or some, are neither met nor missed, and predictions leave time to measure."""
    kept: list[float] = []

    def estimate(values: dict[str, Any], *, keep_s: float = 0.0, **how: Any) -> dict[str, Any]:
        kept.append(keep_s)
        return bench.predicted

    bench.estimate = estimate  # type: ignore[method-assign]
    bench.change = lambda values: bench.may_take(1)
    checks = rates.judge(found_by(rates, bench))
    assert (checks[0].state, checks[0].text) == ("not measured", "1 ran; no time was left for 2")
    assert min(kept) >= 2 * rates.LEAST_S
    assert states(rates.judge({"rows": [], "left_out": {}, "planned": 3})) == ["not measured"] * 4


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
    """A GPU without an energy counter gives its reason, which does not hold its UUID."""
    bench.device = h100("vgpu-counters-missing")
    none = dict.fromkeys((energy.ENERGY, energy.POWER), None)

    def measure(values: dict[str, Any], **how: Any) -> Any:
        run = MadeUp.measure(bench, values, **how)
        for name in none:
            del run.properties[name]
        run.metadata["omitted"] = {"GRID T4-8Q GPU-1c8e52d4 has no energy counter: Not Supported.": list(none)}
        return run

    bench.measure = measure  # type: ignore[method-assign]
    found = found_by(energy, bench)
    checks = energy.judge(found)
    assert states(checks)[:2] == ["not measured", "not measured"]
    assert checks[0].text == "GRID T4-8Q has no energy counter: Not Supported."


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


def test_reuse_without_time_for_all(bench: MadeUp) -> None:
    """Five of ten measurements in one trainer do not show that all are, and no target is missed."""
    bench.change = lambda values: bench.may_take(1) if len(bench.asked) == 5 else None
    check = reuse.judge(found_by(reuse, bench))[0]
    assert (check.state, check.text) == ("not measured", "5 of 10 measurements; no time was left for the others")


def test_reuse_leaves_out_what_is_not_installed(bench: MadeUp) -> None:
    """Liger is named with its reason, and measured is the rest."""
    bench.absent = {"liger-kernel": "use_liger_kernel"}
    checks = reuse.judge(found_by(reuse, bench))
    assert [(one.what, one.text) for one in checks if one.state == "not measured"] == [
        ("use_liger_kernel runs", "liger-kernel is not installed")
    ]
