"""Explains to the user why a measurement waits: what it needs, what is free, what holds the rest, and what to do."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from ..workload.wording import listed
from . import tasks
from .placement import Need, Node
from .snapshot import Snapshot, operation_of

ADVICE = "It starts as soon as they are free; end the other programs that hold them, or use a smaller cpus_per_process or number_gpus."
MOST_HOLDERS = 4
OWN = "other measurements of this operation"
# names of classes that Ray makes and users do not know
CLASSES = {"ImplicitFunc": "a trial of Ray Tune"}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a measurement waits.

    Attributes:
        needs: what it needs.
        free: the free part of it.
        held: what holds the rest.
        only_own: whether only measurements of its own operation hold it.
    """

    needs: str
    free: str
    held: str
    only_own: bool

    def message(self, waited_s: float, who: str = "A measurement", advice: str = ADVICE) -> str:
        """Return the whole message: ``who`` waits, and what to do."""
        advice = "It starts when a measurement of this operation ends." if self.only_own else advice
        return f"{who} has waited {waited_s:.0f} s for {self.needs}: {self.free}, held by {self.held}. {advice}"


def explain(need: Need, seen: Snapshot, owner: str) -> Explanation:
    """Explain why the measurement waits. Reads Ray's table of tasks for their names."""
    fitting = [node for node in seen.nodes if node.fits(need)]
    kind = "GPU" if need.gpus and any("GPU" in node.lacks(need) for node in fitting) else "CPU"
    holders: dict[str, float] = collections.defaultdict(float)
    for claim in (claim for node in fitting for claim in node.claims):
        whose = OWN if operation_of(claim.owner) == operation_of(owner) else "measurements of another operation"
        holders[whose] += claim.reserved.get("GPU", 0.0) if kind == "GPU" else claim.threads
    own = holders.get(OWN, 0.0)
    rest = sum(held_by_others(node, kind) for node in fitting)
    named = _named(seen, {node.id for node in fitting}, kind)
    holders.update(named)
    # a lease may train with more CPUs than it reserves, those of waiting operators: together nobody holds more than there is
    unknown = min(
        rest - sum(named.values()), _amount(fitting, kind) - _amount_free(fitting, kind) - sum(holders.values())
    )
    if unknown > 0.01:
        holders.update(_tasks({node.id for node in fitting}, kind, unknown, seen.operators) or {"other tasks": unknown})
    only_own = own > 0 and sum(holders.values()) - own <= 0.01
    return Explanation(_needs(need), _free(fitting, kind), _list(holders, kind), only_own)


def held_by_others(node: Node, kind: str) -> float:
    """Return the amount that is held neither by leases nor, for CPUs, by ado's operators."""
    if kind == "CPU":
        return node.others_cpus
    return node.others_gpus + node.operator_gpus


def _needs(need: Need) -> str:
    each = amount(need.threads, "CPU")
    if need.gpus:
        each = f"{amount(need.gpus, 'GPU')} and {each}"
    return each if need.nodes == 1 else f"{need.nodes} times {each}"


def _free(nodes: list[Node], kind: str) -> str:
    return f"{_amount_free(nodes, kind):g} of {amount(_amount(nodes, kind), kind)} free"


def _amount(nodes: list[Node], kind: str) -> float:
    return sum(node.total.get(kind, 0.0) for node in nodes)


def _amount_free(nodes: list[Node], kind: str) -> float:
    return sum(max(0.0, node.free_gpus if kind == "GPU" else node.usable_cpus) for node in nodes)


def _named(seen: Snapshot, nodes: set[str], kind: str) -> dict[str, float]:
    """Return the amounts that actors hold, by name or class, without the CPUs of ado's operators."""
    found: dict[str, float] = collections.defaultdict(float)
    for actor in seen.actors:
        operator = actor.job in seen.operators and kind == "CPU"
        if actor.node in nodes and actor.resources.get(kind, 0.0) and not operator:
            found[CLASSES.get(actor.class_name) or f"actor {actor.name or actor.class_name}"] += actor.resources[kind]
    return found


def _tasks(nodes: set[str], kind: str, most: float, operators: frozenset[str]) -> dict[str, float]:
    """Return the amounts that tasks hold, by name, in total at most ``most``.

    A task that waits for another has given its CPUs back, but is listed with them. So tasks whose own tasks have not ended are named
    only if the others do not hold as much, and those of ado's operators after those of other jobs.
    """
    found: dict[str, float] = collections.defaultdict(float)
    table = tasks.table()
    waits = tasks.with_unfinished(table) if kind == "CPU" else set()
    running = [task for task in table if task.runs and task.node in nodes and task.resources.get(kind)]
    for task in sorted(running, key=lambda one: (one.id in waits, one.job in operators)):
        if sum(found.values()) < most - 0.01:
            found[f"task {task.name}"] += task.resources[kind]
    return found


def _list(holders: Mapping[str, float], kind: str) -> str:
    ordered = sorted(((name, held) for name, held in holders.items() if held > 0.01), key=lambda one: -one[1])
    shown = [f"{name} ({amount(held, kind)})" for name, held in ordered[:MOST_HOLDERS]]
    return listed([*shown, "others"] if len(ordered) > MOST_HOLDERS else shown) or "no program now"


def amount(number: float, kind: str) -> str:
    """Return a number of CPUs or GPUs in words: ``1 CPU``, ``0.5 CPUs``."""
    return f"{number:g} {kind}" if number == 1 else f"{number:g} {kind}s"
