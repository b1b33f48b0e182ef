"""Notices that ado's own tasks, such as a trial of Ray Tune, wait in Ray for CPUs or GPUs, about which neither ado nor Ray says anything.

A trial that waits has asked for no measurement yet, so the pool does not know of it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping

import ray

from . import tasks
from .placement import Need
from .pool import REPORT_AFTER_S, REPORT_EVERY_S
from .snapshot import PREFIX, Snapshot, look, operation_of, queued
from .waiting import explain

CHECK_S = 5.0
WHO, ADVICE = "ado's operator", "It goes on as soon as they are free; end the other programs that hold them."

# takes a text, and whether the wait continues
Report = Callable[[str, bool], None]


class OperatorWaits:
    """Reports when actors or placement groups of this Ray job have waited for long while none of its measurements runs.

    Args:
        report: called with the reason of a long wait, once and then every ``REPORT_EVERY_S``, and at its end.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._since_s: float | None = None
        self._reported_s: float | None = None

    def check(self) -> None:
        """Look at the cluster once, and report if it is time to."""
        now = time.monotonic()
        asked = own_requests()
        if not asked:
            self._end()
            return
        self._since_s = now if self._since_s is None else self._since_s
        due = self._reported_s is None or now - self._reported_s > REPORT_EVERY_S
        if now - self._since_s < REPORT_AFTER_S or not due:
            return
        seen, job = for_operators(look()), ray.get_runtime_context().get_job_id()
        if any(operation_of(claim.owner) == job for node in seen.nodes for claim in node.claims):
            self._end()
            return
        need = _need(asked[0])
        if any(node.fits(need) for node in seen.nodes):
            self._reported_s = now
            self._report(explain(need, seen, "").message(now - self._since_s, WHO, ADVICE), True)

    def _end(self) -> None:
        if self._reported_s is not None:
            self._report(f"{WHO} waits no longer.", False)
        self._since_s = self._reported_s = None


def for_operators(seen: Snapshot) -> Snapshot:
    """Return a snapshot in which ado's operators hold their CPUs like any other program: they lend them to measurements only."""
    nodes = tuple(dataclasses.replace(node, operators=0.0) for node in seen.nodes)
    return dataclasses.replace(seen, nodes=nodes, operators=frozenset())


def watch(report: Report) -> None:
    """Check for ever; an error of Ray is logged, and the next check tries again."""
    waits = OperatorWaits(report)
    while True:
        time.sleep(CHECK_S)
        try:
            waits.check()
        except Exception as error:
            logging.getLogger(__name__).debug("what ado's operator waits for is unknown: %s", error)


def own_requests() -> list[dict[str, float]]:
    """Return the resources that each task, actor and placement group of this Ray job waits for; those of pools are left out.

    Those of a placement group are the largest of its bundles.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    job = ray.get_runtime_context().get_job_id()
    own = bytes.fromhex(job)
    tables = state._connect_and_get_accessor()
    actors = [ActorTableData.FromString(row) for row in tables.get_actor_table(None, "PENDING_CREATION")]
    groups = [PlacementGroupTableData.FromString(row) for row in tables.get_placement_group_table()]
    found = [dict(actor.required_resources) for actor in actors if actor.job_id == own]
    for group in groups:
        waits = group.creator_job_id == own and group.state == PlacementGroupTableData.PENDING
        if waits and not group.name.startswith(f"{PREFIX}:"):
            bundles = [dict(bundle.unit_resources) for bundle in group.bundles]
            found.append({kind: max(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")})
    # the table of tasks may have many rows, and is read only if something is queued
    listed = tasks.table() if queued() else []
    found += [
        dict(task.resources)
        for task in listed
        if task.job == job and task.normal and not task.grouped and task.status == "PENDING_NODE_ASSIGNMENT"
    ]
    in_groups = [any("_group_" in kind for kind in one) for one in found]
    return [
        one for one, inside in zip(found, in_groups, strict=True) if not inside and (one.get("CPU") or one.get("GPU"))
    ]


def _need(resources: Mapping[str, float]) -> Need:
    return Need(1, math.ceil(resources.get("CPU", 0.0)), math.ceil(resources.get("GPU", 0.0)))
