"""Computes which nodes have free resources for a measurement, from a snapshot of the cluster. Pure: does not call Ray.

A measurement trains with ``threads`` CPUs on each node. Resources may be held by three kinds of holders, which count differently:

- Leases of all pools, actuators and operations: their threads count in full, so that no two measurements share a CPU.
- Actors of ado's operations, such as the trials of Ray Tune, and tasks that have asked for a measurement: they wait for measurements, so
  their CPUs do not count. Their GPUs do.
- All other holders of CPUs or GPUs in Ray: count in full.

A lease may reserve fewer CPUs in Ray than it has threads, to leave some for ado's operators: ``SPARE_CPUS`` of each node with two
CPUs or more, or what they hold already. Each lease also takes a share of the node's own resource ``node:ADDRESS``, so that two pools
cannot take the same CPUs at the same moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

# CPUs of a node that measurements do not reserve, for ado itself
SPARE_CPUS = 1.0
# the most that all leases together take of a node's resource node:ADDRESS; pinned tasks of other programs take little of it
NODE_SHARE = 0.9
# sums of fractional CPUs are not exact
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Need:
    """The resources that a measurement needs.

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
    """The resources that one bundle of a lease holds on a node.

    Attributes:
        group: identifier of the placement group.
        owner: name of the pool.
        threads: CPUs it trains with.
        reserved: its resources in Ray.
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
        free: its free resources in Ray.
        labels: its labels.
        operators: CPUs that ado's operators hold: actors of its operations, and tasks that wait for a measurement.
        most_operators: most CPUs that they have held so far.
        operator_gpus: GPUs that those of this operation hold.
        claims: resources of the leases on it.
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
        """CPUs that leases have reserved in Ray."""
        return sum(claim.reserved.get("CPU", 0.0) for claim in self.claims)

    @property
    def others_cpus(self) -> float:
        """CPUs held by neither leases nor ado's operators."""
        return max(0.0, self.cpus - self.free.get("CPU", 0.0) - self.operators - self.reserved_cpus)

    @property
    def others_gpus(self) -> float:
        """GPUs held by neither leases nor this operation's own operator."""
        leased = sum(claim.reserved.get("GPU", 0.0) for claim in self.claims)
        return max(0.0, self.total.get("GPU", 0.0) - self.free_gpus - leased - self.operator_gpus)

    @property
    def usable_cpus(self) -> float:
        """CPUs that one more measurement may train with."""
        return self.cpus - self.others_cpus - sum(claim.threads for claim in self.claims)

    @property
    def free_gpus(self) -> float:
        """Free GPUs."""
        return self.free.get("GPU", 0.0)

    def fits(self, need: Need) -> bool:
        """Whether the node has the needed labels and resources and, if it were empty, enough CPUs and GPUs."""
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
        """Return the number of hosts for which resources are free."""
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
        """Return the node without these groups; with None, without any lease."""
        ended = [claim for claim in self.claims if groups is None or claim.group in groups]
        free = dict(self.free)
        for claim in ended:
            for kind, amount in claim.reserved.items():
                free[kind] = free.get(kind, 0.0) + amount
        return dataclasses.replace(self, free=free, claims=tuple(one for one in self.claims if one not in ended))

    def with_claim(self, need: Need) -> Node:
        """Return the node with one more host."""
        reserved = {"CPU": self.reservable(need.threads), "GPU": float(need.gpus)}
        free = {**self.free, **{kind: self.free.get(kind, 0.0) - amount for kind, amount in reserved.items()}}
        claim = Claim("", "", need.threads, reserved)
        return dataclasses.replace(self, free=free, claims=(*self.claims, claim))

    def with_leases_only(self) -> Node:
        """Return the node with nothing but its leases."""
        free = dict(self.total)
        for claim in self.claims:
            for kind, amount in claim.reserved.items():
                free[kind] = free.get(kind, 0.0) - amount
        return dataclasses.replace(self, free=free)

    def emptied(self) -> Node:
        """Return the node with only ado's operators: their CPUs, and the GPUs of those of this operation."""
        gpus = self.total.get("GPU", 0.0) - self.operator_gpus
        return dataclasses.replace(self, free={**self.total, "CPU": self.cpus - self.operators, "GPU": gpus}, claims=())


@dataclasses.dataclass(frozen=True)
class Place:
    """The node of a host, and what the host reserves there.

    Attributes:
        node: the node without the host.
        cpus: CPUs to reserve there in Ray.
        share: share of the node's own resource ``node:ADDRESS`` to reserve.
    """

    node: Node
    cpus: float
    share: float


def place(need: Need, nodes: Sequence[Node]) -> list[Place] | None:
    """Return the node of each host of a measurement, or None if the free resources are not enough.

    Hosts without GPUs are spread over nodes while there are any. Of nodes with GPUs those with the fewest free ones are taken, which
    keeps whole nodes free for measurements that need them.
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
    """Return the nodes without these groups; with None, without any lease."""
    return [node.without(groups) for node in nodes]


def helps(group: str, need: Need, nodes: Sequence[Node]) -> bool:
    """Whether ending the lease of ``group`` frees resources that a waiting measurement lacks."""
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
    """Whether Ray could place all of these bundles on the free resources."""
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


def leases_to_end(
    idle: Sequence[str], wanted: Sequence[Mapping[str, float]] | Need, nodes: Sequence[Node]
) -> list[str]:
    """Return the idle leases to end for what is wanted: as few as possible, the first ones first; empty if that is not enough."""

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
    # the leases that have been idle for the shortest time are kept if possible
    for group in reversed(idle):
        if served([one for one in ended if one != group]):
            ended.remove(group)
    return ended
