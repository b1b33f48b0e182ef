"""Samples of devices and processes as plain data, and the properties computed from them. Pure: standard library only, no clock."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from ..protocol.results import DeviceSummary
from .accelerators import GIB

# the counter is updated every 20 to 100 ms, so the energy of a shorter phase has a large relative error
SHORTEST_ENERGY_S = 2.0
COUNTERS = {
    "utilization_percent": "utilisation",
    "memory_used_bytes": "memory in use",
    "memory_total_bytes": "total memory",
    "power_watts": "power",
    "power_limit_watts": "power limit",
    "energy_joules": "energy counter",
}
SPREAD = ("min", "avg", "max")

Points = list[tuple[float, float]]


class DeviceFacts(TypedDict):
    """The constant attributes of a sampled device, and the reason for each missing counter."""

    name: str
    uuid: str
    memory_total_bytes: int | None
    power_limit_watts: float | None
    missing: dict[str, str]


class DeviceSample(TypedDict):
    """A device at ``time_s``; units as in ``nvml.Reading``."""

    time_s: float
    utilization_percent: float | None
    memory_used_bytes: int | None
    power_watts: float | None
    energy_joules: float | None


class Sample(TypedDict):
    """The process tree at ``time_s``, and the devices.

    ``cpu_s`` counts the CPU seconds, user and system, that the tree has used since the first sample. ``wait_s`` counts the seconds that
    its threads were ready to run and waited for a CPU; None if it was not read. ``rss_bytes`` is the sum of the resident sets, in
    which shared pages count once per process; None if no process is left.
    """

    time_s: float
    cpu_s: float
    wait_s: NotRequired[float | None]
    rss_bytes: int | None
    devices: list[DeviceSample]


class Samples(TypedDict):
    """All samples of a sampler, JSON-serialisable. ``absent``: why there are no devices."""

    absent: str
    devices: list[DeviceFacts]
    samples: list[Sample]


def summarise(samples: Samples, begin_s: float, end_s: float) -> tuple[dict[str, float], dict[str, str]]:
    """Return the properties computed from samples, and the reason for each one that is missing.

    Only samples from ``begin_s`` to ``end_s`` count. ``_min``, ``_avg`` and ``_max`` are over devices, of each device's
    mean over time (trapezoidal rule). ``gpu_memory_utilization_peak`` is over devices *and* time: the
    highest single sample; ``_max``, a mean over time, is lower if memory use varies. Energy and CPU time are
    differences of counters at the edges, each interpolated between the two samples around it. A property is missing
    if one of the devices does not have it.

    Args:
        samples: what a ``Sampler`` returned.
        begin_s: beginning of the measured phase, on the clock of the samples.
        end_s: its end.
    """
    found: dict[str, float] = {}
    omitted: dict[str, str] = {}
    phase = _Phase(samples, begin_s, end_s)

    def put(names: Sequence[str], values: Callable[[], Sequence[float]]) -> None:
        try:
            found.update(zip(names, values(), strict=True))
        except _Missing as reason:
            omitted.update(dict.fromkeys(names, str(reason)))

    put(["gpu_memory_peak_gib"], lambda: [max(phase.peaks("memory_used_bytes")) / GIB])
    put([f"gpu_memory_utilization_{which}" for which in (*SPREAD, "peak")], phase.memory_percent)
    put([f"gpu_compute_utilization_{which}" for which in SPREAD], lambda: _spread(phase.means("utilization_percent")))
    put([f"gpu_power_watts_{which}" for which in SPREAD], lambda: _spread(phase.means("power_watts")))
    put([f"gpu_power_percent_{which}" for which in SPREAD], phase.power_percent)
    put(["energy_joules"], lambda: [phase.energy()])
    put(["cpu_compute_utilization"], lambda: [phase.cpu_percent()])
    put(["cpu_share_percent"], lambda: [phase.cpu_share_percent()])
    put(["cpu_memory_peak_gib"], lambda: [phase.rss_peak() / GIB])
    return found, omitted


class _Missing(Exception):
    """The reason why a property cannot be computed."""


@dataclasses.dataclass(frozen=True)
class _Phase:
    """The samples of the measured phase."""

    samples: Samples
    begin_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.begin_s

    def memory_percent(self) -> list[float]:
        totals = self._facts("memory_total_bytes")
        means = _percent(self.means("memory_used_bytes"), totals)
        return [*_spread(means), max(_percent(self.peaks("memory_used_bytes"), totals))]

    def power_percent(self) -> list[float]:
        return _spread(_percent(self.means("power_watts"), self._facts("power_limit_watts")))

    def energy(self) -> float:
        counters = self._series("energy_joules")
        if self.duration_s < SHORTEST_ENERGY_S:
            raise _Missing(
                f"Energy needs a measured phase of at least {SHORTEST_ENERGY_S:g} s; it took {self.duration_s:.3g} s."
            )
        return sum(self._difference(points) for points in counters)

    def cpu_percent(self) -> float:
        self.rss_peak()  # raises if there is no process
        if self.duration_s <= 0:
            raise self._nothing()
        used_s = self._difference([(sample["time_s"], sample["cpu_s"]) for sample in self.samples["samples"]])
        return 100 * used_s / self.duration_s

    def cpu_share_percent(self) -> float:
        used_s = self.cpu_percent() / 100 * self.duration_s
        waits = [
            (sample["time_s"], wait_s)
            for sample in self.samples["samples"]
            if (wait_s := sample.get("wait_s")) is not None
        ]
        if not waits:
            raise _Missing("The system does not report how long threads wait for a CPU.")
        waited_s = self._difference(waits)
        if used_s + waited_s <= 0:
            raise _Missing("The training processes used no CPU time.")
        return 100 * used_s / (used_s + waited_s)

    def rss_peak(self) -> int:
        seen = self.samples["samples"]
        inside = [sample["rss_bytes"] for sample in seen if self.begin_s <= sample["time_s"] <= self.end_s]
        if not inside:
            raise self._nothing()
        if known := [size for size in inside if size is not None]:
            return max(known)
        raise _Missing("No training process was alive when samples were taken.")

    def means(self, counter: str) -> list[float]:
        """Return each device's mean over time."""
        return [_time_mean(self._clip(points)) for points in self._series(counter)]

    def peaks(self, counter: str) -> list[float]:
        """Return each device's highest sample."""
        return [max(value for _, value in self._clip(points)) for points in self._series(counter)]

    def _series(self, counter: str) -> list[Points]:
        """Return each device's readings of ``counter`` in the phase, without missing ones."""
        devices = self.samples["devices"]
        if not devices:
            raise _Missing(self.samples["absent"])
        series = []
        for index, facts in enumerate(devices):
            seen: list[Any] = [sample["devices"][index] for sample in self.samples["samples"]]
            points = [(reading["time_s"], reading[counter]) for reading in seen if reading[counter] is not None]
            if seen and not points:
                raise _without(facts, counter)
            series.append(points)
        return series

    def _facts(self, name: str) -> list[float]:
        """Return an attribute of each device."""
        values: list[float] = []
        for facts in self.samples["devices"]:
            value: float | None = facts.get(name)  # type: ignore[assignment]
            if not value:
                raise _without(facts, name)
            values.append(value)
        return values

    def _clip(self, points: Points) -> Points:
        inside = [point for point in points if self.begin_s <= point[0] <= self.end_s]
        if not inside:
            raise self._nothing()
        return inside

    def _nothing(self) -> _Missing:
        return _Missing(f"No sample was taken in the measured phase of {max(0.0, self.duration_s):.3g} s.")

    def _difference(self, points: Points) -> float:
        """Return the difference of a counter between the end and the beginning of the phase."""
        if any(after < before for (_, before), (_, after) in itertools.pairwise(points)):
            raise _Missing("The counter decreased, because the driver was reloaded.")
        return _at(points, self.end_s) - _at(points, self.begin_s)


def _at(points: Points, time_s: float) -> float:
    """Return the value at ``time_s``, linearly interpolated between the points around it."""
    right = bisect.bisect_left(points, (time_s,))
    if right == len(points) or (right == 0 and points[0][0] > time_s):
        raise _Missing("The samples do not cover the whole measured phase.")
    time_right, value_right = points[right]
    if time_right == time_s:
        return value_right
    time_left, value_left = points[right - 1]
    return value_left + (value_right - value_left) * (time_s - time_left) / (time_right - time_left)


def _time_mean(points: Points) -> float:
    """Return the mean over time by the trapezoidal rule; for a single point its value."""
    length_s = points[-1][0] - points[0][0]
    if length_s == 0:
        return points[0][1]
    area = sum((after[0] - before[0]) * (before[1] + after[1]) / 2 for before, after in itertools.pairwise(points))
    return area / length_s


def _percent(values: Sequence[float], of: Sequence[float]) -> list[float]:
    return [100 * value / whole for value, whole in zip(values, of, strict=True)]


def _spread(values: Sequence[float]) -> list[float]:
    return [min(values), statistics.fmean(values), max(values)]


def _without(facts: DeviceFacts, counter: str) -> _Missing:
    reason = facts["missing"].get(counter, "it was not read")
    return _Missing(f"{facts['name']} {facts['uuid'][:12]} has no {COUNTERS[counter]}: {reason}.")


def join_hosts(summaries: Sequence[DeviceSummary]) -> tuple[dict[str, float], dict[str, str]]:
    """Join the device summaries of several hosts: sums of energy, CPU use and process memory, extremes, and means over nodes.

    Args:
        summaries: one for each host, with ``properties`` (values by identifier) and ``omitted`` (reasons by identifier).

    Returns:
        The joined properties, and the reason for each property that at least one host lacks.
    """
    seen = [summary["properties"] for summary in summaries]
    joined: dict[str, float] = {}
    for name in seen[0]:
        values = [properties[name] for properties in seen if name in properties]
        if len(values) != len(seen):
            continue
        if name in ("energy_joules", "cpu_compute_utilization", "cpu_memory_peak_gib"):
            joined[name] = sum(values)
        elif name.endswith("_min") or name == "cpu_share_percent":
            joined[name] = min(values)
        elif name.endswith("_avg"):
            joined[name] = sum(values) / len(values)
        else:
            joined[name] = max(values)
    return joined, {
        name: reason for summary in summaries for name, reason in summary["omitted"].items() if name not in joined
    }
