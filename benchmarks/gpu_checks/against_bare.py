"""Part 4: fidelity. A plain TRL script and the plugin take turns; the plugin's step times are compared with a synchronised timer."""

from __future__ import annotations

from typing import Any

import common
import fidelity

from .bench import Bench
from .checks import Check, Found, check, unmeasured
from .rates import shape

TITLE = "Fidelity: through the plugin against a plain TRL script"
# synchronising and reading the clock adds to a training of some seconds
CLOCK_PERCENT = 0.5
# on an A100 a step takes 0.4 s, and each side trains four times
PAIRS, STEPS, WARMUP = 3, 12, 4


def run(bench: Bench, found: Found) -> None:
    """Compare. Both sides are separate processes; on a GPU the reused trainer is ended before, to free its memory."""
    bench.end_estimates()
    if bench.device is not None:
        bench.release()
    quick = bench.choice.quick
    steps, turns = (10, 1) if quick else (STEPS, PAIRS)
    limits = {"max_steps": steps, "stop_after_seconds": 0, "target_ci_percent": fidelity.UNREACHABLE_PERCENT}
    values = {**bench.choice.base, **limits}
    directory = bench.state_dir / "fidelity"
    directory.mkdir(exist_ok=True)
    result = fidelity.compare(shape(values), values, 1, turns, 3 if quick else WARMUP, directory)
    bench.versions |= result.pop("versions")
    found["result"] = result


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    ratio, same = "ratio of median step times", "both sides train the same thing"
    cost, clock, exact = (
        "own code per step",
        "step times agree with a synchronised timer",
        "samples/s × s = samples",
    )
    if "result" not in found:
        return [unmeasured(what, "it did not end") for what in (ratio, same, cost, clock, exact)]
    result: dict[str, Any] = found["result"]
    (pair,) = result["pairs"]
    turns = [ours / bare for ours, bare in zip(pair["ours_medians_s"], pair["bare_medians_s"], strict=True)]
    text = f"{result['ratio_median']:.4f} (pairs {', '.join(f'{one:.4f}' for one in turns)})"
    off = abs(result["ratio_median"] - 1)
    share = result["cost"]["trainer_percent_of_step"]
    clocks = result["clock_over_timer"]
    count = sum(one["exact"] for one in result["identity"])
    return [
        check(f"{ratio} 1.00 ± {result['limit']:g}", off <= result["limit"], text),
        check(same, not result["differences"], "; ".join(result["differences"]) or "as read back from what ran"),
        check(
            f"{cost} under {fidelity.COST_LIMIT_PERCENT:g} %",
            share < fidelity.COST_LIMIT_PERCENT,
            f"{share:.3f} %, {result['cost']['trainer_us_per_step']:.0f} µs",
        ),
        check(f"{clock} within {CLOCK_PERCENT:g} %", abs(clocks - 1) <= CLOCK_PERCENT / 100, f"{clocks:.5f}"),
        check(exact, count == len(result["identity"]), f"{count} of {len(result['identity'])}"),
    ]


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    if "result" not in found:
        return []
    result = found["result"]
    (pair,) = result["pairs"]
    rows = [
        [str(number), f"{1e3 * bare:.3f}", f"{1e3 * ours:.3f}", f"{ours / bare:.4f}"]
        for number, (bare, ours) in enumerate(zip(pair["bare_medians_s"], pair["ours_medians_s"], strict=True), 1)
    ]
    table = common.table(["pair", "plain, ms a step", "plugin, ms a step", "ratio"], rows)
    low, high = result["bare_against_itself_range"]
    noise = f"The plain script against itself {low:.4f} to {high:.4f}; ratio of means {pair['ratio_of_means']:.4f}"
    sampler = f"the host's sampler used {result['cost']['host_cpu_percent_of_one_core']:.2f} % of a core"
    turns = f"{result['values']['max_steps']} steps a turn, {result['warmup_steps']} of them warm-up"
    return [f"{result['workload']}, {turns}.\n\n{table}", f"{noise}; {sampler}."]
