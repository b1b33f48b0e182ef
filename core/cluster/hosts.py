"""Hosts on the cluster: the shape of a measurement, the actors that run hosts, and the placement groups that reserve resources."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..host.host import Host, HostSpec
from ..measurement.outcome import Outcome
from ..protocol.messages import Job
from . import nodes
from .console import Message, console_line
from .placement import SPARE_CPUS, Need, Node, Place
from .snapshot import LEASE, MARK, GroupName, need, parse_name

# Ray's own label of each node; releases of Ray before labels lack it, and reject the argument for labels
NODE_ID = "ray.io/node-id"
# read by a worker of Ray when it starts
NICENESS = "RAY_worker_niceness"
# an idle host that does not answer within this time is treated as lost
ANSWER_S = 10.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """The hosts and resources that a measurement needs; any lease of an equal shape can serve it.

    Attributes:
        host: what each node's host provides.
        nodes: hosts.
        cpus: CPUs that each host trains with; in Ray it may hold fewer (``placement``).
        gpu_model: GPU type, or ``any``.
        roce: whether the nodes need RDMA between them.
    """

    host: HostSpec
    nodes: int
    cpus: int
    gpu_model: str
    roce: bool = False

    def need(self) -> Need:
        """Return the need in terms of the nodes that the cluster has now."""
        return need(self.gpu_model, hosts=self.nodes, threads=self.cpus, gpus=self.host.gpus, roce=self.roce)


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)
class HostActor:
    """A ``Host`` as a Ray actor: it shows its progress in ado's console, and answers while it measures."""

    def __init__(self, spec: HostSpec) -> None:
        self._host = Host(spec)

    def address(self) -> tuple[str, int]:
        """See ``Host.address``."""
        return self._host.address()

    def ping(self) -> None:
        """Answer; a stopped process does not."""

    def measure(self, job: Job, run_timeout_s: float, label: str, message: Message) -> Outcome:
        """See ``Host.measure``; ``label`` names the measurement in the console, ``message`` makes its messages."""
        with console_line(f"measurement-{job.id}", label, message) as show:
            return self._host.measure(job, run_timeout_s, show)


@dataclasses.dataclass
class Lease:
    """Hosts of one shape, held by one measurement at a time."""

    shape: Shape
    group: PlacementGroup
    hosts: list[Any]
    idle_since: float = 0.0

    @property
    def id(self) -> str:
        """Ray's identifier of the placement group."""
        return str(self.group.id.hex())

    async def answers(self) -> bool:
        """Whether all hosts are alive."""
        try:
            await asyncio.wait_for(asyncio.gather(*(answer(host.address.remote()) for host in self.hosts)), ANSWER_S)
        except Exception:
            return False
        return True

    def end(self) -> None:
        """Kill the hosts, which ends their trainers, and free the resources."""
        for host in self.hosts:
            with contextlib.suppress(Exception):
                ray.kill(host)
        remove(self.group)


def remove_groups(owner: str) -> None:
    """Remove the placement groups of an earlier pool of this name: Ray keeps those of a killed actor until its job ends."""
    for group in placement_group_table().values():
        name = parse_name(group["name"])
        if name is not None and name.owner == owner and group["state"] != "REMOVED":
            remove(get_placement_group(group["name"]))


async def answer(call: Any) -> Any:
    """Return the result of a call of an actor; ``asyncio.wait_for`` and tasks need a coroutine."""
    return await call


def remove(group: PlacementGroup | None) -> None:
    """Remove a placement group, if there is one."""
    if group is not None:
        with contextlib.suppress(Exception):
            remove_placement_group(group)


def reserve(places: list[Place], wanted: Need, owner: str, since_s: float) -> PlacementGroup:
    """Ask Ray for the placement group of a lease, each bundle on its node."""
    bundles = []
    for one in places:
        address = min((name for name in one.node.total if name.startswith("node:") and "__" not in name), key=len)
        bundles.append(_bundle(one.cpus, wanted) | {address: one.share})
    labels = [{NODE_ID: one.node.id} if NODE_ID in one.node.labels else {} for one in places]
    return _group(bundles, labels, GroupName(owner, LEASE, wanted.threads, since_s))


def mark_waiting(wanted: Need, nodes: tuple[Node, ...], owner: str, since_s: float) -> PlacementGroup:
    """Ask Ray for a placement group that shows a wait: to an autoscaler, and to other pools, which then end idle leases.

    It includes the spare CPUs of a node if there are any, so that Ray does not create it from those alone.
    """
    largest = max((node.cpus for node in nodes if node.fits(wanted)), default=float(wanted.threads))
    bundles = [_bundle(wanted.threads, wanted) for _ in range(wanted.nodes)]
    bundles[0]["CPU"] = min(wanted.threads + SPARE_CPUS, largest)
    return _group(bundles, [dict(wanted.labels)] * wanted.nodes, GroupName(owner, MARK, wanted.threads, since_s))


def _bundle(cpus: float, wanted: Need) -> dict[str, float]:
    bundle = dict.fromkeys(wanted.resources, nodes.MARK)
    if cpus:
        bundle["CPU"] = cpus
    if wanted.gpus:
        bundle["GPU"] = float(wanted.gpus)
    return bundle


def _group(bundles: list[dict[str, float]], labels: list[dict[str, str]], name: GroupName) -> PlacementGroup:
    spread = "STRICT_SPREAD" if name.kind == MARK and bundles[0].get("GPU") else "SPREAD"
    arguments: dict[str, Any] = {"bundles": bundles, "strategy": spread, "name": str(name)}
    if any(labels):
        arguments["bundle_label_selector"] = labels
    return placement_group(**arguments)


def start_host(shape: Shape, group: PlacementGroup, index: int, cpus: float) -> Any:
    """Start the host of one bundle of a placement group; ``cpus`` are the CPUs of that bundle."""
    actor: Any = HostActor
    return actor.options(
        num_cpus=cpus,
        num_gpus=shape.host.gpus,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        **_usual_priority(),
    ).remote(shape.host)


def _usual_priority() -> dict[str, Any]:
    """Return the options with which a host, and so its trainers, have the priority of Ray itself.

    Ray starts workers with niceness 15 unless this variable says otherwise. A value that is set for the cluster is kept.
    """
    return {} if NICENESS in os.environ else {"runtime_env": {"env_vars": {NICENESS: "0"}}}
