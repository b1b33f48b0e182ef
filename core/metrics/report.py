"""The result of an experiment: its properties, and a reason for each one that is missing. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..workload.outputs import OUTPUTS


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

    def text(self) -> str:
        """Return the report for a terminal: aligned values with their descriptions, then the missing properties and the reasons."""
        name_width = max(len(name) for name in self.properties)
        values = {name: _readable(value) for name, value in self.properties.items()}
        value_width = max(len(value) for value in values.values())
        lines = [
            f"{name:<{name_width}}  {value:>{value_width}}  {self.outputs[name]}" for name, value in values.items()
        ]
        lines += ["", *self.notes] if self.notes else []
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.omitted.items():
            by_reason.setdefault(reason, []).append(name)
        lines += ["", "Not measured:"] if by_reason else []
        lines += [f"  {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return ``text()``."""
        return self.text()


def _readable(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
