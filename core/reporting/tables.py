"""The content of a report as plain values: memory frontiers, scaling, pairs of stacks, failures, environment. No I/O."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from .rows import CANNOT_RUN, FAILED, MEASURED, Row, counted, differing, label, memory_kind

# properties that may change along a scaling curve: the total batch is constant (strong) or the batch per device (weak)
DEVICES = ("number_gpus", "number_nodes", "batch_size")
OUT_OF_MEMORY = ("gpu_oom", "host_oom", "predicted_oom")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The largest batch that fits in memory, for one kind of workload at one sample length.

    Attributes:
        what: label of the other varied properties.
        length: model_max_length.
        fits: largest batch_size that ran, or None.
        too_large: smallest batch_size that ran out of memory or was predicted to, or None.
        example: one of its measurements.
    """

    what: str
    length: int
    fits: int | None
    too_large: int | None
    example: Row | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Efficiency over devices: throughput per device over that of the fewest devices.

    Attributes:
        what: label of the other varied properties.
        kind: ``strong`` (constant total batch) or ``weak`` (constant batch per device).
        points: number of devices and efficiency, in ascending order.
        example: one of its measurements.
    """

    what: str
    kind: str
    points: tuple[tuple[int, float], ...]
    example: Row | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A quotient with its 95 % confidence interval; ``low`` and ``high`` are None where one side has no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Workloads with the same state, kind of failure and message."""

    state: str
    kind: str
    message: str
    workloads: tuple[str, ...]


def in_state(rows: Iterable[Row], state: str) -> list[Row]:
    """Return the rows in a state: ``measured``, ``cannot run`` or ``failed``."""
    return [row for row in rows if row.state == state]


def with_throughput(rows: Iterable[Row]) -> list[Row]:
    """Return the measured rows that have a throughput."""
    return [row for row in rows if row.state == MEASURED and row.throughput is not None]


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Return rows by their label, in the order of first appearance."""
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
                Frontier(
                    what, length, max(fitting[length], default=None), min(too_large[length], default=None), group[0]
                )
                for length in sorted({*fitting, *too_large})
            ]
    return found


def scaling(rows: Sequence[Row]) -> list[Scaling]:
    """Return strong and weak scaling of the workloads that were measured on different numbers of devices."""
    return [
        *_scaling_of(rows, "strong", "in total", lambda row: row.value("batch_size")),
        *_scaling_of(rows, "weak", "per device", _device_batch),
    ]


def _scaling_of(rows: Sequence[Row], kind: str, unit: str, batch: Callable[[Row], int | None]) -> Iterator[Scaling]:
    """Yield the scaling of each group of workloads in which ``batch`` is the same on all numbers of devices."""
    rows = with_throughput(rows)
    names = [name for name in differing(rows) if name not in DEVICES]
    both = len({bool(row.value("number_gpus")) for row in rows}) > 1
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        size = batch(row)
        if size is not None:
            device = ("GPUs" if row.value("number_gpus") else "CPUs") if both else ""
            groups[label(row, names), device, size].append(row)
    for (what, device, size), group in groups.items():
        for nodes, mine in _by_nodes(group).items():
            points = _efficiencies(mine)
            if len(points) > 1:
                text = ", ".join(filter(None, (what, device, nodes, f"batch {size} {unit}")))
                yield Scaling(text, kind, points, mine[0])


def _efficiencies(rows: Sequence[Row]) -> tuple[tuple[int, float], ...]:
    """Return each number of devices with its throughput per device over that of the fewest devices."""
    rates = {row.devices: (row.throughput or 0.0) / row.devices for row in rows}
    return tuple((devices, rates[devices] / rates[min(rates)]) for devices in sorted(rates))


def _by_nodes(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by number of nodes if the same number of devices ran on different numbers of nodes; else one group."""
    nodes = {(row.devices, row.value("number_nodes")) for row in rows}
    ambiguous = len(nodes) > len({devices for devices, _ in nodes})
    return grouped(rows, ["number_nodes"] if ambiguous else [])


def _device_batch(row: Row) -> int | None:
    batch = row.value("batch_size")
    return batch // row.devices if isinstance(batch, int) else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points (memory, throughput): less memory and more throughput are better.

    They are in ascending order of memory.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    best, front = -math.inf, []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def ratio(above: Row, below: Row) -> Ratio | None:
    """Return the ratio of two throughputs with its interval; None if a row has no throughput.

    The relative half-widths of independent means add in quadrature, on a logarithmic scale: the interval of below / above is
    then the inverse of this one.
    """
    if above.throughput is None or not below.throughput:
        return None
    value = above.throughput / below.throughput
    if above.half_width is None or below.half_width is None:
        return Ratio(value)
    # bounds of a wider interval could overflow a float
    factor = math.exp(min(math.hypot(above.half_width, below.half_width), 100.0))
    return Ratio(value, value / factor, value * factor)


def stack_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of rows of the same workload from two actuators, in the order of the actuators' names.

    Both are from one source if a source has both, else from two sources. The last row of a repeated workload counts.
    """
    rows = with_throughput(rows)
    actuators = sorted({row.actuator for row in rows})
    if len(actuators) != 2:
        return []
    sides = [[row for row in rows if row.actuator == actuator] for actuator in actuators]
    first, second = ({(row.source, row.key[1:]): row for row in side} for side in sides)
    within = [(row, second[key]) for key, row in first.items() if key in second]
    paired = {row.key[1:] for row, _ in within}
    # each actuator measured in an operation of its own: the sources differ
    left, right = ({row.key[1:]: row for row in side if row.key[1:] not in paired} for side in sides)
    return within + [(row, right[key]) for key, row in left.items() if key in right]


def problems(rows: Sequence[Row]) -> list[Problem]:
    """Return the workloads that cannot run or failed, grouped by state, kind and message, largest group first."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.state in (CANNOT_RUN, FAILED):
            groups[row.state, str(row.outputs.get("failure") or "failed"), row.message].append(row)
    names = differing(rows)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Problem(*key, tuple(label(row, names) for row in group)) for key, group in ordered]


def environment(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return hardware, settings and versions of the measurements, each with all its values; empty without metadata."""
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
        if host:  # a lost host has no name
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
    """Return the memory metric of these rows, and the rows that have both it and a throughput."""
    kind = memory_kind(with_throughput(rows))
    return kind, [row for row in with_throughput(rows) if kind and row.output(kind) is not None]


def without_memory(rows: Sequence[Row]) -> str:
    """Return a note on the measurements that have a throughput but not the memory metric of the others, or nothing."""
    kind, having = memory_and_rate(rows)
    lacking = len(with_throughput(rows)) - len(having)
    verb = "is" if lacking == 1 else "are"
    return f" {counted(lacking, 'measurement')} without {kind} {verb} left out." if kind and lacking else ""
