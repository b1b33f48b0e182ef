"""Turns the results of a run, finished or not, into text: one line for each check, and the report. Pure."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import common

from . import against_bare, device, edge, energy, memory, rates, reuse, stopping
from .checks import Check, check, counts, prose, unmeasured

PARTS: dict[str, ModuleType] = {
    "device": device,
    "memory": memory,
    "edge": edge,
    "fidelity": against_bare,
    "rates": rates,
    "energy": energy,
    "adaptive": stopping,
    "reuse": reuse,
}


def judge(name: str, part: dict[str, Any]) -> list[Check]:
    """Return the checks of a part.

    Args:
        name: key of ``PARTS``.
        part: ``state`` (``ran``, ``failed``, ``cut off`` or ``skipped``), ``reason``, ``took_s`` and ``found``.
    """
    if part["state"] == "skipped":
        return [unmeasured("the part", part["reason"])]
    checks: list[Check] = PARTS[name].judge(part["found"])
    if part["state"] == "ran":
        return checks
    ends = check("the part ends", False, part["reason"])
    return [ends, *checks] if part["state"] == "failed" else [unmeasured("the part ends", part["reason"]), *checks]


def lines(name: str, part: dict[str, Any]) -> str:
    """Return the text that is printed when a part ends."""
    checks = judge(name, part)
    head = f"{name:<9} {said(counts(checks))}, {part['took_s']:.0f} s"
    return "\n".join([head, *(f"  {one.state:<13}{one.what}: {one.text}" for one in checks)])


def said(number: dict[str, int]) -> str:
    """Return the number of checks of each state as text."""
    return ", ".join(f"{count} {state}" for state, count in number.items())


def total(results: dict[str, Any]) -> dict[str, int]:
    """Return how many checks of all parts have each state."""
    return counts([one for name, part in results["parts"].items() for one in judge(name, part)])


def markdown(results: dict[str, Any]) -> str:
    """Return the report of a run, ended or not."""
    parts = results["parts"]
    title = "Checks on a GPU" if results["device"] == "gpu" else "Checks on a GPU, run on a CPU"
    blocks = [common.heading(title, results), _circumstances(results)]
    rows = [
        [name, one.state if one.state != "missed" else "**missed**", one.what, one.text]
        for name, part in parts.items()
        for one in judge(name, part)
    ]
    if rows:
        blocks.append(prose(["part", "", "target", "found"], rows))
    for name, part in parts.items():
        shown = PARTS[name].blocks(part["found"])
        if shown:
            blocks += [f"## {PARTS[name].TITLE}", *shown]
    return "\n\n".join(blocks)


def _circumstances(results: dict[str, Any]) -> str:
    lines = [f"{said(total(results))}; {results['took_s']:.0f} s of at most {results['limit_s']:.0f} s."]
    if results["quick"]:
        lines.append("**A smoke test (`--quick`): its numbers have no meaning.**")
    if not results["complete"]:
        lines.append("**The run did not end.**")
    if results["left_out"]:
        absent = ", ".join(f"{name} ({purpose})" for name, purpose in results["left_out"].items())
        lines.append(f"Not installed, so left out: {absent}.")
    lines += results["notes"]
    return "\n".join(f"- {line}" for line in lines)
