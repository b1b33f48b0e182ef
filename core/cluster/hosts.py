"""Hosts on the cluster: what a measurement needs, the actors that serve it, and the placement group that reserves it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..host.host import Host, HostSpec
from ..measurement.outcome import Outcome
from ..protocol.messages import Job
from . import nodes
from .console import Message, console_line

# an idle host that does not answer within this time is treated as lost
ANSWER_S = 10.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a measurement needs; a lease of an equal shape serves it.

    Attributes:
        host: what each node's host provides.
        nodes: hosts.
        cpus: CPUs of each host.
        gpu_model: GPU type, or ``any``.
        roce: with RDMA between nodes.
    """

    host: HostSpec
    nodes: int
    cpus: int
    gpu_model: str
    roce: bool = False


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)
class HostActor:
    """A ``Host`` as a Ray actor: it shows its progress in ado's console, and answers while it measures."""

    def __init__(self, spec: HostSpec) -> None:
        self._host = Host(spec)

    def address(self) -> tuple[str, int]:
        """See ``Host.address``."""
        return self._host.address()

    def ping(self) -> None:
        """Answer, which a process that was stopped does not."""

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

    async def answers(self) -> bool:
        """Whether all hosts are alive."""
        try:
            await asyncio.wait_for(asyncio.gather(*(_answer(host.address.remote()) for host in self.hosts)), ANSWER_S)
        except Exception:
            return False
        return True

    def end(self) -> None:
        """Kill the hosts, which ends their trainers, and give the resources back."""
        for host in self.hosts:
            with contextlib.suppress(Exception):
                ray.kill(host)
        remove(self.group)


def remove_groups(owner: str) -> None:
    """Remove what a pool of this name has left: Ray keeps the groups of a killed actor as long as its job lasts."""
    for group in placement_group_table().values():
        if group["name"].startswith(f"{owner}-") and group["state"] != "REMOVED":
            remove(get_placement_group(group["name"]))


async def _answer(call: Any) -> Any:
    return await call


def remove(group: PlacementGroup | None) -> None:
    """Remove a placement group, if there is one."""
    if group is not None:
        with contextlib.suppress(Exception):
            remove_placement_group(group)


def bundles(shape: Shape) -> dict[str, Any]:
    """Return the arguments of the placement group of a shape."""
    need: dict[str, float] = {"CPU": shape.cpus}
    if shape.host.gpus:
        need["GPU"] = shape.host.gpus
    marks = nodes.marks(shape.gpu_model, roce=shape.roce)
    need |= dict.fromkeys(marks.resources, nodes.MARK)
    strategy = "PACK" if shape.nodes == 1 else "STRICT_SPREAD" if shape.host.gpus else "SPREAD"
    arguments: dict[str, Any] = {"bundles": [dict(need) for _ in range(shape.nodes)], "strategy": strategy}
    if marks.labels:  # Ray older than labels does not know the argument
        arguments["bundle_label_selector"] = [dict(marks.labels) for _ in range(shape.nodes)]
    return arguments


def start_host(shape: Shape, group: PlacementGroup, index: int) -> Any:
    """Start the host of one bundle of a placement group."""
    actor: Any = HostActor
    return actor.options(
        num_cpus=shape.cpus,
        num_gpus=shape.host.gpus,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
    ).remote(shape.host)
