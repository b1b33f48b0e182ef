"""Leases hosts to measurements. A lease holds a Ray placement group, and is reused by measurements of the same shape.

Requests for one shape are served in the order of their arrival. Shapes and pools are not ordered: any request whose resources are free
is served, and a lease passes to the next request of its shape, so that its trainers are reused. A request of any pool of the Ray cluster
that has waited for long is served before newer ones (``patience``). ``placement`` computes which resources are free.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Callable

from ray.util.placement_group import PlacementGroup

from .. import failures
from . import placement
from .hosts import Lease, Shape, mark_waiting, remove, reserve, start_host
from .patience import Patience
from .placement import Need
from .snapshot import Snapshot, Waiting, look
from .tasks import Callers
from .waiting import explain

POLL_S = 0.25
# interval at which a waiting request checks that the cluster can still serve it
CHECK_S = 5.0
# Ray creates a placement group within milliseconds if its resources are free
FIRST_LOOK_S = 0.03
# a lease that has been idle for less is kept: ado sends the next entity as soon as one is done
SETTLED_S = 0.5
# Ray frees the resources of a killed host after a moment; until then no other lease is ended
FREEING_S = 3.0
# a placement group that Ray has not created by then is requested anew, since other resources are free now; each time it has twice as long,
# since Ray may be slow on a busy machine
RENEW_S = 3.0
LONGEST_RENEW_S = 24.0
# a request that has waited for less is not shown to other pools
MARK_AFTER_S = 1.0
# a wait is reported after REPORT_AFTER_S, and again every REPORT_EVERY_S
REPORT_AFTER_S = 30.0
REPORT_EVERY_S = 300.0
# a wait for resources that the operation itself holds until its end fails after this time
STUCK_S = 90.0
ENDED = "The operation has ended."

# takes an identifier, a text, whether the wait continues, and whether the user should act
Report = Callable[[str, str, bool, bool], None]


# lambdas, so that a test can replace the clock
@dataclasses.dataclass
class _Ticket:
    """A waiting request: its future lease, and the start of its wait in monotonic seconds."""

    lease: asyncio.Future[Lease]
    joined_s: float = dataclasses.field(default_factory=lambda: time.monotonic())


@dataclasses.dataclass
class _Line:
    """The waiting requests for one shape, in order of arrival.

    Attributes:
        waiting: the requests.
        since_s: start of the wait, or time at which a request was last served, in seconds since the epoch, which other nodes can compare.
        unserved_s: the same in monotonic seconds.
        group: placement group that Ray was asked to create; None while the resources are not free.
        asked_s: when Ray was asked, monotonic seconds.
        renew_s: how long Ray has for it.
        mark: placement group that shows the wait to other pools while the resources are not free.
        reported_s: when the wait was last reported.
        stuck_s: since when the wait cannot end.
    """

    waiting: collections.deque[_Ticket] = dataclasses.field(default_factory=collections.deque)
    since_s: float = dataclasses.field(default_factory=lambda: time.time())
    unserved_s: float = dataclasses.field(default_factory=lambda: time.monotonic())
    group: PlacementGroup | None = None
    asked_s: float = 0.0
    renew_s: float = RENEW_S
    mark: PlacementGroup | None = None
    reported_s: float | None = None
    stuck_s: float | None = None
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex[:8])


class Pool:
    """Leases of hosts. All methods run in one event loop.

    Args:
        idle_timeout_s: seconds after which an unused lease is given up.
        owner: part of the names of its placement groups; unique in the cluster.
        autoscaling: whether nodes may be added to the cluster.
        report: called with long waits.
    """

    def __init__(
        self,
        idle_timeout_s: float,
        owner: str | None = None,
        *,
        autoscaling: bool = False,
        report: Report = lambda identifier, text, lasts, warn: None,
    ) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._owner = owner or f"pool-{uuid.uuid4().hex[:8]}"
        self._autoscaling = autoscaling
        self._report = report
        self._idle: list[Lease] = []
        self._busy: list[Lease] = []
        self._lines: dict[Shape, _Line] = {}
        self._needs: dict[Shape, Need] = {}
        self._seen = Snapshot()
        self._patience = Patience()
        self._callers = Callers()
        self._operators: dict[str, float] = {}
        self._freed_s = float("-inf")
        self._hurry = False
        self._tending: asyncio.Task[None] | None = None
        self._reporting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def acquire(self, shape: Shape, timeout_s: float, check: Callable[[], None] | None = None) -> Lease:
        """Wait for a lease of ``shape`` whose hosts are alive.

        Args:
            shape: what is needed.
            timeout_s: most seconds to wait.
            check: raises when the cluster can no longer hold the shape; called at the start and while waiting.

        Raises:
            failures.Broken: the resources did not become free within ``timeout_s`` seconds, or never can.
        """
        self._check_open()
        if check is not None:
            check()
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
        return await self._wait(shape, deadline, timeout_s, check)

    async def _wait(self, shape: Shape, deadline: float, timeout_s: float, check: Callable[[], None] | None) -> Lease:
        ticket = _Ticket(asyncio.get_running_loop().create_future())
        self._lines.setdefault(shape, _Line()).waiting.append(ticket)
        self._hurry = True
        self._tend()
        try:
            while not ticket.lease.done() and (left := deadline - time.monotonic()) > 0:
                await asyncio.wait([ticket.lease], timeout=min(left, CHECK_S))
                if check is not None and not ticket.lease.done():
                    check()
            if not ticket.lease.done():
                raise failures.Broken(await self._too_late(shape, timeout_s))
        except asyncio.CancelledError:
            if ticket.lease.done() and ticket.lease.exception() is None:
                self.give_back(ticket.lease.result(), keep=True)
            raise
        finally:
            self._leave(shape, ticket)
        return ticket.lease.result()

    async def _too_late(self, shape: Shape, timeout_s: float) -> str:
        message = f"pending_timeout_s {timeout_s:g} s have passed without"
        if shape not in self._needs:
            return f"{message} the CPUs and GPUs it needs."
        why = await asyncio.to_thread(explain, self._needs[shape], self._seen, self._owner)
        return f"{message} {why.needs}: {why.free}, held by {why.held}."

    def give_back(self, lease: Lease, *, keep: bool) -> None:
        """Return a lease; ``keep`` leaves its hosts running for the next measurement of the same shape."""
        if lease in self._busy:
            self._busy.remove(lease)
        if not keep or self._closed or self._must_end(lease):
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
            self._close_line(line)
            for ticket in line.waiting:
                if not ticket.lease.done():
                    ticket.lease.set_exception(failures.Broken(ENDED))
        self._idle, self._busy, self._lines = [], [], {}

    def _check_open(self) -> None:
        if self._closed:
            raise failures.Broken(ENDED)

    def _take(self, shape: Shape) -> Lease | None:
        for lease in self._idle:
            if lease.shape == shape:
                self._idle.remove(lease)
                self._busy.append(lease)
                return lease
        return None

    def _hand_over(self, lease: Lease) -> bool:
        """Give a lease to the first waiting request of its shape; return False if there is none."""
        line = self._lines.get(lease.shape)
        if line is None:
            return False
        ticket = line.waiting.popleft()
        line.since_s, line.unserved_s = time.time(), time.monotonic()
        remove(line.mark)
        line.mark = None
        self._leave(lease.shape, ticket)
        self._busy.append(lease)
        ticket.lease.set_result(lease)
        return True

    def _leave(self, shape: Shape, ticket: _Ticket) -> None:
        """Remove a ticket from its line. An empty line is closed, and its placement group removed."""
        line = self._lines.get(shape)
        if line is None:
            return
        with contextlib.suppress(ValueError):
            line.waiting.remove(ticket)
        if not line.waiting:
            del self._lines[shape]
            self._close_line(line)

    def _close_line(self, line: _Line) -> None:
        remove(line.group)
        remove(line.mark)
        if line.reported_s is not None:
            self._report(line.id, "The wait for CPUs and GPUs is over.", False, False)

    def _fail(self, shape: Shape, error: Exception) -> None:
        for ticket in list(self._lines[shape].waiting):
            self._leave(shape, ticket)
            ticket.lease.set_exception(error)

    # -- idle leases and waiting requests -------------------------------------------------------------------

    def _tend(self) -> None:
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._keep_tending())

    async def _keep_tending(self) -> None:
        """Serve lines and end idle leases while there are any. After an exception the next round tries again."""
        while self._lines or self._idle:
            try:
                await self._tend_once()
            except Exception as error:
                logging.getLogger(__name__).warning(
                    "Serving waiting measurements failed (%s); it is tried again.", error
                )
                await asyncio.sleep(POLL_S)

    async def _tend_once(self) -> None:
        pause_s = POLL_S if self._lines else min(1.0, self._idle_timeout_s)
        await asyncio.sleep(FIRST_LOOK_S if self._hurry else pause_s)
        self._hurry = False
        self._end_expired()
        if self._lines or self._idle:
            self._seen, self._needs = await asyncio.to_thread(self._look, list(self._lines))
            self._patience.update(self._seen, self._waiting())
            self._serve()
            self._ask()
            self._end_idle_for_waiting()
            await self._fail_endless_waits()
            self._report_waits()

    def _look(self, shapes: list[Shape]) -> tuple[Snapshot, dict[Shape, Need]]:
        """Ask Ray for the state of the cluster, and update the most CPUs that ado's operators have held: their trials start and end."""
        seen = self._callers.counted(look()) if shapes else look()
        for node in seen.nodes:
            self._operators[node.id] = max(node.operators, self._operators.get(node.id, 0.0))
        nodes = tuple(dataclasses.replace(node, most_operators=self._operators[node.id]) for node in seen.nodes)
        return dataclasses.replace(seen, nodes=nodes), {shape: shape.need() for shape in shapes}

    def _waiting(self, but: Shape | None = None) -> list[Waiting]:
        """Return the waiting requests of this pool, except those for the shape ``but``, and of other pools."""
        own = [
            Waiting("", self._owner, line.since_s, self._needs[shape])
            for shape, line in self._lines.items()
            if shape != but and shape in self._needs and line.group is None
        ]
        return own + [one for one in self._seen.waiting if one.owner != self._owner]

    def _serve(self) -> None:
        """Make a lease of each placement group that Ray has created, and give it to the first request of its line."""
        for shape, line in list(self._lines.items()):
            if line.group is None:
                continue
            row = self._seen.groups.get(line.group.id.hex(), {})
            if row.get("state") == "CREATED":
                held = [row["bundles"][index].get("CPU", 0.0) for index in range(shape.nodes)]
                hosts = [start_host(shape, line.group, index, cpus) for index, cpus in enumerate(held)]
                lease, line.group, line.renew_s = Lease(shape, line.group, hosts), None, RENEW_S
                self._hurry = True
                self._hand_over(lease)
            elif row.get("state") == "REMOVED" or time.monotonic() - line.asked_s > line.renew_s:
                remove(line.group)
                line.group, line.renew_s = None, min(LONGEST_RENEW_S, 2 * line.renew_s)

    def _ask(self) -> None:
        """Ask Ray for one placement group: for the line that has waited longest of those whose resources are free."""
        made = self._remove_made_marks()
        if self._patience.yields() or any(line.group is not None for line in self._lines.values()):
            return
        for shape, line in sorted(self._lines.items(), key=lambda one: one[1].since_s):
            need = self._needs.get(shape)
            if need is None:
                continue
            places = None if self._patience.holds_back(need, line.since_s) else placement.place(need, self._seen.nodes)
            try:
                if places is not None:
                    remove(line.mark)
                    line.mark = None
                    line.group = reserve(places, need, self._owner, line.since_s)
                    line.asked_s, self._hurry = time.monotonic(), True
                    return
                if shape not in made:
                    self._mark(line, need)
            except Exception as error:
                self._fail(shape, error)

    def _remove_made_marks(self) -> list[Shape]:
        """Remove the marks that Ray has created nevertheless: they hold CPUs, which another line may wait for. Return their shapes."""
        made = []
        for shape, line in self._lines.items():
            if line.mark and self._seen.groups.get(line.mark.id.hex(), {}).get("state") in ("CREATED", "REMOVED"):
                remove(line.mark)
                line.mark = None
                made.append(shape)
        return made

    def _mark(self, line: _Line, need: Need) -> None:
        """Show the wait to other pools."""
        if line.mark is None and time.monotonic() - line.unserved_s > MARK_AFTER_S:
            line.mark = mark_waiting(need, self._seen.nodes, self._owner, line.since_s)

    def _must_end(self, lease: Lease) -> bool:
        """Whether a lease must end for a request that has waited for long, although requests of its own shape wait as well."""
        line = self._lines.get(lease.shape)
        # a lease without a waiting request of its shape is kept until the next round
        return line is not None and self._patience.ends(lease.id, line.since_s, self._waiting(lease.shape))

    def _end_expired(self) -> None:
        limit = time.monotonic() - self._idle_timeout_s
        self._end_idle({lease.id for lease in self._idle if lease.idle_since < limit})

    def _end_idle(self, groups: set[str]) -> None:
        for lease in [lease for lease in self._idle if lease.id in groups]:
            self._idle.remove(lease)
            lease.end()

    def _end_idle_for_waiting(self) -> None:
        """End idle leases for waiting requests."""
        now = time.monotonic()
        idle = [lease.id for lease in self._idle if now - lease.idle_since >= SETTLED_S]
        if idle and now - self._freed_s >= FREEING_S and (ended := self._patience.idle_to_end(idle)):
            self._freed_s = now
            self._end_idle(ended)

    async def _fail_endless_waits(self) -> None:
        """Fail requests that wait for resources of ado's operators, which are only freed after the measurement."""
        now = time.monotonic()
        emptied = [node.emptied() for node in self._seen.nodes]
        for shape, line in list(self._lines.items()):
            need = self._needs.get(shape)
            if self._autoscaling or need is None or placement.place(need, emptied) is not None:
                line.stuck_s = None
                continue
            line.stuck_s = now if line.stuck_s is None else line.stuck_s
            if now - line.stuck_s > STUCK_S:
                why = await asyncio.to_thread(explain, need, self._seen, self._owner)
                if shape in self._lines:
                    text = f"{why.needs} can never become free: the operation itself holds them ({why.held})."
                    self._fail(shape, failures.Broken(text))

    def _report_waits(self) -> None:
        """Report long waits."""
        now = time.monotonic()
        for shape, line in self._lines.items():
            waited_s = now - line.waiting[0].joined_s
            reported = line.reported_s is not None and now - line.reported_s < REPORT_EVERY_S
            if waited_s > REPORT_AFTER_S and not reported and shape in self._needs:
                line.reported_s = now
                task = asyncio.get_running_loop().create_task(self._explain(line, self._needs[shape], waited_s))
                self._reporting.add(task)
                task.add_done_callback(self._reporting.discard)

    async def _explain(self, line: _Line, need: Need, waited_s: float) -> None:
        why = await asyncio.to_thread(explain, need, self._seen, self._owner)
        if line.waiting and not self._closed:
            self._report(line.id, why.message(waited_s), True, not why.only_own)
