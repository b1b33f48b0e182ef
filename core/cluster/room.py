"""Which nodes have room for a measurement: arithmetic on a snapshot of the cluster. Pure: asks Ray nothing.

A measurement trains with ``threads`` CPUs on each node. Three kinds of holders may be in its way, and count differently:

- Leases of pools, of whatever actuator or operation: their threads count in full, so no two measurements share a CPU.
- Actors of ado's operations, such as the trials of Ray Tune: they wait for measurements, so their CPUs do not count. Their GPUs do.
- Everything else that Ray has given CPUs or GPUs to: counts in full.

In Ray a lease reserves less than its threads where the rest is for ado's operators: they get ``SPARE_CPUS`` of each node with two
CPUs or more, or what they hold already. A share of the node's own resource ``node:ADDRESS`` keeps two pools from taking the same
CPUs at the same moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

# CPUs of a node that measurements leave unreserved, for what ado itself runs
SPARE_CPUS = 1.0
# of a node's resource node:ADDRESS all leases together take at most this much; pinned tasks of others take little of it
NODE_SHARE = 0.9
# sums of fractional CPUs are not exact
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Need:
    """What a measurement needs.

    Attributes:
        nodes: hosts; hosts with GPUs are on different nodes, others may share nodes.
        threads: CPUs each host trains with.
        gpus: GPUs of each host.
        resources: names of resources that a node must have.
        labels: labels that a node must have.
    """

    nodes: int
    threads: int
    gpus: int = 0
    resources: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one bundle of a lease holds on a node.

    Attributes:
        group: identifier of the placement group.
        owner: name of the pool.
        threads: CPUs it trains with.
        reserved: what it holds in Ray.
    """

    group: str
    owner: str
    threads: float
    reserved: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        id: Ray's identifier.
        total: all its resources.
        free: what nobody holds in Ray.
        labels: its labels.
        operators: CPUs that actors of ado's operations hold.
        most_operators: CPUs that they have held at most.
        operator_gpus: GPUs that they hold.
        claims: what leases of pools hold.
    """

    id: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    operators: float = 0.0
    most_operators: float = 0.0
    operator_gpus: float = 0.0
    claims: tuple[Claim, ...] = ()

    @property
    def cpus(self) -> float:
        """All CPUs."""
        return self.total.get("CPU", 0.0)

    @property
    def reserved_cpus(self) -> float:
        """CPUs that leases hold in Ray."""
        return sum(claim.reserved.get("CPU", 0.0) for claim in self.claims)

    @property
    def others_cpus(self) -> float:
        """CPUs held by neither leases nor ado's operators."""
        return max(0.0, self.cpus - self.free.get("CPU", 0.0) - self.operators - self.reserved_cpus)

    @property
    def usable_cpus(self) -> float:
        """CPUs that one more measurement may train with."""
        return self.cpus - self.others_cpus - sum(claim.threads for claim in self.claims)

    @property
    def free_gpus(self) -> float:
        """GPUs that nobody holds."""
        return self.free.get("GPU", 0.0)

    def fits(self, need: Need) -> bool:
        """Whether the node is of the kind that is needed and would be large enough if it were empty."""
        return (
            all(name in self.total for name in need.resources)
            and all(self.labels.get(name) == value for name, value in need.labels)
            and self.cpus >= need.threads
            and self.total.get("GPU", 0.0) >= need.gpus
        )

    def lacks(self, need: Need) -> set[str]:
        """Return which of ``CPU`` and ``GPU`` are not free in the amount of one host."""
        free = {"CPU": self.usable_cpus, "GPU": self.free_gpus}
        wanted = {"CPU": need.threads, "GPU": need.gpus}
        return {kind for kind in free if free[kind] < wanted[kind] - TOLERANCE}

    def places(self, need: Need) -> int:
        """Return how many hosts the node has room for."""
        if not self.fits(need):
            return 0
        if need.gpus:
            return int(not self.lacks(need))
        return max(0, int((self.usable_cpus + TOLERANCE) // need.threads))

    def reservable(self, threads: int) -> float:
        """Return the CPUs to reserve in Ray for a host that trains with ``threads``: all, less what ado's operators need."""
        spare = max(SPARE_CPUS if self.cpus >= 1 + SPARE_CPUS else 0.0, self.operators, self.most_operators)
        left = self.cpus - spare - self.others_cpus - self.reserved_cpus
        # Ray keeps four decimals
        return max(0.0, min(float(threads), int(left * 1000 + TOLERANCE) / 1000))

    def without(self, groups: Collection[str] | None) -> Node:
        """Return the node as it is once these groups, or with None all leases, have ended."""
        ended = [claim for claim in self.claims if groups is None or claim.group in groups]
        free = dict(self.free)
        for claim in ended:
            for kind, amount in claim.reserved.items():
                free[kind] = free.get(kind, 0.0) + amount
        return dataclasses.replace(self, free=free, claims=tuple(one for one in self.claims if one not in ended))

    def with_claim(self, need: Need) -> Node:
        """Return the node with one more host on it."""
        reserved = {"CPU": self.reservable(need.threads), "GPU": float(need.gpus)}
        free = {**self.free, **{kind: self.free.get(kind, 0.0) - amount for kind, amount in reserved.items()}}
        claim = Claim("", "", need.threads, reserved)
        return dataclasses.replace(self, free=free, claims=(*self.claims, claim))

    def emptied(self) -> Node:
        """Return the node as it is once everything has ended but ado's operators."""
        gpus = self.total.get("GPU", 0.0) - self.operator_gpus
        return dataclasses.replace(self, free={**self.total, "CPU": self.cpus - self.operators, "GPU": gpus}, claims=())


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a host goes.

    Attributes:
        node: the node, as it was before.
        cpus: CPUs to reserve there in Ray.
        share: of the node's own resource.
    """

    node: Node
    cpus: float
    share: float


def place(need: Need, nodes: Sequence[Node]) -> list[Place] | None:
    """Return where the hosts of a measurement go, or None if there is no room.

    Hosts without GPUs are spread over nodes while there are any. Of nodes with GPUs those with the fewest free ones are taken, which
    leaves whole nodes to those who need them.
    """
    left = {node.id: node for node in nodes}
    used = dict.fromkeys(left, 0)
    found: list[Place] = []
    for _ in range(need.nodes):
        able = [node for node in left.values() if node.places(need) and not (need.gpus and used[node.id])]
        if not able:
            return None
        chosen = min(able, key=lambda node: (used[node.id], node.free_gpus, -node.usable_cpus))
        share = int(10_000 * NODE_SHARE * need.threads / chosen.cpus) / 10_000
        found.append(Place(chosen, chosen.reservable(need.threads), share))
        used[chosen.id] += 1
        left[chosen.id] = chosen.with_claim(need)
    return found


def without(nodes: Sequence[Node], groups: Collection[str] | None) -> list[Node]:
    """Return the nodes as they are once these groups, or with None all leases, have ended."""
    return [node.without(groups) for node in nodes]


def helps(group: str, need: Need, nodes: Sequence[Node]) -> bool:
    """Whether ending the lease of ``group`` brings a measurement that lacks room closer to what it needs."""
    if place(need, nodes) is not None or place(need, without(nodes, None)) is None:
        return False
    for node in nodes:
        held = [claim for claim in node.claims if claim.group == group]
        lacks = node.lacks(need)
        frees_gpus = any(claim.reserved.get("GPU") for claim in held)
        if held and node.fits(need) and ("CPU" in lacks or ("GPU" in lacks and frees_gpus)):
            return True
    return False


def holds(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node]) -> bool:
    """Whether Ray could place all of these bundles on what is free."""
    left = [dict(node.free) for node in nodes]
    for bundle in sorted(bundles, key=lambda one: -sum(one.values())):
        for free in left:
            if all(free.get(kind, 0.0) >= amount - TOLERANCE for kind, amount in bundle.items()):
                for kind, amount in bundle.items():
                    free[kind] -= amount
                break
        else:
            return False
    return True


def giving_way(idle: Sequence[str], wanted: Sequence[Mapping[str, float]] | Need, nodes: Sequence[Node]) -> list[str]:
    """Return which of the idle leases to end for what is wanted: as few as serve it, the first ones first; none if it cannot be served."""

    def served(ended: Sequence[str]) -> bool:
        left = without(nodes, ended)
        return place(wanted, left) is not None if isinstance(wanted, Need) else holds(wanted, left)

    if served([]):
        return []
    for group in idle:
        if served([group]):
            return [group]
    ended = list(idle)
    if not served(ended):
        return []
    # those that have been idle for the shortest time are kept where possible
    for group in reversed(idle):
        if served([one for one in ended if one != group]):
            ended.remove(group)
    return ended
