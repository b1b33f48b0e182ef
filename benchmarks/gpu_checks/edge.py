"""Part 3: out-of-memory. The largest batch predicted to fit runs, a tenth more does not, and the next measurement works."""

from __future__ import annotations

import math
from typing import Any

from ado_actuators.sfttrainer.core.metrics import accelerators

from .bench import Bench, Failed
from .checks import Check, Found, check, unmeasured
from .workloads import Values

TITLE = "Out-of-memory"
ABOVE = 1.1
# three measurements in two trainers; a prediction that would leave less is not waited for
MEASURING_S = 25.0
# memory that the driver may keep after a process has ended
BASE_LINE_BYTES = 256 * 2**20
BASE_LINE_WAIT_S = 1.0
WHATS = (
    "the largest batch that is predicted to fit runs",
    f"{ABOVE:g} times that batch does not",
    "running out of memory is classified gpu_oom",
    "memory is back at its base line after the trainer was ended",
    "the next measurement works, in another trainer",
)


def prepare(bench: Bench) -> None:
    """Begin the search for the largest batch."""
    if bench.device is not None and bench.choice.gib:
        bench.expect(bench.choice.edge(), largest=True)


def run(bench: Bench, found: Found) -> None:
    """Measure at the largest predicted batch, above it, and once more."""
    if bench.device is None:
        found["reason"] = "there is no GPU"
        return
    values = bench.choice.edge()
    predicted = bench.estimate(values, largest=True, keep_s=MEASURING_S)
    largest = predicted.get("largest_batch_size")
    found["values"] = values
    if not largest:
        found["reason"] = predicted.get("error") or f"no largest batch was predicted for {bench.name}"
        return
    found["largest"] = largest
    found["above"] = max(largest + 1, math.ceil(ABOVE * largest))
    bench.release()
    base = bench.settled_bytes(0, wait_s=BASE_LINE_WAIT_S)
    found["base_bytes"] = base
    found["fits"] = attempt(bench, {**values, "batch_size": largest})
    bench.say(f"batch {largest}: {found['fits']['text']}")
    found["too_large"] = attempt(bench, {**values, "batch_size": found["above"]})
    bench.say(f"batch {found['above']}: {found['too_large']['text']}")
    if found["too_large"].get("is_valid"):
        # it fits after all, so the trainer still runs
        bench.release()
    found["after_bytes"] = None if base is None else bench.settled_bytes(base + BASE_LINE_BYTES)
    found["next"] = attempt(bench, values)
    bench.say(f"batch {values['batch_size']} afterwards: {found['next']['text']}")


def attempt(bench: Bench, values: Values) -> dict[str, Any]:
    """Return how a measurement ended, whatever it is."""
    try:
        run = bench.measure(values)
    except Failed as failed:
        return {"text": str(failed), "error": str(failed), "log": failed.log}
    got = run.properties
    peaks: dict[str, Any] = {
        name: got[name] for name in ("torch_peak_allocated_gib", "torch_peak_reserved_gib") if name in got
    }
    text = "ran" if got["is_valid"] else str(run.metadata.get("reason"))
    return {
        "text": text,
        "is_valid": got["is_valid"],
        "failure": got["failure"],
        "reused": run.metadata.get("reused"),
        **peaks,
    }


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    if "largest" not in found:
        return [unmeasured(what, found.get("reason", "it was not reached")) for what in WHATS]
    fits, above, classified, back, following = WHATS
    checks = []
    if "fits" in found:
        checks.append(
            check(fits, found["fits"].get("is_valid") == 1, f"batch {found['largest']}: {found['fits']['text']}")
        )
    if "too_large" in found:
        over = found["too_large"]
        text = f"batch {found['above']}: {over['text']}"
        # another failure does not show whether it fits
        checks.append(unmeasured(above, text) if "error" in over else check(above, over["is_valid"] == 0, text))
        if over.get("is_valid") == 1:
            checks.append(unmeasured(classified, "nothing ran out of memory"))
        else:
            checks.append(check(classified, over.get("failure") == "gpu_oom", over.get("failure", over["text"])))
    if "after_bytes" in found:
        checks.append(_back(back, found))
    if "next" in found:
        checks.append(_following(following, found))
    reached = {one.what for one in checks}
    return checks + [unmeasured(what, "it was not reached") for what in WHATS if what not in reached]


def _back(what: str, found: Found) -> Check:
    base, after = found["base_bytes"], found["after_bytes"]
    if base is None or after is None:
        return unmeasured(what, "NVML gives no memory in use")
    grown = after - base
    text = f"{base / accelerators.GIB:.2f} GiB before, {grown / 2**20:+.0f} MiB after"
    return check(what, grown <= BASE_LINE_BYTES, text)


def _following(what: str, found: Found) -> Check:
    after = found["next"]
    holds = after.get("is_valid") == 1 and not after.get("reused")
    return check(what, holds, f"{after['text']}, {'the same' if after.get('reused') else 'another'} trainer")


def blocks(found: Found) -> list[str]:
    """Return what this part found as Markdown."""
    if "largest" not in found:
        return []
    values = found["values"]
    shown = f"{values['model_name']}, {values['model_max_length']} tokens, {values['torch_dtype']}"
    return [f"{shown}: predicted largest batch {found['largest']}; {found['above']} is beyond it."]
