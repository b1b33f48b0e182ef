"""Who holds CPUs and GPUs: leases of hosts in Ray placement groups, reused between measurements of the same shape. Ray room.

Requests for one shape are served in the order of their arrival. Between shapes nobody is held back: whoever fits goes first, and a
lease goes on to the next of its shape, which keeps trainers warm, unless another shape has waited for a minute.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
import uuid
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

from .. import failures
from ..host.host import Host, HostSpec
from ..measurement.outcome import Outcome
from ..protocol.messages import Job
from . import nodes as cluster

POLL_S = 0.25
# Ray makes a group within milliseconds when what it needs is free
FIRST_LOOK_S = 0.03
# a lease that has been idle for less may be asked for at once: ado sends the next entity when one is done
SETTLED_S = 0.5
# Ray takes a moment to free what a killed host held; until then nothing else is given up for the same request
ROOM_S = 3.0
# how long a shape may be served from its own leases while another one gets nothing
PATIENCE_S = 60.0
# a host that has nothing to do and takes this long to say so is as good as lost
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
    """A ``Host`` as a Ray actor; it tells ado's console how far it is, and answers while it measures."""

    def __init__(self, spec: HostSpec) -> None:
        self._host = Host(spec)

    def address(self) -> tuple[str, int]:
        """See ``Host.address``."""
        return self._host.address()

    def ping(self) -> None:
        """Answer, which a process that was stopped does not."""

    def measure(self, job: Job, run_timeout_s: float, label: str) -> Outcome:
        """See ``Host.measure``; ``label`` names the measurement in the console."""
        with cluster.console_line(f"measurement-{job.id}", label) as tell:
            return self._host.measure(job, run_timeout_s, tell)


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
        _remove(self.group)


@dataclasses.dataclass
class _Line:
    """Who waits for one shape, in order of arrival, the placement group that the first of them is to get, and since when it waits."""

    waiting: collections.deque[asyncio.Future[Lease]] = dataclasses.field(default_factory=collections.deque)
    group: PlacementGroup | None = None
    since_s: float = dataclasses.field(default_factory=time.monotonic)


class Pool:
    """Leases of hosts. All methods run in one event loop.

    Args:
        idle_timeout_s: seconds after which an unused lease is given up.
        owner: begins the names of its placement groups.
    """

    def __init__(self, idle_timeout_s: float, owner: str = "pool") -> None:
        self._idle_timeout_s = idle_timeout_s
        self._owner = owner
        self._idle: list[Lease] = []
        self._busy: list[Lease] = []
        self._lines: dict[Shape, _Line] = {}
        self._room_made_s = float("-inf")
        self._yielded_s = float("-inf")
        self._tending: asyncio.Task[None] | None = None
        self._closed = False

    async def acquire(self, shape: Shape, timeout_s: float) -> Lease:
        """Wait for a lease of ``shape`` whose hosts are alive.

        Raises:
            failures.Broken: the resources did not become free within ``timeout_s`` seconds.
        """
        self._check_open()
        deadline = time.monotonic() + timeout_s
        while lease := self._take(shape):
            alive = False
            try:
                alive = await lease.answers()
            finally:
                if not alive:
                    self.give_back(lease, keep=False)
            if alive:
                return lease
        self._check_open()
        return await self._wait(shape, deadline, timeout_s)

    async def _wait(self, shape: Shape, deadline: float, timeout_s: float) -> Lease:
        ticket: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(shape, _Line()).waiting.append(ticket)
        self._tend()
        try:
            await asyncio.wait([ticket], timeout=max(0.0, deadline - time.monotonic()))
        except asyncio.CancelledError:
            if ticket.done() and ticket.exception() is None:
                self.give_back(ticket.result(), keep=True)
            raise
        finally:
            self._leave(shape, ticket)
        if not ticket.done():
            raise failures.Broken(
                f"the CPUs and GPUs it needs did not become free within pending_timeout_s {timeout_s:g} s."
            )
        return ticket.result()

    def give_back(self, lease: Lease, *, keep: bool) -> None:
        """Return a lease; ``keep`` leaves its hosts running for the next measurement of the same shape."""
        if lease in self._busy:
            self._busy.remove(lease)
        if keep and self._others_starve(lease.shape):
            keep, self._yielded_s = False, time.monotonic()
        if not keep or self._closed:
            lease.end()
        elif not self._hand_over(lease):
            lease.idle_since = time.monotonic()
            self._idle.append(lease)
            self._tend()

    def close(self) -> None:
        """End every host, and every wait for one."""
        self._closed = True
        for lease in [*self._idle, *self._busy]:
            lease.end()
        for line in self._lines.values():
            _remove(line.group)
            for ticket in line.waiting:
                if not ticket.done():
                    ticket.set_exception(failures.Broken("the operation has ended."))
        self._idle, self._busy, self._lines = [], [], {}

    def _check_open(self) -> None:
        if self._closed:
            raise failures.Broken("the operation has ended.")

    def _take(self, shape: Shape) -> Lease | None:
        for lease in self._idle:
            if lease.shape == shape:
                self._idle.remove(lease)
                self._busy.append(lease)
                return lease
        return None

    def _hand_over(self, lease: Lease) -> bool:
        """Give a lease to the first who waits for its shape; False if nobody does."""
        line = self._lines.get(lease.shape)
        if line is None:
            return False
        ticket = line.waiting.popleft()
        line.since_s = time.monotonic()
        self._leave(lease.shape, ticket)
        self._busy.append(lease)
        ticket.set_result(lease)
        return True

    def _others_starve(self, shape: Shape) -> bool:
        """Whether a line has waited for long that could use what a lease of ``shape`` holds."""
        limit = time.monotonic() - PATIENCE_S
        return any(
            line.since_s < limit and other != shape and _helps(shape, other) for other, line in self._lines.items()
        )

    def _leave(self, shape: Shape, ticket: asyncio.Future[Lease]) -> None:
        """Take a ticket out of its line; nothing is asked of Ray for a line that nobody stands in."""
        line = self._lines.get(shape)
        if line is None:
            return
        with contextlib.suppress(ValueError):
            line.waiting.remove(ticket)
        if not line.waiting:
            del self._lines[shape]
            _remove(line.group)

    # -- looking after what is idle and who waits ----------------------------------------------------------

    def _tend(self) -> None:
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._keep_tending())

    async def _keep_tending(self) -> None:
        """Look after lines and idle leases while there are any; whatever goes wrong, the next round tries again."""
        while self._lines or self._idle:
            try:
                await self._tend_once()
            except Exception as error:
                logging.getLogger(__name__).warning("a round of the pool failed, and is repeated: %s", error)
                await asyncio.sleep(POLL_S)

    async def _tend_once(self) -> None:
        asked = self._ask()
        await asyncio.sleep(FIRST_LOOK_S if asked else POLL_S if self._lines else min(1.0, self._idle_timeout_s))
        self._end_what_idles_too_long()
        if self._lines or self._idle:
            groups = await asyncio.to_thread(placement_group_table)
            self._serve(groups)
            self._make_room([group for group in groups.values() if group["state"] == "PENDING"])

    def _ask(self) -> bool:
        """Ask Ray for a placement group for each line that has none; one at a time, however many wait in it."""
        asked = False
        for shape, line in list(self._lines.items()):
            yields = time.monotonic() - self._yielded_s < ROOM_S and self._others_starve(shape)
            if line.group is not None or yields:
                continue
            asked = True
            try:
                line.group = placement_group(**_bundles(shape), name=f"{self._owner}-{uuid.uuid4().hex[:12]}")
            except Exception as error:
                for ticket in list(line.waiting):
                    self._leave(shape, ticket)
                    ticket.set_exception(error)
        return asked

    def _serve(self, groups: dict[str, Any]) -> None:
        """Make a lease of each group that Ray has made, for the first in its line."""
        for shape, line in list(self._lines.items()):
            group = line.group
            state = groups.get(group.id.hex(), {}).get("state") if group is not None else None
            if group is not None and state == "CREATED":
                hosts = [_start_host(shape, group, index) for index in range(shape.nodes)]
                self._room_made_s = float("-inf")
                line.group = None
                self._hand_over(Lease(shape, group, hosts))
            elif state == "REMOVED":
                line.group = None

    def _end_what_idles_too_long(self) -> None:
        limit = time.monotonic() - self._idle_timeout_s
        for lease in [lease for lease in self._idle if lease.idle_since < limit]:
            self._idle.remove(lease)
            lease.end()

    def _make_room(self, pending: list[dict[str, Any]]) -> None:
        """Give up as many idle leases, longest idle first, as hold what the pending groups need.

        Another actuator or operation has a pool of its own and cannot ask for what this one does not use, so its groups count too.
        """
        now = time.monotonic()
        if not pending or now - self._room_made_s < ROOM_S:
            return
        need = {
            kind: sum(bundle.get(kind, 0.0) for group in pending for bundle in group["bundles"].values())
            for kind in ("CPU", "GPU")
        }
        for lease in [lease for lease in self._idle if now - lease.idle_since >= SETTLED_S]:
            if need["CPU"] <= 0 and need["GPU"] <= 0:
                break
            self._idle.remove(lease)
            lease.end()
            self._room_made_s = now
            need["CPU"] -= lease.shape.cpus * lease.shape.nodes
            need["GPU"] -= lease.shape.host.gpus * lease.shape.nodes


def _helps(given: Shape, wanted: Shape) -> bool:
    """Whether giving up a lease may serve another shape: CPUs alone are no help to who waits for GPUs that others hold."""
    lacks_gpus = wanted.host.gpus and ray.available_resources().get("GPU", 0.0) < wanted.host.gpus * wanted.nodes
    return given.host.gpus > 0 or not lacks_gpus


def remove_groups(owner: str) -> None:
    """Remove what a pool of this name has left: Ray keeps the groups of a killed actor as long as its job lasts."""
    for group in placement_group_table().values():
        if group["name"].startswith(f"{owner}-") and group["state"] != "REMOVED":
            _remove(get_placement_group(group["name"]))


async def _answer(call: Any) -> Any:
    return await call


def _remove(group: PlacementGroup | None) -> None:
    if group is not None:
        with contextlib.suppress(Exception):
            remove_placement_group(group)


def _bundles(shape: Shape) -> dict[str, Any]:
    need: dict[str, float] = {"CPU": shape.cpus}
    if shape.host.gpus:
        need["GPU"] = shape.host.gpus
    marks = cluster.marks(shape.gpu_model, roce=shape.roce)
    need |= dict.fromkeys(marks.resources, cluster.MARK)
    strategy = "PACK" if shape.nodes == 1 else "STRICT_SPREAD" if shape.host.gpus else "SPREAD"
    arguments: dict[str, Any] = {"bundles": [dict(need) for _ in range(shape.nodes)], "strategy": strategy}
    if marks.labels:  # Ray older than labels does not know the argument
        arguments["bundle_label_selector"] = [dict(marks.labels) for _ in range(shape.nodes)]
    return arguments


def _start_host(shape: Shape, group: PlacementGroup, index: int) -> Any:
    actor: Any = HostActor
    return actor.options(
        num_cpus=shape.cpus,
        num_gpus=shape.host.gpus,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
    ).remote(shape.host)
