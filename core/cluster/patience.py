"""Decides which leases end for which waiting requests, from a snapshot of the cluster and the waiting times. Does not call Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence

from . import placement
from .placement import Need
from .snapshot import Pending, Snapshot, Waiting

# how long a request may wait while newer ones are served
PATIENCE_S = 30.0
# Ray's table of queued tasks is a second old
QUEUED_S = 2.0
# after a lease was ended for a request of another program, this pool asks for nothing: Ray serves requests in no order
YIELDS_S = 5.0
# a request that does not take its free resources within this time no longer holds back newer ones
UNTAKEN_S = 60.0


class Patience:
    """Decisions of a pool for waiting requests: its own, those of other pools, and those of other programs."""

    def __init__(self) -> None:
        self._seen = Snapshot()
        self._waiting: list[Waiting] = []
        # since when the resources of each request have been free, and each request of another program has waited; monotonic seconds
        self._untaken_s: dict[tuple[str, float], float] = {}
        self._foreign_s: dict[str, float] = {}
        # since when each request has been seen: the wall clock may be set back, and then its wait would begin in the future
        self._first_seen_s: dict[tuple[str, float], float] = {}
        # requests of other programs for which a lease was ended, and when: one each, since they may wait for something that Ray's tables
        # do not show
        self._tried: dict[str, float] = {}

    def update(self, seen: Snapshot, waiting: Sequence[Waiting]) -> None:
        """Set the snapshot, and the waiting requests of all pools, this one included."""
        now = time.monotonic()
        self._seen, self._waiting = seen, sorted(waiting, key=lambda one: one.since_s)
        free = [(one.owner, one.since_s) for one in waiting if placement.place(one.need, seen.nodes) is not None]
        self._untaken_s = {key: self._untaken_s.get(key, now) for key in free}
        self._first_seen_s = {
            (one.owner, one.since_s): self._first_seen_s.get((one.owner, one.since_s), now) for one in waiting
        }
        foreign = {one.id for one in seen.pending}
        self._foreign_s = {one: self._foreign_s.get(one, now) for one in foreign}
        self._tried = {one: at_s for one, at_s in self._tried.items() if one in foreign}

    def yields(self) -> bool:
        """Whether resources were freed for a request of another program, which has not taken them yet."""
        now = time.monotonic()
        return any(now - at_s < YIELDS_S for at_s in self._tried.values())

    def holds_back(self, need: Need, since_s: float) -> bool:
        """Whether a request must wait for an older one that has waited for long and lacks only resources of leases."""
        nodes = self._seen.nodes
        empty = placement.without(nodes, None)
        return any(
            placement.place(other, empty) is not None and any(node.fits(other) and node.fits(need) for node in nodes)
            for other in self._starving(since_s)
        )

    def ends(self, lease: str, since_s: float, waiting: Sequence[Waiting]) -> bool:
        """Whether a lease ends instead of passing to the next request of its shape, which has waited since ``since_s``.

        Args:
            lease: the lease that was just given back.
            since_s: seconds since the epoch.
            waiting: the waiting requests for other shapes.
        """
        self._waiting = list(waiting)
        nodes = self._seen.nodes
        if any(placement.helps(lease, need, nodes) for need in self._starving(since_s)):
            return True
        for one in self._foreign(PATIENCE_S):
            if placement.leases_to_end([lease], one.bundles, nodes):
                self._tried[one.id] = time.monotonic()
                return True
        return False

    def idle_to_end(self, idle: Sequence[str]) -> set[str]:
        """Return the idle leases to end: as few as possible that serve a waiting request."""
        nodes = self._seen.nodes
        for one in self._waiting:
            if ended := placement.leases_to_end(idle, one.need, nodes):
                return set(ended)
        for need in self._starving(time.time()):
            # together with leases of other pools it may be enough
            if ended := [lease for lease in idle if placement.helps(lease, need, nodes)]:
                return set(ended)
        for foreign in self._foreign(0.0):
            if ended := placement.leases_to_end(idle, foreign.bundles, nodes):
                self._tried[foreign.id] = time.monotonic()
                return set(ended)
        return set()

    def _foreign(self, waited_s: float) -> list[Pending]:
        """Return the requests of other programs that have waited at least this long, and for which no lease was ended yet."""
        now = time.monotonic()
        return [
            one
            for one in self._seen.pending
            if one.id not in self._tried and now - self._foreign_s[one.id] >= max(waited_s, self._uncertain_s(one))
        ]

    def _uncertain_s(self, pending: Pending) -> float:
        """Return for how long a pending request may already have its resources: Ray lists a task as queued while its worker starts."""
        if not pending.queued:
            return 0.0
        fits = placement.holds(pending.bundles, [node.with_leases_only() for node in self._seen.nodes])
        return PATIENCE_S if fits else QUEUED_S

    def _starving(self, before_s: float) -> list[Need]:
        """Return the needs of requests that wait since before ``before_s`` (seconds since the epoch) and for at least ``PATIENCE_S``.

        Requests that have not taken their free resources for ``UNTAKEN_S`` are left out.
        """
        limit, now = min(before_s, time.time() - PATIENCE_S), time.monotonic()
        return [
            one.need
            for one in self._waiting
            if self._since_s(one, now) < limit and now - self._untaken_s.get((one.owner, one.since_s), now) < UNTAKEN_S
        ]

    def _since_s(self, one: Waiting, now: float) -> float:
        seen_for_s = now - self._first_seen_s.get((one.owner, one.since_s), now)
        return min(one.since_s, time.time() - seen_for_s)
