"""Part 7: adaptive stopping against a fixed protocol, in the same trainer."""

from __future__ import annotations

import adaptive
import common

from ado_actuators.sfttrainer.core.measurement.verdict import Verdict

from .bench import Bench
from .checks import Check, Found, check, unmeasured
from .rates import shape
from .workloads import Values

TITLE = "Adaptive stopping against a fixed protocol"
# of the fixed protocol, seconds: 60 in all
WARMUP_S, MEASURED_S = 10.0, 50.0


def run(bench: Bench, found: Found) -> None:
    """Measure adaptively, for a fixed time, and adaptively again."""
    warmup_s, measured_s = (1.0, 3.0) if bench.choice.quick else (WARMUP_S, MEASURED_S)

    def measure(values: Values) -> common.Measured:
        run = bench.measured(values)
        return common.Measured(Verdict(run.properties, "", run.metadata), run.step_s, 0.0)

    values = bench.choice.base
    # the trainer's start is in no time that is compared
    bench.measured({**values, "max_steps": 3, "target_ci_percent": 0})
    result = adaptive.compare(shape(values), values, warmup_s, measured_s, 2, measure)
    bench.versions |= result.pop("versions")
    found["result"] = result


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    agree, sure = "both give the same rate within their intervals", "adaptive ones stop because they are sure"
    share = f"in at most {adaptive.SHARE:.0%} of the time"
    if "result" not in found:
        return [unmeasured(what, "it did not end") for what in (agree, sure, share)]
    result = found["result"]
    if not adaptive.conclusive(result):
        reason = f"the fixed interval is ± {result['fixed']['ci95_percent']:.1f} %: too wide to compare anything with"
        return [unmeasured(what, reason) for what in (agree, sure, share)]
    median = result["median"]
    off = ", ".join(f"{one['difference_percent']:+.2f} %" for one in result["adaptive"])
    stopped = [one["stopped_by"] for one in result["adaptive"]]
    return [
        check(agree, median["agrees"], f"difference {off}"),
        check(sure, all(one == "confidence" for one in stopped), ", ".join(stopped)),
        check(share, median["time_ratio"] <= adaptive.SHARE, f"{100 * median['time_ratio']:.1f} %"),
    ]


def blocks(found: Found) -> list[str]:
    """Return the tables of this part as Markdown."""
    if "result" not in found:
        return []
    result = found["result"]
    rows = [["fixed", *adaptive.cells(result["fixed"])]]
    rows += [["adaptive", *adaptive.cells(one)] for one in result["adaptive"]]
    table = common.table(["protocol", "tokens/s", "95 % interval", "steps", "training"], rows)
    return [f"{result['workload']}.\n\n{table}"]
