"""Fidelity: step times of a plain TRL script with a timer, and of the same workload through the plugin.

Pairs of fresh processes, one of each side, that train in turns, who goes first alternating: the machine's own ups and downs last longer
than a turn. Each turn gives the ratio of median step times after the same warm-up steps, each pair the median of its turns; 1.00 ± 0.02 on
CPUs and ± 0.01 on a GPU if measuring changes nothing. Separately: what the plugin's own functions cost per step, whether samples/s × time
= samples, and whether the plugin's clock agrees with a timer that synchronises the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common

from ado_actuators.sfttrainer.core.host import node
from ado_actuators.sfttrainer.core.host.trainer_process import trainer_environ

HERE = Path(__file__).resolve().parent
LIMITS = {"cpu": 0.02, "gpu": 0.01}
COST_LIMIT_PERCENT = 1.0
# no interval becomes so narrow: the stopping rule is evaluated at every check, but never stops
UNREACHABLE_PERCENT = 0.001
# facts that differ between any two runs, or that repeat others; the plugin cuts samples before TRL gets them, and none is longer here
INCOMPARABLE = ("output_dir", "run_name", "logging_dir", "max_length")


def main() -> int:
    """Run the benchmark; 0 if the target is met."""
    given = common.options(
        "Compare step times of a bare TRL script with those measured by the plugin.",
        "fidelity",
        ("--pairs", {"type": int, "default": None, "help": "pairs of processes per workload (default 6)"}),
        ("--turns", {"type": int, "default": None, "help": "turns of each pair, after one to warm up (default 8)"}),
        ("--steps", {"type": int, "default": None, "help": "optimizer steps of each turn (default 16)"}),
    )
    pairs = given.pairs or (2 if given.quick else 6)
    turns = given.turns or (2 if given.quick else 8)
    steps = given.steps or (12 if given.quick else 16)
    warmup = max(3, steps // 4)
    facts = common.circumstances(given.device)
    results = []
    with tempfile.TemporaryDirectory(prefix="fidelity-") as directory:
        for name, values in common.cases(given.device, given.quick).items():
            limits = {"max_steps": steps, "stop_after_seconds": 0, "target_ci_percent": UNREACHABLE_PERCENT}
            results.append(compare(name, {**values, **limits}, pairs, turns, warmup, Path(directory)))
            common.add_versions(facts, results[-1].pop("versions"))
    met = all(result["met"] for result in results)
    results_file = {"benchmark": "fidelity", "quick": given.quick, **facts, "results": results, "met": met}
    common.write(given.output, results_file, report(facts, results))
    return 0 if met or given.quick else 1


def compare(name: str, values: dict[str, Any], pairs: int, turns: int, warmup: int, directory: Path) -> dict[str, Any]:
    """Return the comparison for one workload.

    Args:
        name: of the workload.
        values: its property values.
        pairs: pairs of processes.
        turns: of each pair, after one that is left out.
        warmup: leading steps that are left out on both sides of a turn.
        directory: for files.

    Raises:
        SystemExit: a run failed.
    """
    made: list[list[dict[str, Any]]] = []
    for number in range(pairs):
        with bare(values, warmup, directory) as theirs, common.measuring(directory, reuse=True) as ours:
            sides: dict[str, Callable[[], Any]] = {"bare": theirs, "ours": lambda: ours(values)}
            both = [turn(sides, first="bare" if (number + count) % 2 else "ours") for count in range(turns + 1)]
        made.append(both[1:])
        common.say(f"{name}: pair {number + 1} of {pairs}: ratio {row(made[-1], warmup)['ratio']:.4f}")
    inside = own_cost(values, directory)
    different = differences(made[0][0]["bare"], made[0][0]["ours"], inside["arguments"], common.threads(values))
    rows = [row(pair, warmup) for pair in made]
    ratios = sorted(one["ratio"] for one in rows)
    limit = LIMITS["gpu" if values["number_gpus"] else "cpu"]
    every = [one for pair in made for one in pair]
    step_s, spent_s = (statistics.mean(inside[key][warmup:]) for key in ("step_s", "spent_s"))
    cost = {
        "trainer_us_per_step": 1e6 * spent_s,
        "trainer_percent_of_step": 100 * spent_s / step_s,
        "trainer_us_of_the_dearest_step": 1e6 * max(inside["spent_s"][warmup:]),
        "host_cpu_percent_of_one_core": statistics.median(one["ours"].host_cpu_percent for one in every),
    }
    median = statistics.median(ratios)
    exact = [identity(one["ours"], values) for one in every]
    return {
        "workload": name,
        "values": values,
        "warmup_steps": warmup,
        "turns": turns,
        "pairs": rows,
        "ratio_median": median,
        "ratio_range": [ratios[0], ratios[-1]],
        "bare_against_itself_range": against_itself([one for pair in rows for one in pair["bare_medians_s"]]),
        "cost": cost,
        "identity": exact,
        "clock_over_timer": inside["clock_s"] / inside["timer_s"],
        "differences": different,
        "limit": limit,
        "met": not different
        and abs(median - 1) <= limit
        and cost["trainer_percent_of_step"] < COST_LIMIT_PERCENT
        and all(one["exact"] for one in exact),
        "versions": made[0][0]["ours"].verdict.metadata["versions"],
    }


def turn(sides: dict[str, Callable[[], Any]], first: str) -> dict[str, Any]:
    """Train once on each side and return the results."""
    return {side: sides[side]() for side in sorted(sides, key=lambda side: side != first)}


@contextlib.contextmanager
def bare(values: dict[str, Any], warmup: int, directory: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Return a function that trains with the plain script, in a process with the threads, variables and device of a trainer."""
    given, log = directory / "bare.spec", directory / "bare.log"
    given.write_text(json.dumps(bare_spec(values, warmup, directory)), encoding="utf-8")
    command = [sys.executable, str(HERE / "in_turns.py"), str(given)]
    with (
        log.open("w", encoding="utf-8") as stream,
        subprocess.Popen(
            command, env=environ(values), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def train() -> dict[str, Any]:
            asks.write("train\n")
            asks.flush()
            line = answers.readline()
            if not line:
                sys.exit(f"in_turns.py ended:\n{log.read_text(encoding='utf-8')[-3000:]}")
            result: dict[str, Any] = json.loads(line)
            return result

        try:
            yield train
            asks.close()
        except BaseException:
            # otherwise it would finish its turn
            process.kill()
            raise


def bare_spec(values: dict[str, Any], warmup: int, directory: Path) -> dict[str, Any]:
    """Return the input of ``bare_trl.py`` for a workload."""
    plan = common.plan(values)
    names = ("model_max_length", "batch_size", "max_steps", "torch_dtype", "optim", "seed", "number_gpus")
    return {
        "architecture": plan.source.architecture,
        "output_dir": str(directory / "bare"),
        "edge": warmup,
        "threads": common.threads(values),
        **{name: getattr(plan.workload, name) for name in names},
    }


def own_cost(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run once with the plugin's functions timed."""
    plan = common.plan(values)
    job = plan.job(
        trust_remote_code=False,
        address=("127.0.0.1", 0),
        rank=0,
        threads=common.threads(values),
    )
    job = dataclasses.replace(job, run_dir=str(directory / "run"))
    return child("instrumented.py", json.loads(job.to_line()), values, directory)


def child(script: str, spec: dict[str, Any], values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run one of the scripts beside this one, as a trainer of this workload would be started, and return the JSON it writes."""
    given, made, log = (directory / f"{script}.{kind}" for kind in ("spec", "result", "log"))
    given.write_text(json.dumps(spec), encoding="utf-8")
    with log.open("w", encoding="utf-8") as stream:
        status = subprocess.run(
            [sys.executable, str(HERE / script), str(given), str(made)],
            env=environ(values),
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        sys.exit(f"{script} ended with {status}:\n{log.read_text(encoding='utf-8')[-3000:]}")
    result: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
    made.unlink()
    return result


def environ(values: dict[str, Any]) -> dict[str, str]:
    """Return the variables that a trainer of this workload would have."""
    return trainer_environ(common.threads(values), node.visible_mask(values["number_gpus"]), own_environment=True)


def differences(
    bare_run: dict[str, Any], ours: common.Measured, our_arguments: dict[str, Any], threads: int
) -> list[str]:
    """Return the settings, as read back, that differ between the two sides; empty if they trained in the same way."""
    got, facts = ours.verdict.properties, ours.verdict.metadata["facts"]
    pairs = {
        "parameters": (bare_run["facts"]["parameters"], got["model_parameters"]),
        "steps": (len(bare_run["step_s"]), len(ours.step_s)),
        **{key: (bare_run["facts"][key], facts[key]) for key in ("dtype", "attn_implementation", "optimizer")},
        "threads": (bare_run["facts"]["threads"], threads),
        **{
            f"SFTConfig.{key}": (bare_run["arguments"].get(key), our_arguments.get(key))
            for key in sorted({*bare_run["arguments"], *our_arguments} - {*INCOMPARABLE})
        },
    }
    return [f"{key}: bare {theirs!r}, ours {mine!r}" for key, (theirs, mine) in pairs.items() if theirs != mine]


def row(pair: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Return the numbers of one pair: median step times of its turns in seconds, and ratios of ours to bare."""
    theirs = [statistics.median(one["bare"]["step_s"][warmup:]) for one in pair]
    mine = [statistics.median(one["ours"].step_s[warmup:]) for one in pair]
    # also compared by wall clock over all steps, since medians leave out slow steps
    means = [math.fsum(one["ours"].step_s[warmup:]) / one["bare"]["window_s"] for one in pair]
    return {
        "bare_medians_s": theirs,
        "ours_medians_s": mine,
        "ratio": statistics.median(ours / bare for ours, bare in zip(mine, theirs, strict=True)),
        "ratio_of_means": statistics.median(means),
    }


def against_itself(medians: list[float]) -> list[float]:
    """Return the range of ratios of each plain run to the one before: the variation of this machine."""
    ratios = [after / before for before, after in itertools.pairwise(medians)]
    return [min(ratios), max(ratios)] if ratios else [1.0, 1.0]


def identity(ours: common.Measured, values: dict[str, Any]) -> dict[str, Any]:
    """Return samples as counted in steps, and as rate × time; they may differ by rounding only."""
    got = ours.verdict.properties
    samples = got["measured_steps"] * values["batch_size"]
    product = got["train_samples_per_second"] * got["train_runtime_s"]
    measured = ours.step_s[got["warmup_steps"] :]
    return {
        "samples": samples,
        "samples_per_second_times_seconds": product,
        "exact": math.isclose(product, samples, rel_tol=4 * sys.float_info.epsilon)
        and len(measured) == got["measured_steps"]
        and math.fsum(measured) == got["train_runtime_s"],
    }


def report(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Return the benchmark's report as Markdown."""
    blocks = [common.heading("Fidelity: through the plugin against a bare TRL script", facts)]
    head = ["workload", "pairs", "bare step", "ratio, median", "range", "of means", "bare against itself"]
    lines = []
    for result in results:
        means = statistics.median(one["ratio_of_means"] for one in result["pairs"])
        lines.append(
            [
                result["workload"],
                str(len(result["pairs"])),
                f"{1e3 * statistics.median(one for pair in result['pairs'] for one in pair['bare_medians_s']):.2f} ms",
                f"{result['ratio_median']:.4f}",
                "{:.3f} to {:.3f}".format(*result["ratio_range"]),
                f"{means:.4f}",
                "{:.3f} to {:.3f}".format(*result["bare_against_itself_range"]),
            ]
        )
    blocks.append(common.table(head, lines))
    steps = ", ".join(
        sorted(
            {
                f"{r['turns']} turns a pair of {r['values']['max_steps']} steps, {r['warmup_steps']} of them warm-up"
                for r in results
            }
        )
    )
    targets = " or ".join(sorted({f"1.00 ± {result['limit']:.2f}" for result in results}))
    threads = "" if any(result["values"]["number_gpus"] for result in results) else ", on CPUs in one thread"
    blocks.append(
        f"Ratio: median step time through the plugin ÷ bare, turn by turn, of each pair the median; target "
        f"{targets}. {steps}{threads}. Of means: all steps of the window ÷ the bare script's wall clock. "
        "Bare against itself: each bare turn ÷ the one before, the noise of this machine."
    )
    head = [
        "workload",
        "in the trainer, per step",
        "share of a step",
        "dearest step",
        "host and sampler",
        "clock ÷ timer",
        "samples/s × s = samples",
    ]
    blocks.append(
        common.table(
            head,
            [
                [
                    result["workload"],
                    f"{result['cost']['trainer_us_per_step']:.0f} µs",
                    f"{result['cost']['trainer_percent_of_step']:.3f} %",
                    f"{result['cost']['trainer_us_of_the_dearest_step']:.0f} µs",
                    f"{result['cost']['host_cpu_percent_of_one_core']:.2f} % of a core",
                    f"{result['clock_over_timer']:.5f}",
                    f"{sum(one['exact'] for one in result['identity'])} of {len(result['identity'])}",
                ]
                for result in results
            ],
        )
    )
    blocks.append(
        "Cost of measuring: mean time of the plugin's hooks, clock and stopping rule on the training thread, timed inside a run of "
        f"its own (target under {COST_LIMIT_PERCENT:g} %); the host's sampler runs in another process. Clock ÷ timer: all steps by the "
        "plugin's clock ÷ a timer that synchronises the device before the first and after the last."
    )
    blocks += [
        f"**The two sides of {result['workload']} did not do the same:** {'; '.join(result['differences'])}."
        for result in results
        if result["differences"]
    ]
    blocks.append("Target met." if all(result["met"] for result in results) else "**Target missed.**")
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
