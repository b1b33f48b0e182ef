"""The result of an experiment: its properties, and a reason for each one that is missing. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ..protocol.stopping import LEAST_MEASURED
from ..workload.outputs import OUTPUTS
from ..workload.wording import plus_minus, rounded

# what decides whether a workload fits comes first
MEMORY = ("gpu_memory_peak_gib", "torch_peak_reserved_gib", "cpu_memory_peak_gib")


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished measurement.

    Attributes:
        properties: values by identifier, in the order of ``outputs``.
        omitted: for each other identifier of ``outputs`` the reason why it has no value.
        raw_step_s: duration of every optimizer step, warm-up included, maximum over ranks, seconds.
        notes: warnings about results that may be wrong; of estimates, what sets the bound.
        outputs: the properties of this kind of experiment, from identifier to description.
    """

    properties: dict[str, float | int | str]
    omitted: dict[str, str]
    raw_step_s: list[float]
    notes: tuple[str, ...] = ()
    outputs: Mapping[str, str] = dataclasses.field(default_factory=lambda: OUTPUTS)

    @classmethod
    def for_refusal(cls, failure: str, message: str = "", outputs: Mapping[str, str] = OUTPUTS) -> Report:
        """Return the report of a workload that cannot run: ``is_valid`` 0 and ``failure``, for example ``gpu_oom``."""
        reason = message or f"The workload cannot run: {failure}."
        return cls.complete({"is_valid": 0, "failure": failure}, {}, reason, outputs=outputs)

    @classmethod
    def complete(
        cls,
        properties: Mapping[str, Any],
        omitted: Mapping[str, str],
        reason: str,
        *,
        steps_s: list[float] | None = None,
        notes: tuple[str, ...] = (),
        outputs: Mapping[str, str] = OUTPUTS,
    ) -> Report:
        """Return a report in which every output has a value or a reason: the one in ``omitted``, or ``reason``."""
        ordered = {name: properties[name] for name in outputs if name in properties}
        missing = {name: omitted.get(name, reason) for name in outputs if name not in ordered}
        return cls(ordered, missing, steps_s or [], notes, outputs)

    def text(self, without: Collection[str] = ()) -> str:
        """Return the report for a terminal: what matters, notes, aligned values with their descriptions, missing properties with reasons.

        Args:
            without: properties that are not shown.
        """
        shown = {name: value for name, value in self.properties.items() if name not in without}
        name_width = max(map(len, shown))
        values = {name: _readable(value) for name, value in shown.items()}
        value_width = max(len(value) for value in values.values())
        lines = [*filter(None, (headline(self.properties), *self.notes))]
        lines += [""] if lines else []
        lines += [
            f"{name:<{name_width}}  {value:>{value_width}}  {self.outputs[name]}" for name, value in values.items()
        ]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.omitted.items():
            if name not in without:
                by_reason.setdefault(reason, []).append(name)
        lines += ["", "Not measured:"] if by_reason else []
        lines += [f"  {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return ``text()``."""
        return self.text()


def headline(properties: Mapping[str, Any]) -> str:
    """Return a benchmark in a line, such as ``760 tokens/s ± 6 %, steady, 0.7 GiB``; empty for other experiments."""
    rate = properties.get("dataset_tokens_per_second")
    if rate is None:
        return ""
    parts = [f"{rounded(rate)} tokens/s{plus_minus(properties.get('throughput_ci95_percent'))}"]
    steps = properties.get("measured_steps")
    few = f"{steps} step{'' if steps == 1 else 's'}, " if steps is not None and steps < LEAST_MEASURED else ""
    parts.append(f"{few}{'steady' if properties.get('steady') else 'not steady'}")
    memory = next((properties[name] for name in MEMORY if name in properties), None)
    parts += [f"{rounded(memory)} GiB"] if memory is not None else []
    cost = properties.get("usd_per_million_tokens")
    parts += [f"{rounded(cost)} USD per million tokens"] if cost is not None else []
    return ", ".join(parts)


def _readable(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
