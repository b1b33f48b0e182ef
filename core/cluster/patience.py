"""Who gives way to whom: decisions on a snapshot of the cluster and on how long requests have waited. Asks Ray nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from . import room
from .room import Need
from .snapshot import Snapshot, Waiting

# how long a request may wait while younger ones are served
PATIENCE_S = 30.0
# a request that does not take what is free for it is not waited for any longer
UNTAKEN_S = 60.0


class Patience:
    """What a pool does for those who wait: in its own lines, in other pools, and for placement groups that no pool has made."""

    def __init__(self) -> None:
        self._seen = Snapshot()
        self._waiting: list[Waiting] = []
        # since when requests could take what they need, and since when foreign groups wait; monotonic seconds
        self._untaken_s: dict[tuple[str, float], float] = {}
        self._foreign_s: dict[str, float] = {}
        # foreign groups for which something was given up: once, since what they lack may be what Ray's table does not show
        self._tried: set[str] = set()

    def update(self, seen: Snapshot, waiting: Sequence[Waiting]) -> None:
        """Take a new snapshot and all requests of pools that wait, those of this pool among them."""
        now = time.monotonic()
        self._seen, self._waiting = seen, sorted(waiting, key=lambda one: one.since_s)
        free = [(one.owner, one.since_s) for one in waiting if room.place(one.need, seen.nodes) is not None]
        self._untaken_s = {key: self._untaken_s.get(key, now) for key in free}
        foreign = {one.group for one in seen.pending}
        self._foreign_s = {group: self._foreign_s.get(group, now) for group in foreign}
        self._tried &= foreign

    def holds_back(self, need: Need, since_s: float) -> bool:
        """Whether a request waits for an older one, which has waited for long and lacks nothing but what leases hold."""
        nodes = self._seen.nodes
        empty = room.without(nodes, None)
        return any(
            room.place(other, empty) is not None and any(node.fits(other) and node.fits(need) for node in nodes)
            for other in self._starving(since_s)
        )

    def ends(self, lease: str, since_s: float, waiting: Sequence[Waiting]) -> bool:
        """Whether a lease does not go on to the next of its shape, who waits since ``since_s``.

        Args:
            lease: it was just given back.
            since_s: seconds since the epoch.
            waiting: those who wait now for anything else.
        """
        self._waiting = list(waiting)
        nodes = self._seen.nodes
        if any(room.helps(lease, need, nodes) for need in self._starving(since_s)):
            return True
        limit = time.monotonic() - PATIENCE_S
        for one in self._seen.pending:
            long = self._foreign_s.get(one.group, limit) < limit and one.group not in self._tried
            if long and room.giving_way([lease], one.bundles, nodes):
                self._tried.add(one.group)
                return True
        return False

    def gives_up(self, idle: Sequence[str]) -> set[str]:
        """Return which idle leases end: as few as serve somebody who waits."""
        nodes = self._seen.nodes
        for one in self._waiting:
            if ended := room.giving_way(idle, one.need, nodes):
                return set(ended)
        for need in self._starving(time.time()):
            # together with what other pools give up it may be enough
            if ended := [lease for lease in idle if room.helps(lease, need, nodes)]:
                return set(ended)
        for group in self._seen.pending:
            if group.group not in self._tried and (ended := room.giving_way(idle, group.bundles, nodes)):
                self._tried.add(group.group)
                return set(ended)
        return set()

    def _starving(self, before_s: float) -> list[Need]:
        """Return what those need who wait for long and since before a time, in seconds since the epoch; not what they leave untaken."""
        limit, now = min(before_s, time.time() - PATIENCE_S), time.monotonic()
        return [
            one.need
            for one in self._waiting
            if one.since_s < limit and now - self._untaken_s.get((one.owner, one.since_s), now) < UNTAKEN_S
        ]
