"""A check compares a measured value with its target. Pure: standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

State = Literal["met", "missed", "not measured"]
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """One target of a part.

    Attributes:
        what: the target in words.
        state: ``met``, ``missed`` or ``not measured``.
        text: the numbers, or the reason why there are none.
    """

    what: str
    state: State
    text: str


def check(what: str, holds: bool, text: str) -> Check:
    """Return the check of a target that ``holds`` or does not."""
    return Check(what, "met" if holds else "missed", text)


def unmeasured(what: str, reason: str) -> Check:
    """Return the check of a target without numbers."""
    return Check(what, "not measured", reason)


def off_percent(value: float, truth: float) -> float:
    """Return by how many percent ``value`` is above ``truth``."""
    return 100 * (value / truth - 1)


def counts(checks: list[Check]) -> dict[str, int]:
    """Return how many checks have each state."""
    states: tuple[State, ...] = ("met", "missed", "not measured")
    return {state: sum(one.state == state for one in checks) for state in states}


def number(value: Any, form: str = ",.0f", otherwise: str = "–") -> str:
    """Return a number for a table; ``otherwise`` where there is none."""
    return otherwise if value is None else format(value, form)


def prose(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table of texts, which is not aligned for a terminal."""
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
