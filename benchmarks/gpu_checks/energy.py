"""Part 6: the driver's energy counter against power × time, and the plugin's samples against those of a second sampler."""

from __future__ import annotations

import re

from ado_actuators.sfttrainer.core.host import sampler
from ado_actuators.sfttrainer.core.host.nvml import DeviceSet

from .bench import Bench
from .checks import Check, Found, check, off_percent, unmeasured
from .rates import shape
from .workloads import MANY_STEPS

TITLE = "Energy, power and utilisation"
POWER_PERCENT, COUNTER_PERCENT, UTILISATION_POINTS = 5.0, 1.0, 3.0
ENERGY, POWER, UTILISATION = "energy_joules", "gpu_power_watts_avg", "gpu_compute_utilization_avg"
SHOWN = (ENERGY, POWER, UTILISATION, "gpu_memory_peak_gib", "cpu_compute_utilization")


def run(bench: Bench, found: Found) -> None:
    """Measure for some seconds, with a second sampler over the whole of it."""
    # the energy counter needs 2 s
    seconds = 12.0 if not bench.choice.quick else 2.0 if bench.device is None else 4.0
    values = {
        **bench.choice.base,
        "max_steps": MANY_STEPS,
        "stop_after_seconds": seconds,
        "target_ci_percent": 0,
    }
    second = sampler.Sampler(DeviceSet(() if bench.device is None else (bench.device,)), [])
    second.start()
    try:
        measured = bench.measured(values)
    finally:
        samples = second.stop()
    assert measured.phase_s is not None
    begin_s, end_s = measured.phase_s
    inside, omitted = sampler.summarise(samples, begin_s, end_s)
    times = [one["time_s"] for one in samples["samples"]]
    whole, _ = sampler.summarise(samples, times[0], times[-1])
    reasons = {name: reason for reason, names in measured.metadata["omitted"].items() for name in names}
    found.update(
        workload=shape(values),
        seconds=end_s - begin_s,
        plugin={name: measured.properties[name] for name in SHOWN if name in measured.properties},
        second={name: inside[name] for name in SHOWN if name in inside},
        whole={name: whole[name] for name in SHOWN if name in whole},
        whole_seconds=times[-1] - times[0],
        omitted={
            name: without_uuid(reasons.get(name) or omitted.get(name, "")) for name in (ENERGY, POWER, UTILISATION)
        },
    )


def without_uuid(reason: str) -> str:
    """Return a reason without the beginning of the GPU's UUID: results name no single device."""
    return re.sub(r" GPU-[0-9a-f-]+", "", reason)


# -- pure -------------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[Check]:
    """Return the checks of this part."""
    by_power = f"energy counter within {POWER_PERCENT:g} % of power × time"
    by_second = f"a second sampler finds the same energy within {COUNTER_PERCENT:g} %"
    inside = "utilisation and power are those of the measured phase only"
    if "plugin" not in found:
        return [unmeasured(what, "it did not end") for what in (by_power, by_second, inside)]
    plugin, second, whole, omitted = (found[name] for name in ("plugin", "second", "whole", "omitted"))
    checks = []
    if ENERGY in plugin and POWER in plugin:
        expected = plugin[POWER] * found["seconds"]
        off = off_percent(plugin[ENERGY], expected)
        text = f"{plugin[ENERGY]:,.0f} J by the counter, {expected:,.0f} J by power ({off:+.1f} %)"
        checks.append(check(by_power, abs(off) <= POWER_PERCENT, text))
    else:
        checks.append(unmeasured(by_power, omitted[ENERGY if ENERGY not in plugin else POWER]))
    if ENERGY in plugin and ENERGY in second:
        off = off_percent(plugin[ENERGY], second[ENERGY])
        checks.append(check(by_second, abs(off) <= COUNTER_PERCENT, f"{off:+.2f} %"))
    else:
        checks.append(unmeasured(by_second, omitted[ENERGY]))
    if all(UTILISATION in one for one in (plugin, second, whole)):
        text = f"{plugin[UTILISATION]:.1f} % in the phase, {second[UTILISATION]:.1f} by a second sampler, {whole[UTILISATION]:.1f} over all"
        apart = abs(plugin[UTILISATION] - second[UTILISATION])
        checks.append(check(inside, apart <= UTILISATION_POINTS and plugin[UTILISATION] >= whole[UTILISATION], text))
    else:
        checks.append(unmeasured(inside, omitted[UTILISATION]))
    return checks


def blocks(found: Found) -> list[str]:
    """Return what this part found as Markdown."""
    if "plugin" not in found:
        return []
    numbers = "; ".join(f"{name} {value:,.1f}" for name, value in found["plugin"].items())
    return [
        f"{found['workload']}, {found['seconds']:.1f} s measured of {found['whole_seconds']:.1f} s: {numbers or 'no device was read'}."
    ]
