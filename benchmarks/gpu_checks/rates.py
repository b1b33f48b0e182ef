"""Part 5: speed against limits: MFU, the estimate's bound, and a matrix product on the same machine."""

from __future__ import annotations

from typing import Any

import common

from ado_actuators.sfttrainer.core.metrics import accelerators

from .bench import Bench, Failed
from .checks import Check, Found, check, number, unmeasured
from .workloads import refusal

TITLE = "Rates against limits"
LEAST_S = 12.0
# the product and three shapes; predictions that would leave less are not waited for
MEASURING_S = 25.0
# token slots per second of all devices, as train_tokens_per_second
LIMIT = "tokens_per_second_limit"
# a training step is not faster than a matrix product; 2 % for the variation of the product
ROUNDING = 1.02


def prepare(bench: Bench) -> None:
    """Begin the estimates, if they know a limit."""
    known = _limited(bench)
    for case in bench.choice.rates():
        if known and not refusal(case, bench.choice.gib, bench.absent):
            bench.expect(case.values)


def run(bench: Bench, found: Found) -> None:
    """Measure the shapes."""
    rows: list[dict[str, Any]] = []
    found.update(rows=rows, left_out={}, planned=0)
    predicted: dict[str, dict[str, Any]] = {}
    # an estimate without a limit would cost the time of the measurements
    known = _limited(bench)
    for case in bench.choice.rates():
        if reason := refusal(case, bench.choice.gib, bench.absent):
            found["left_out"][case.name] = reason
            continue
        predicted[case.name] = bench.estimate(case.values, keep_s=MEASURING_S) if known else {}
    bench.end_estimates()
    found["planned"] = len(predicted)
    found["matrix_product"] = bench.matrix_product()
    peak, reason = accelerators.peak_tflops(bench.name, bench.choice.dtype)
    found["peak"] = {"tflops": peak, "reason": reason}
    for case in bench.choice.rates():
        if case.name not in predicted:
            continue
        if bench.left_s() < LEAST_S:
            found["left_out"][case.name] = "no time was left"
            continue
        estimate = predicted[case.name]
        limit = {"limit": estimate.get(LIMIT), "no_limit": estimate.get("error")}
        rows.append({"name": shape(case.values), "values": case.values, **limit, **_measured(bench, case.values)})
        bench.say(f"{rows[-1]['name']}: {number(rows[-1].get('tokens_per_second'), ',.0f', 'no number')} tokens/s")


def _limited(bench: Bench) -> bool:
    """Return whether estimates for this device can have a limit."""
    return bench.device is not None and accelerators.peak_tflops(bench.name, bench.choice.dtype)[0] is not None


def shape(values: dict[str, Any]) -> str:
    """Return a workload as a name."""
    named = f"{values['model_name']} {values.get('method', 'full')} {values['model_max_length']}x{values['batch_size']}"
    return named + (", checkpointing" if values.get("gradient_checkpointing") else "")


def _measured(bench: Bench, values: dict[str, Any]) -> dict[str, Any]:
    try:
        run = bench.measured(values)
    except Failed as failed:
        return {"error": str(failed), "log": failed.log}
    got = run.properties
    names = {
        "tokens_per_second": "train_tokens_per_second",
        "ci95_percent": "throughput_ci95_percent",
        "flops_per_token": "model_flops_per_token",
        "mfu_percent": "mfu_percent",
    }
    made = {short: got[name] for short, name in names.items() if name in got}
    if "flops_per_token" in made:
        made["tflops"] = made["tokens_per_second"] * made["flops_per_token"] / 1e12
    return made


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    rows = [row for row in found.get("rows", []) if "tokens_per_second" in row]
    wrong = [f"{row['name']}: {row['error']}" for row in found.get("rows", []) if "error" in row]
    late = found.get("planned", 0) - len(rows)
    runs, text = "every shape runs", "; ".join(wrong) or f"{len(rows)} ran"
    if wrong or (rows and not late):
        checks = [check(runs, not wrong, text)]
    else:
        checks = [unmeasured(runs, f"{text}; no time was left for {late}" if rows else "no shape was measured")]
    return [*checks, _below_limit(rows), _below_peak(rows, found), _below_product(rows, found)]


def _below_limit(rows: list[dict[str, Any]]) -> Check:
    what = "no rate is above its predicted limit"
    shares = {row["name"]: row["tokens_per_second"] / row["limit"] for row in rows if row.get("limit")}
    if not shares:
        errors = [row["no_limit"] for row in rows if row.get("no_limit")]
        return unmeasured(what, errors[0] if errors else f"the estimate gives no {LIMIT}")
    text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return check(what, max(shares.values()) <= 1, text)


def _below_peak(rows: list[dict[str, Any]], found: Found) -> Check:
    what = "MFU is below 100 %"
    known = {row["name"]: row["mfu_percent"] for row in rows if "mfu_percent" in row}
    if not known:
        return unmeasured(what, found.get("peak", {}).get("reason") or "no rate has one")
    text = ", ".join(f"{name} {mfu:.1f} %" for name, mfu in known.items())
    return check(what, all(0 < mfu < 100 for mfu in known.values()), text)


def _below_product(rows: list[dict[str, Any]], found: Found) -> Check:
    what = "no model is faster than a matrix product, and that not than the peak"
    product, peak = found.get("matrix_product", {}).get("tflops"), found.get("peak", {}).get("tflops")
    fastest = max((row["tflops"] for row in rows if "tflops" in row), default=None)
    if product is None or fastest is None:
        return unmeasured(what, "one of the two was not measured")
    text = f"{fastest:,.2f} of {product:,.2f} TFLOP/s ({100 * fastest / product:.0f} %)"
    text += f", peak {peak:,.0f}" if peak else ""
    return check(what, fastest <= product * ROUNDING and (not peak or product <= peak * ROUNDING), text)


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    lines = [
        [
            row["name"],
            number(row.get("tokens_per_second")),
            number(row.get("ci95_percent"), ".2f"),
            number(row.get("tflops"), ",.2f"),
            number(row.get("mfu_percent"), ".1f"),
            number(row.get("limit")),
            number(100 * row["tokens_per_second"] / row["limit"] if row.get("limit") and "tokens_per_second" in row else None, ".1f"),
        ]
        for row in found.get("rows", [])
    ]  # fmt: skip
    if not lines:
        return []
    head = ["workload", "tokens/s", "± %", "TFLOP/s", "MFU, %", "limit, tokens/s", "of the limit, %"]
    notes = [f"{name} was left out: {reason}." for name, reason in found["left_out"].items()]
    return [common.table(head, lines), *notes]
