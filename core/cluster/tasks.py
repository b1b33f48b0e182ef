"""Ray's table of tasks, and what tasks hold that wait for a measurement they have asked for.

An operator may run trials as tasks. Ray's table says of a task that computes, polls or is blocked the same, that it runs; what tells
one that waits for a measurement from others is that it called the actuator. Other tasks of the operation may end by themselves, such
as those in which ado runs experiments of other actuators.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray

from .placement import Node
from .snapshot import Snapshot, parse_name, plain

# interval at which the table is read; what two of them show is believed, since the table is a second old
READ_S = 5.0
MEASURE = "Dispatcher.measure"
ENDED = ("FINISHED", "FAILED")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, of an actor or not.

    Attributes:
        id: Ray's identifier.
        parent: that of the task that called it.
        name: its name, by default that of its function.
        job: job that it belongs to.
        node: node on which it runs; empty while it has none.
        normal: whether it is not one of an actor.
        status: name of its last status.
        resources: resources that it asked for.
        grouped: whether these are of a placement group.
    """

    id: str
    parent: str
    name: str
    job: str
    node: str
    normal: bool
    status: str
    resources: Mapping[str, float]
    grouped: bool = False

    @property
    def runs(self) -> bool:
        """Whether it is a task outside of actors that runs, blocked or not."""
        return self.normal and self.status.startswith("RUNNING")


def table() -> list[Task]:
    """Return the tasks that Ray remembers; empty if Ray's format has changed."""
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import TaskEvents

        rows = state._connect_and_get_accessor().get_task_events()
        return [_task(TaskEvents.FromString(row)) for row in rows]
    except Exception as error:
        logging.getLogger(__name__).debug("the tasks of the cluster are unknown: %s", error)
        return []


def _task(row: Any) -> Task:
    from ray.core.generated.common_pb2 import NORMAL_TASK, TaskStatus

    info = row.task_info
    return Task(
        id=row.task_id.hex(),
        parent=info.parent_task_id.hex(),
        name=info.name,
        job=row.job_id.hex(),
        node=row.state_updates.node_id.hex(),
        normal=info.type == NORMAL_TASK,
        status=TaskStatus.Name(max(row.state_updates.state_ts_ns, default=0)),
        resources=plain(info.required_resources),
        grouped=any("_group_" in kind for kind in info.required_resources),
    )


def callers(tasks: Sequence[Task], operators: frozenset[str]) -> list[Task]:
    """Return the running tasks of these jobs that have asked an actuator for a measurement that is not done."""
    known = {task.id: task for task in tasks}
    found = {}
    for task in tasks:
        if task.name == MEASURE and not task.normal and task.status not in ENDED:
            submit = known.get(task.parent)
            caller = known.get(submit.parent) if submit else None
            if caller and caller.runs and not caller.grouped and caller.job in operators:
                found[caller.id] = caller
    return list(found.values())


def with_unfinished(tasks: Sequence[Task]) -> set[str]:
    """Return the ids of the tasks that have called tasks which have not ended: most of them wait for these, and hold nothing."""
    return {task.parent for task in tasks if task.status not in ENDED}


class Callers:
    """Counts the CPUs and GPUs of tasks that wait for a measurement among those of ado's operators."""

    def __init__(self) -> None:
        self._read_s = float("-inf")
        self._last: dict[str, tuple[float, float]] = {}
        self._held: dict[str, tuple[float, float]] = {}

    def counted(self, seen: Snapshot) -> Snapshot:
        """Return the snapshot with them; reads the table at most every ``READ_S``, and only if other programs seem to hold anything."""
        if not any(node.others_cpus > 0 or node.others_gpus > 0 for node in seen.nodes):
            return seen
        now = time.monotonic()
        if now - self._read_s >= READ_S:
            self._read_s, before = now, self._last
            self._last = _held(seen, table())
            self._held = {
                node: (min(cpus, before[node][0]), min(gpus, before[node][1]))
                for node, (cpus, gpus) in self._last.items()
                if node in before
            }
        return dataclasses.replace(seen, nodes=tuple(self._with(node) for node in seen.nodes))

    def _with(self, node: Node) -> Node:
        cpus, gpus = self._held.get(node.id, (0.0, 0.0))
        return dataclasses.replace(
            node,
            operators=node.operators + min(cpus, node.others_cpus),
            operator_gpus=node.operator_gpus + min(gpus, node.others_gpus),
        )


def _held(seen: Snapshot, tasks: Sequence[Task]) -> dict[str, tuple[float, float]]:
    """Return the CPUs of callers on each node, and the GPUs of those of this job.

    A task that is blocked in Ray has given its CPUs back, and the table does not say so: only what nobody else can hold is counted.
    """
    own = ray.get_runtime_context().get_job_id()
    waiting = callers(tasks, seen.operators)
    found = {}
    for node in seen.nodes:
        here = [task for task in waiting if task.node == node.id]
        if here:
            rest = _sum(task.resources for task in tasks if task.runs and task.node == node.id and task not in here)
            rest += _sum(one.resources for one in seen.actors if one.node == node.id and one.job not in seen.operators)
            rest += _sum(_bundles(seen, node.id))
            held = min(_sum(task.resources for task in here), max(0.0, node.others_cpus - rest))
            found[node.id] = (held, _sum((task.resources for task in here if task.job == own), "GPU"))
    return found


def _bundles(seen: Snapshot, node: str) -> list[Mapping[str, float]]:
    """Return the resources of other programs' placement groups on a node."""
    rows = [row for row in seen.groups.values() if row["state"] == "CREATED" and parse_name(row["name"]) is None]
    return [row["bundles"][index] for row in rows for index, at in row["bundles_to_node_id"].items() if at == node]


def _sum(resources: Iterable[Mapping[str, float]], kind: str = "CPU") -> float:
    return sum(one.get(kind, 0.0) for one in resources)
