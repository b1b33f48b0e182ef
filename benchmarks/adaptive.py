"""Adaptive stopping against a fixed protocol of 60 s warm-up and 120 s measured, on the same workloads, in the same run.

Both are measured by the plugin's trainer, so that only the rule differs. The median of the adaptive measurements has to give the same
throughput within both intervals, in at most a fifth of the time, and each has to stop because it is sure: not the median of one, since
no interval knows that the machine was another one a minute later.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

from ado_actuators.sfttrainer.core.protocol.confidence import half_width_percent

SHARE = 0.2
# high enough that the stopping rule ends a measurement, not the number of steps
MANY_STEPS = 1_000_000
TARGET_PERCENT = 2.0
# a fixed protocol with a wider interval is not precise enough for a comparison
CONCLUSIVE_PERCENT = 5.0
# measures a workload, given by its property values
Measure = Callable[[dict[str, Any]], common.Measured]
DEVICE_PROPERTIES = ("mfu_percent", "energy_joules_per_token", "gpu_memory_peak_gib")


def main() -> int:
    """Run the benchmark; 0 if the target is met."""
    given = common.options(
        "Compare adaptive stopping with a fixed protocol.",
        "adaptive",
        ("--warmup", {"type": float, "default": None, "help": "seconds of the fixed protocol's warm-up (default 60)"}),
        ("--measured", {"type": float, "default": None, "help": "seconds it measures (default 120)"}),
        (
            "--repeats",
            {
                "type": int,
                "default": None,
                "help": "adaptive measurements, half of them before the fixed one (default 4)",
            },
        ),
    )
    warmup_s = given.warmup or (3.0 if given.quick else 60.0)
    measured_s = given.measured or (6.0 if given.quick else 120.0)
    repeats = given.repeats or (2 if given.quick else 4)
    facts = common.circumstances(given.device)
    results = []
    with tempfile.TemporaryDirectory(prefix="adaptive-") as directory:
        for name, values in common.cases(given.device, given.quick).items():

            def measure(given: dict[str, Any]) -> common.Measured:
                return common.measure(given, Path(directory))

            results.append(compare(name, values, warmup_s, measured_s, repeats, measure))
            common.add_versions(facts, results[-1].pop("versions"))
    met = all(
        conclusive(result)
        and result["median"]["agrees"]
        and result["median"]["time_ratio"] <= SHARE
        and all(one["stopped_by"] == "confidence" for one in result["adaptive"])
        for result in results
    )
    results_file = {"benchmark": "adaptive", "quick": given.quick, **facts, "results": results, "met": met}
    common.write(given.output, results_file, report(facts, results, met))
    return 0 if met or given.quick else 1


def compare(
    name: str, values: dict[str, Any], warmup_s: float, measured_s: float, repeats: int, measure: Measure
) -> dict[str, Any]:
    """Return the comparison for one workload; adaptive measurements are made before and after the fixed one."""
    # the fixed protocol measures for as long as the adaptive one may take at most: 120 s, the default of stop_after_seconds
    limit_s = measured_s
    adaptive = [adaptively(name, values, limit_s, measure) for _ in range(repeats // 2)]
    fixed = fixedly(name, values, warmup_s, measured_s, measure)
    adaptive += [adaptively(name, values, limit_s, measure) for _ in range(repeats - repeats // 2)]
    middle = {
        "interval": [statistics.median(one["interval"][end] or math.inf for one in adaptive) for end in (0, 1)],
        "time_ratio": statistics.median(one["training_s"] for one in adaptive) / fixed["training_s"],
    }
    for one in (*adaptive, middle):
        low, high = (end or math.inf for end in one["interval"])
        one["agrees"] = low <= (fixed["interval"][1] or math.inf) and fixed["interval"][0] <= high
    if math.isinf(middle["interval"][1]):
        middle["interval"][1] = None
    for one in adaptive:
        low, high = (end or math.inf for end in one["interval"])
        one["holds_the_fixed_mean"] = low <= fixed["tokens_per_second"] <= high
        one["difference_percent"] = 100 * (one["tokens_per_second"] / fixed["tokens_per_second"] - 1)
        one["time_ratio"] = one["training_s"] / fixed["training_s"]
        one["total_time_ratio"] = one["total_s"] / fixed["total_s"]
    return {
        "workload": name,
        "values": values,
        "fixed": fixed,
        "adaptive": adaptive,
        "median": middle,
        "versions": fixed.pop("versions"),
    }


def adaptively(name: str, values: dict[str, Any], limit_s: float, measure: Measure) -> dict[str, Any]:
    """Measure as the plugin does, and return throughput, interval (tokens/s) and times (s)."""
    limits = {"max_steps": MANY_STEPS, "target_ci_percent": TARGET_PERCENT, "stop_after_seconds": limit_s}
    ours = measure({**values, **limits})
    got = ours.verdict.properties
    made = throughput(ours.step_s[got["warmup_steps"] :], values) | {
        "training_s": math.fsum(ours.step_s),
        "total_s": got["total_s"],
        "warmup_steps": got["warmup_steps"],
        "stopped_by": ours.verdict.metadata["steps"]["stopped_by"],
        **of_the_device(got),
    }
    assert math.isclose(made["tokens_per_second"], got["train_tokens_per_second"], rel_tol=1e-9)
    common.say(f"{name}: adaptive {made['tokens_per_second']:.1f} tokens/s after {made['training_s']:.1f} s")
    return made


def fixedly(name: str, values: dict[str, Any], warmup_s: float, measured_s: float, measure: Measure) -> dict[str, Any]:
    """Measure for a fixed time, and return throughput and interval (tokens/s) over the steps between the two edges."""
    limits = {"max_steps": MANY_STEPS, "target_ci_percent": 0, "stop_after_seconds": warmup_s + measured_s}
    ours = measure({**values, **limits})
    got = ours.verdict.properties
    edges = [0.0, *itertools.accumulate(ours.step_s)]
    inside = [
        end - begin for begin, end in itertools.pairwise(edges) if warmup_s <= begin and end <= warmup_s + measured_s
    ]
    if len(inside) < 2:
        sys.exit(f"{name}: fewer than two steps fit into {measured_s} s.")
    # the plugin checks its limit only at some steps: later steps do not belong to the fixed time
    beyond_s = max(0.0, edges[-1] - warmup_s - measured_s)
    made = throughput(inside, values) | {
        "training_s": edges[-1] - beyond_s,
        "total_s": got["total_s"] - beyond_s,
        "warmup_steps": sum(begin < warmup_s for begin in edges[:-1]),
        "stopped_by": ours.verdict.metadata["steps"]["stopped_by"],
        **of_the_device(got),
        "versions": ours.verdict.metadata["versions"],
    }
    common.say(f"{name}: fixed {made['tokens_per_second']:.1f} tokens/s after {made['training_s']:.1f} s")
    return made


def conclusive(result: dict[str, Any]) -> bool:
    """Whether the fixed protocol's interval is narrow enough to be compared with."""
    return bool(result["fixed"]["ci95_percent"] <= CONCLUSIVE_PERCENT)


def of_the_device(got: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that need a GPU, if there is one."""
    return {key: got[key] for key in DEVICE_PROPERTIES if key in got}


def throughput(steps_s: list[float], values: dict[str, Any]) -> dict[str, Any]:
    """Return tokens/s with its 95 % interval, from step durations in seconds; every sample has full length."""
    tokens = values["batch_size"] * values["model_max_length"]
    mean_s, half = statistics.fmean(steps_s), half_width_percent(steps_s) / 100
    return {
        "measured_steps": len(steps_s),
        "step_time_cv": statistics.stdev(steps_s) / mean_s,
        "tokens_per_second": tokens / mean_s,
        "ci95_percent": 100 * half,
        # the interval is that of the mean step time: if it includes zero seconds, the rate has no upper bound
        "interval": [tokens / (mean_s * (1 + half)), tokens / (mean_s * (1 - half)) if half < 1 else None],
    }


def report(facts: dict[str, Any], results: list[dict[str, Any]], met: bool) -> str:
    """Return the benchmark's report as Markdown."""
    blocks = [common.heading("Adaptive stopping against a fixed protocol", facts)]
    head = [
        "workload",
        "protocol",
        "tokens/s",
        "95 % interval",
        "steps",
        "training",
        "of the fixed time",
        "agrees",
        "stopped by",
    ]
    lines = []
    for result in results:
        fixed = result["fixed"]
        lines.append([result["workload"], "fixed", *cells(fixed), "", "", fixed["stopped_by"]])
        for one in result["adaptive"]:
            share = f"{100 * one['time_ratio']:.1f} %"
            lines.append(["", "adaptive", *cells(one), share, "yes" if one["agrees"] else "no", one["stopped_by"]])
    blocks.append(common.table(head, lines))
    every = [one for result in results for one in result["adaptive"]]
    blocks.append(
        f"{sum(one['agrees'] for one in every)} of {len(every)} adaptive intervals overlap the fixed one, "
        f"{sum(one['holds_the_fixed_mean'] for one in every)} hold its mean; median difference "
        f"{statistics.median(one['difference_percent'] for one in every):+.2f} %. Time in training: median "
        f"{100 * statistics.median(one['time_ratio'] for one in every):.1f} %, worst "
        f"{100 * max(one['time_ratio'] for one in every):.1f} % of the fixed protocol's; with process "
        f"start, imports and model: median {100 * statistics.median(one['total_time_ratio'] for one in every):.1f} %."
    )
    blocks.append(
        f"Medians of the adaptive measurements, interval ends and time each by itself (target: overlap, at most {100 * SHARE:.0f} %): "
        + "; ".join(
            f"{result['workload']} {'agrees' if result['median']['agrees'] else 'does not agree'}, "
            f"in {100 * result['median']['time_ratio']:.1f} % of the time"
            for result in results
        )
        + "."
    )
    if not all(map(conclusive, results)):
        blocks.append(
            f"The fixed interval is wider than ± {CONCLUSIVE_PERCENT:g} %: this machine was too busy to compare anything."
        )
    blocks.append("Target met." if met else "**Target missed.**")
    return "\n\n".join(blocks)


def cells(one: dict[str, Any]) -> list[str]:
    """Return throughput, interval, steps and time for the table."""
    low, high = one["interval"]
    return [
        f"{one['tokens_per_second']:,.0f}",
        f"{low:,.0f} to {f'{high:,.0f}' if high else '∞'} (± {one['ci95_percent']:.2f} %)",
        f"{one['warmup_steps']} + {one['measured_steps']}",
        f"{one['training_s']:.1f} s",
    ]


if __name__ == "__main__":
    sys.exit(main())
