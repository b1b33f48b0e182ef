"""Part 2: predicted memory against torch's allocator and NVML, for workloads of several methods, lengths and kernels."""

from __future__ import annotations

import math
from typing import Any

import common

from ado_actuators.sfttrainer.core.metrics import accelerators

from .bench import Bench, Failed
from .checks import Check, Found, check, number, off_percent, unmeasured
from .workloads import refusal

TITLE = "Memory: predicted against measured"
ALLOCATED_PERCENT, RESERVED_PERCENT = 2.0, 5.0
# with less left no further workload is begun
LEAST_S = 12.0
NO_RESERVED = "the estimate gives no memory_reserved_gib"


def prepare(bench: Bench) -> None:
    """Begin the estimates, which run on a CPU beside the measurements."""
    for case in bench.choice.memory():
        if not refusal(case, bench.choice.gib, bench.absent):
            bench.expect(case.values)


def run(bench: Bench, found: Found) -> None:
    """Measure every workload that fits, then collect what was predicted."""
    rows: list[dict[str, Any]] = []
    found.update(rows=rows, left_out={}, planned=0)
    found["table"] = {"usable_gib": usable_gib(bench.name)}
    base = bench.used_bytes()
    total = None if bench.device is None else bench.device.memory_total_bytes
    found["memory_total_gib"] = None if total is None else total / accelerators.GIB
    found["nvml_base_gib"] = None if base is None else base / accelerators.GIB
    planned = []
    for case in bench.choice.memory():
        if reason := refusal(case, bench.choice.gib, bench.absent):
            found["left_out"][case.name] = reason
        else:
            planned.append(case)
    found["planned"] = len(planned)
    # of a part that is cut off, predictions are not waited for
    keep_s = math.inf
    try:
        for case in planned:
            if bench.left_s() < LEAST_S:
                found["left_out"][case.name] = "no time was left"
            else:
                row = {"name": case.name, "values": case.values, **_measured(bench, case.values)}
                rows.append(row)
                bench.say(f"{case.name}: {number(row.get('allocated_gib'), '.3f', 'no number')} GiB allocated")
        keep_s = 0.0
    finally:
        for row in rows:
            row["predicted"] = bench.estimate(row["values"], keep_s=keep_s)


def usable_gib(name: str) -> float | None:
    """Return what the estimate believes torch can use of a device, GiB."""
    usable = accelerators.usable_bytes(name)
    return None if usable is None else usable / accelerators.GIB


def _measured(bench: Bench, values: dict[str, Any]) -> dict[str, Any]:
    try:
        got = bench.measured(values).properties
    except Failed as failed:
        return {"error": str(failed), "log": failed.log}
    names = {
        "allocated_gib": "torch_peak_allocated_gib",
        "reserved_gib": "torch_peak_reserved_gib",
        "nvml_gib": "gpu_memory_peak_gib",
        "host_gib": "cpu_memory_peak_gib",
    }
    return {short: got[name] for short, name in names.items() if name in got}


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    rows = found.get("rows", [])
    wrong = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    ran = "every workload that should fit runs"
    text = "; ".join(wrong) or f"{len(rows)} ran"
    late = found.get("planned", 0) - len(rows)
    if wrong or (rows and not late):
        checks = [check(ran, not wrong, text)]
    else:
        checks = [unmeasured(ran, f"{text}; no time was left for {late}" if rows else "no workload was measured")]
    checks += [
        _predicted(f"allocated within {ALLOCATED_PERCENT:g} %", rows, "allocated", ALLOCATED_PERCENT),
        _predicted(f"reserved within {RESERVED_PERCENT:g} %", rows, "reserved", RESERVED_PERCENT),
    ]
    return [*checks, _outside(found, rows)]


def off(row: dict[str, Any], kind: str) -> float | None:
    """Return by how many percent a prediction, ``allocated`` or ``reserved``, is above what was measured; None without both."""
    name = "memory_estimate_gib" if kind == "allocated" else "memory_reserved_gib"
    predicted, measured = row.get("predicted", {}).get(name), row.get(f"{kind}_gib")
    return None if predicted is None or not measured else off_percent(predicted, measured)


def _predicted(what: str, rows: list[dict[str, Any]], kind: str, limit: float) -> Check:
    known = {row["name"]: value for row in rows if (value := off(row, kind)) is not None}
    if not known:
        return unmeasured(what, _why_not(rows, kind))
    name, worst = max(known.items(), key=lambda item: abs(item[1]))
    inside = sum(abs(value) <= limit for value in known.values())
    return check(what, inside == len(known), f"{inside} of {len(known)} workloads; worst {worst:+.1f} % ({name})")


def _why_not(rows: list[dict[str, Any]], kind: str) -> str:
    if not any(f"{kind}_gib" in row for row in rows):
        return f"no workload has a peak of {kind} memory; without a GPU torch's allocator keeps none"
    errors = [row["predicted"]["error"] for row in rows if row.get("predicted", {}).get("error")]
    return errors[0] if len(errors) == len(rows) else NO_RESERVED if kind == "reserved" else "nothing was predicted"


def _outside(found: Found, rows: list[dict[str, Any]]) -> Check:
    """Check that what the driver and CUDA's context take leaves what the estimate of ``fits`` counts on."""
    what = "memory outside torch's allocator is what the estimate leaves for it"
    shares = [row["nvml_gib"] - row["reserved_gib"] for row in rows if "nvml_gib" in row and "reserved_gib" in row]
    usable, total = found.get("table", {}).get("usable_gib"), found.get("memory_total_gib")
    if not shares:
        return unmeasured(what, "no workload has both numbers")
    text = f"{min(shares):.2f} to {max(shares):.2f} GiB, base line {number(found.get('nvml_base_gib'), '.2f')} GiB"
    if usable is None or total is None:
        return unmeasured(what, f"{text}; the device's memory is not in the table")
    return check(what, max(shares) <= total - usable, f"{text}; {total - usable:.2f} GiB are left")


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    head = ["workload", "allocated", "predicted", "error", "reserved", "predicted", "error", "NVML"]
    lines = []
    for row in found.get("rows", []):
        predicted = row.get("predicted", {})
        line = [row["name"]]
        for kind, name in (("allocated", "memory_estimate_gib"), ("reserved", "memory_reserved_gib")):
            line += [
                number(row.get(f"{kind}_gib"), ".3f"),
                number(predicted.get(name), ".3f"),
                number(off(row, kind), "+.1f"),
            ]
        lines.append([*line, number(row.get("nvml_gib"), ".2f")])
    if not lines:
        return []
    notes = [
        f"{row['name']}: no prediction: {row['predicted']['error']}"
        for row in found["rows"]
        if "error" in row.get("predicted", {})
    ]
    notes += [f"{name} was left out: {reason}." for name, reason in found["left_out"].items()]
    table = common.table(head, lines)
    return [f"{table}\n\nGiB, errors in percent.", *(["\n".join(f"- {note}" for note in notes)] if notes else [])]
