"""Part 8: ten measurements in one trainer; torch.compile and Liger, which change libraries, in separate ones."""

from __future__ import annotations

import statistics
from typing import Any

import common

from ado_actuators.sfttrainer.core.host.memory_growth import ALLOCATED_GROWTH_BYTES, RSS_GROWTH_BYTES

from .bench import Bench, Failed
from .checks import Check, Found, check, number, unmeasured
from .rates import shape
from .workloads import refusal

# the growth that a host allows a trainer
ALLOWED_BYTES = {"rss_bytes": RSS_GROWTH_BYTES, "allocated_bytes": ALLOCATED_GROWTH_BYTES}

TITLE = "Reuse of a trainer"
MIB = 2**20
# with less left no further measurement is begun
LEAST_S, LEAST_FRESH_S = 6.0, 25.0
GROWTH_MIB = 1.0
SPEED_PERCENT = 2.0


def run(bench: Bench, found: Found) -> None:
    """Measure one after the other in one trainer, then with compiled models and fused kernels."""
    bench.end_estimates()
    rows: list[dict[str, Any]] = []
    patched: dict[str, dict[str, Any]] = {}
    asked = len(bench.choice.repeated())
    found.update(rows=rows, patched=patched, left_out={}, on_gpu=bench.device is not None, asked=asked)
    for values in bench.choice.repeated():
        if bench.left_s() < LEAST_S:
            break
        measured = bench.measured(values)
        used = bench.used_bytes()
        rows.append(
            {
                "name": shape(values),
                "reused": measured.metadata["reused"],
                "before": dict(measured.memory_before),
                "after": {name: measured.memory_after[name] for name in ALLOWED_BYTES if name in measured.memory_after},
                "nvml_bytes": used,
                "step_ms": 1e3 * statistics.median(measured.step_s[3:] or measured.step_s),
            }
        )  # fmt: skip
    bench.say(f"{len(rows)} measurements in one trainer")
    for case in bench.choice.patched():
        reason = refusal(case, bench.choice.gib, bench.absent)
        if reason or bench.left_s() < LEAST_FRESH_S:
            found["left_out"][case.name] = reason or "no time was left"
            continue
        patched[case.name] = _alone(bench, case.values)
        bench.say(f"{case.name}: {patched[case.name].get('error', 'ran')}")


def _alone(bench: Bench, values: dict[str, Any]) -> dict[str, Any]:
    try:
        got = bench.measured(values, fresh=True).properties
    except Failed as failed:
        return {"error": str(failed), "log": failed.log}
    return {name: got[name] for name in ("first_step_s", "step_time_median_s", "train_tokens_per_second")}


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    rows = found.get("rows", [])
    one, back, grows = "all in one trainer", "memory is back at its base line", "allocated memory does not grow"
    speed = "the last measurement is as fast as the first"
    if len(rows) < 3:
        return [unmeasured(what, f"{len(rows)} measurements were made") for what in (one, back, grows, speed)]
    reused = sum(row["reused"] for row in rows[1:])
    asked = found.get("asked", len(rows))
    text = f"{reused + 1} of {asked} measurements"
    if reused == len(rows) - 1 and len(rows) < asked:
        checks = [unmeasured(one, f"{text}; no time was left for the others")]
    else:
        checks = [check(one, reused == len(rows) - 1, text)]
    checks += [_back(back, rows), _grows(grows, rows), _speed(speed, rows, on_gpu=found["on_gpu"])]
    for name, result in found.get("patched", {}).items():
        text = (
            result.get("error")
            or f"first step {result['first_step_s']:.1f} s, then {1e3 * result['step_time_median_s']:.1f} ms"
        )
        checks.append(check(f"{name} runs", "error" not in result, text))
    return checks + [unmeasured(f"{name} runs", reason) for name, reason in found.get("left_out", {}).items()]


def grown(row: dict[str, Any], kind: str) -> int | None:
    """Return by how many bytes memory of a ``kind`` was above its base line after a measurement, or None."""
    before, after = row["before"].get(kind), row["after"].get(kind)
    return None if before is None or after is None else after - before


def _back(what: str, rows: list[dict[str, Any]]) -> Check:
    shown, holds = [], True
    for kind, allowed in ALLOWED_BYTES.items():
        known = [value for row in rows if (value := grown(row, kind)) is not None]
        if known:
            shown.append(
                f"{kind.removesuffix('_bytes')} {max(known) / MIB:+.0f} MiB at most, {allowed / MIB:.0f} allowed"
            )
            holds = holds and max(known) <= allowed and len(known) == len(rows)
    return check(what, holds, "; ".join(shown)) if shown else unmeasured(what, "no trainer said what it used")


def _grows(what: str, rows: list[dict[str, Any]]) -> Check:
    known = [row["after"]["allocated_bytes"] for row in rows if "allocated_bytes" in row["after"]]
    if len(known) < 3:
        return unmeasured(what, "torch's allocator counts on GPUs only")
    # the first measurement of each workload allocates workspaces that stay
    growth = (max(known[2:]) - max(known[:2])) / MIB
    return check(what, growth <= GROWTH_MIB, f"{growth:+.1f} MiB after the second")


def _speed(what: str, rows: list[dict[str, Any]], *, on_gpu: bool) -> Check:
    same = [row["step_ms"] for row in rows if row["name"] == rows[0]["name"]]
    off = 100 * (same[-1] / same[0] - 1)
    text = f"{same[0]:.2f} and {same[-1]:.2f} ms a step ({off:+.1f} %)"
    return (
        check(f"{what} within {SPEED_PERCENT:g} %", abs(off) <= SPEED_PERCENT, text)
        if on_gpu
        else unmeasured(what, f"{text}; CPUs vary more")
    )


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    rows = found.get("rows", [])
    if not rows:
        return []
    lines = []
    for place, row in enumerate(rows, 1):
        cells = [grown(row, kind) for kind in ("allocated_bytes", "rss_bytes")]
        mib = [None if value is None else value / MIB for value in (*cells, row["nvml_bytes"])]
        lines.append(
            [
                f"{place}: {row['name']}",
                f"{row['step_ms']:.2f}",
                *(number(value, "+,.1f") for value in mib[:2]),
                number(mib[2]),
            ]
        )
    head = ["measurement", "ms a step", "allocated, MiB above base", "resident, MiB above base", "NVML, MiB"]
    return [common.table(head, lines)]
