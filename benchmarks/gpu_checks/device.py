"""Part 1: the machine. ``doctor``, NVML idle and under load, torch's description, and the row in the table of accelerators."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import common

from ado_actuators.sfttrainer.core.metrics import accelerators

from . import nvml_facts
from .bench import Bench, Failed
from .checks import Check, Found, check, number, off_percent, prose, unmeasured

TITLE = "Device"
# data sheets and the driver differ by the memory that the driver reserves
MEMORY_PERCENT = 4.0
BUSY_PERCENT = 80.0
FRAMES, APART_S = 30, 0.1
# NVML's utilisation is that of the last period, up to a second
SETTLE_S = 1.5
DOCTOR_TIMEOUT_S = 90.0
# in a separate process, because it imports ado if that is installed
DOCTOR = """
import dataclasses, json
from ado_actuators.sfttrainer.core.commands import machine
print(json.dumps([dataclasses.asdict(one) for one in machine.examine(machine.Subject("sfttrainer", "current"))]))
"""


def run(bench: Bench, found: Found) -> None:
    """Examine the machine."""
    try:
        found["doctor"] = doctor()
    except Failed as failed:
        found["doctor"] = [{"what": "doctor", "state": "missing", "text": str(failed), "remedy": ""}]
        found["doctor_log"] = failed.log
    for one in found["doctor"]:
        bench.say(f"{one['state']:<8}{one['what']}: {one['text']}")
    if bench.device is None:
        found["matrix_product"] = bench.matrix_product()
        return
    device: Any = bench.device
    found["device"] = {
        "name": device.name,
        "memory_total_gib": None if device.memory_total_bytes is None else device.memory_total_bytes / accelerators.GIB,
        "missing": device.missing,
        "table": _table(device.name, bench.choice.dtype),
    }
    found["nvml_idle"] = nvml_facts.facts(device.nvml, device.handle)
    recordings = {"idle": record(bench, "idle")}

    def while_busy() -> None:
        time.sleep(SETTLE_S)
        recordings["busy"] = record(bench, "busy")
        found["nvml_busy"] = nvml_facts.facts(device.nvml, device.handle)

    try:
        found["matrix_product"] = bench.load(while_busy)
    except Failed as failed:
        found["torch_error"], found["log"] = str(failed), failed.log
    for kind, (recording, place) in recordings.items():
        found[f"recorded_{kind}"] = nvml_facts.summary(recording, place)
        if bench.recordings is not None:
            path = bench.recordings.with_name(f"{bench.recordings.stem}-nvml-{kind}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(nvml_facts.anonymous(recording), indent=1) + "\n", encoding="utf-8")


def doctor() -> list[dict[str, str]]:
    """Return the findings of the command ``doctor``.

    Raises:
        Failed: it ended with an error, or not at all.
    """
    command = [sys.executable, "-c", DOCTOR]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOCTOR_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"doctor did not end within {DOCTOR_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise Failed(f"doctor ended with {done.returncode}", done.stderr[-2000:])
    findings: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return findings


def record(bench: Bench, kind: str) -> tuple[dict[str, Any], int]:
    """Return a recording of all GPUs in the form the tests replay, and the place of the device in it."""
    device: Any = bench.device
    recording = _recorder().record(
        device.nvml,
        5 if bench.choice.quick else FRAMES,
        lambda: time.sleep(APART_S),
        source=f"Recorded by benchmarks/gpu.py at commit {common.circumstances('cpu')['commit']}; UUIDs are replaced.",
        about=f"{device.name}, {kind}.",
    )
    uuids = [one["nvmlDeviceGetUUID"] for one in recording["devices"]]
    return recording, uuids.index(device.uuid)


def _recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_nvml", common.ROOT / "tools" / "record_nvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(name: str, dtype: str) -> dict[str, Any]:
    """Return what the table of accelerators says of a device."""
    row = accelerators.find(name)
    peak, reason = accelerators.peak_tflops(name, dtype)
    gib, no_memory = accelerators.device_memory_gib(name)
    usable = accelerators.usable_bytes(name)
    return {
        "peak_tflops": peak,
        "memory_gib": gib,
        "usable_gib": None if usable is None else usable / accelerators.GIB,
        "bandwidth_gb_s": row.bandwidth_gb_s if row else None,
        "reason": reason or no_memory,
    }


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    seen, about, table = "doctor finds the GPU", "torch uses the GPU that NVML names", "the device is in the table"
    answers, moves = "NVML gives every counter", "counters differ under load"
    if "device" not in found:
        return [unmeasured(what, "there is no GPU") for what in (seen, about, table, answers, moves)]
    device = found["device"]
    lines = [one["text"] for one in found["doctor"] if one["what"] == "GPU" and one["state"] == "ok"]
    named = [line for line in lines if device["name"] in line]
    checks = [check(seen, bool(named), named[0] if named else "; ".join(lines) or "it finds none")]
    product = found.get("matrix_product", {})
    name = product.get("name", found.get("torch_error", "it sees no CUDA device"))
    checks.append(check(about, name == device["name"], f"torch {product.get('torch', '')}: {name}"))
    return [*checks, _known(table, device), *_recorded(answers, moves, found)]


def _known(what: str, device: dict[str, Any]) -> Check:
    table, total = device["table"], device["memory_total_gib"]
    if table["peak_tflops"] is None or table["memory_gib"] is None:
        return check(what, False, table["reason"])
    text = f"peak {table['peak_tflops']:g} TFLOP/s, {table['memory_gib']:g} GiB"
    if total is None:
        return unmeasured(what, f"{text}; NVML gives no total memory")
    off = off_percent(total, table["memory_gib"])
    return check(what, abs(off) <= MEMORY_PERCENT, f"{text}; NVML says {total:.2f} GiB ({off:+.1f} %)")


def _recorded(answers: str, moves: str, found: Found) -> list[Check]:
    idle, busy = found.get("recorded_idle"), found.get("recorded_busy")
    if idle is None or busy is None:
        return [unmeasured(what, "nothing was recorded under load") for what in (answers, moves)]
    silent = {name: value for name, value in busy.items() if isinstance(value, str)}
    text = ", ".join(f"{name} {value}" for name, value in silent.items()) or f"{busy['frames']} frames each"
    first = check(answers, not silent, text)
    if silent:
        return [first, unmeasured(moves, text)]
    holds = busy["utilization_percent"] >= BUSY_PERCENT > idle["utilization_percent"]
    holds = holds and busy["power_watts"] > idle["power_watts"] and busy["energy_joules"] > 0
    text = (
        f"utilisation {idle['utilization_percent']:.0f} and {busy['utilization_percent']:.0f} %, "
        f"power {idle['power_watts']:.0f} and {busy['power_watts']:.0f} W"
    )
    return [first, check(moves, holds, text)]


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    made = []
    if found.get("doctor"):
        rows = [[one["state"], one["what"], one["text"]] for one in found["doctor"]]
        made.append(prose(["doctor", "what", "finding"], rows))
    clocks = [(kind, found[f"nvml_{kind}"]) for kind in ("idle", "busy") if f"nvml_{kind}" in found]
    if clocks:
        names = sorted({name for _, facts in clocks for name in facts if name != "missing"})
        rows = [[name, *(str(facts.get(name, "–")) for _, facts in clocks)] for name in names]
        made.append(common.table(["NVML", *(kind for kind, _ in clocks)], rows))
    if product := found.get("matrix_product"):
        made.append(
            f"Product of {product['size']} × {product['size']} matrices in {product['dtype']}: "
            f"{number(product['tflops'], ',.2f')} TFLOP/s."
        )
    return made
