"""The content of a report as plain values: varied properties, frontiers, scaling, pairs of stacks, failures, environment.

Plots nothing and reads no files.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .rows import CANNOT_RUN, FAILED, MEASURED, Row, counted, differing, label, memory_kind

# on more devices either the whole batch stays the same (strong scaling) or each device's share of it (weak scaling)
DEVICES = ("number_gpus", "number_nodes", "batch_size")
OUT_OF_MEMORY = ("gpu_oom", "host_oom", "predicted_oom")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Where memory ends for one kind of workload at one length of a sample.

    Attributes:
        what: label of everything else that was varied.
        length: model_max_length.
        fits: largest batch_size that ran, or None.
        too_large: smallest batch_size that ran out of memory, or was predicted to, or None.
    """

    what: str
    length: int
    fits: int | None
    too_large: int | None


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Efficiency over devices: throughput per device over that of the fewest devices.

    Attributes:
        what: label of everything else that was varied.
        kind: ``strong`` (the whole batch stays) or ``weak`` (each device's stays).
        points: devices and efficiency, in order.
    """

    what: str
    kind: str
    points: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A quotient with its 95 % confidence interval; ``low`` and ``high`` are None where one side has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Workloads that ended alike: state, kind of failure, message, and their labels."""

    state: str
    kind: str
    message: str
    workloads: tuple[str, ...]


def in_state(rows: Iterable[Row], state: str) -> list[Row]:
    """Return the rows that ended so: ``measured``, ``cannot run`` or ``failed``."""
    return [row for row in rows if row.state == state]


def with_throughput(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that have a rate."""
    return [row for row in rows if row.state == MEASURED and row.throughput is not None]


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Return rows by the label of their values of ``names``, in the order of first appearance."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[label(row, names)].append(row)
    return dict(groups)


def frontiers(rows: Sequence[Row]) -> list[Frontier]:
    """Return the memory frontier of each kind of workload that ran out of memory somewhere."""
    names = [name for name in differing(rows) if name not in ("batch_size", "model_max_length", "source")]
    found = []
    for what, group in grouped(rows, names).items():
        fitting, too_large = defaultdict(list), defaultdict(list)
        for row in group:
            if row.state == MEASURED:
                fitting[row.value("model_max_length")].append(row.value("batch_size"))
            elif row.outputs.get("failure") in OUT_OF_MEMORY:
                too_large[row.value("model_max_length")].append(row.value("batch_size"))
        if too_large:
            found += [
                Frontier(what, length, max(fitting[length], default=None), min(too_large[length], default=None))
                for length in sorted({*fitting, *too_large})
            ]
    return found


def scaling(rows: Sequence[Row]) -> list[Scaling]:
    """Return strong and weak scaling of the workloads that were measured on several numbers of devices."""
    rows = with_throughput(rows)
    names = [name for name in differing(rows) if name not in DEVICES]
    both = len({bool(row.value("number_gpus")) for row in rows}) > 1
    found = []
    for kind, batch in (("strong", lambda row: row.value("batch_size")), ("weak", _device_batch)):
        groups: dict[tuple[str, str, Any], list[Row]] = defaultdict(list)
        for row in rows:
            device = ("GPUs" if row.value("number_gpus") else "CPUs") if both else ""
            groups[label(row, names), device, batch(row)].append(row)
        unit = "in all" if kind == "strong" else "a device"
        for (what, device, size), group in groups.items():
            for nodes, mine in _by_nodes(group).items():
                rates = {row.devices: (row.throughput or 0.0) / row.devices for row in mine}
                if len(rates) > 1 and size is not None:
                    fewest = rates[min(rates)]
                    points = tuple((devices, rates[devices] / fewest) for devices in sorted(rates))
                    text = ", ".join(filter(None, (what, device, nodes, f"batch {size} {unit}")))
                    found.append(Scaling(text, kind, points))
    return found


def _by_nodes(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by their nodes where as many devices were measured on several numbers of them; else all as one."""
    nodes = {(row.devices, row.value("number_nodes")) for row in rows}
    ambiguous = len(nodes) > len({devices for devices, _ in nodes})
    return grouped(rows, ["number_nodes"] if ambiguous else [])


def _device_batch(row: Row) -> int | None:
    batch = row.value("batch_size")
    return batch // row.devices if isinstance(batch, int) else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the points no other beats: least first value (memory) for most second value (throughput).

    They are in the order of the first value.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    best, front = -math.inf, []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def ratio(above: Row, below: Row) -> Ratio | None:
    """Return the throughput of one row over another's, with its interval; None when one has no throughput.

    The relative half-widths of two independent means add in squares; on the logarithm, so that the interval of the
    inverse is the inverse of the interval.
    """
    if above.throughput is None or not below.throughput:
        return None
    value = above.throughput / below.throughput
    if above.half_width is None or below.half_width is None:
        return Ratio(value)
    # a wider interval carries no information, and its bounds may overflow a float
    factor = math.exp(min(math.hypot(above.half_width, below.half_width), 100.0))
    return Ratio(value, value / factor, value * factor)


def stack_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the workloads that two actuators measured, in the order of the actuators' names.

    Of one source, or where none has both, of two; of repeated workloads the last one counts.
    """
    rows = with_throughput(rows)
    actuators = sorted({row.actuator for row in rows})
    if len(actuators) != 2:
        return []
    sides = [[row for row in rows if row.actuator == actuator] for actuator in actuators]
    first, second = ({(row.source, row.key[1:]): row for row in side} for side in sides)
    within = [(row, second[key]) for key, row in first.items() if key in second]
    paired = {row.key[1:] for row, _ in within}
    # who measures each stack by itself has a source of each
    left, right = ({row.key[1:]: row for row in side if row.key[1:] not in paired} for side in sides)
    return within + [(row, right[key]) for key, row in left.items() if key in right]


def problems(rows: Sequence[Row]) -> list[Problem]:
    """Return what cannot run and what failed, alike together, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.state in (CANNOT_RUN, FAILED):
            groups[row.state, str(row.outputs.get("failure") or "failed"), row.message].append(row)
    names = differing(rows)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Problem(*key, tuple(label(row, names) for row in group)) for key, group in ordered]


def environment(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return what the measurements ran on and with, each with all values that occur; empty without metadata."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in _facts(row):
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return list(found.items())


def _facts(row: Row) -> Iterable[tuple[str, str]]:
    devices = row.metadata.get("device_per_host") or [row.metadata.get("device") or {}]
    facts = row.metadata.get("facts") or {}
    for host in row.metadata.get("hosts") or []:
        if host:  # one that was lost has no name
            yield "host", str(host)
    described = [
        *((gpu, {"name": "GPU", "memory_gib": "GPU memory, GiB", "power_limit_watts": "power limit, W"})
          for device in devices for gpu in device.get("devices") or []),
        *((device, {"driver": "driver", "cpu": "CPU", "logical_cores": "logical cores", "memory_gib": "host memory, GiB"})
          for device in devices),
        (facts, {"dtype": "type of weights", "attn_implementation": "attention", "wrapped_by": "wrapped by",
                 "optimizer": "optimizer"}),
        (row.metadata.get("versions") or {}, None),
    ]  # fmt: skip
    for values, names in described:
        for key, name in (names or dict.fromkeys(sorted(values))).items():
            if values.get(key) is not None:
                yield name or key, str(values[key])


def memory_and_rate(rows: Sequence[Row]) -> tuple[str | None, list[Row]]:
    """Return the kind of memory of these rows and those that have both it and a throughput."""
    kind = memory_kind(with_throughput(rows))
    return kind, [row for row in with_throughput(rows) if kind and row.output(kind) is not None]


def without_memory(rows: Sequence[Row]) -> str:
    """Return a note on the measurements that have a throughput but not the others' kind of memory, or nothing."""
    kind, having = memory_and_rate(rows)
    lacking = len(with_throughput(rows)) - len(having)
    verb = "is" if lacking == 1 else "are"
    return f" {counted(lacking, 'measurement')} without {kind} {verb} left out." if kind and lacking else ""
