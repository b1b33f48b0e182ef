"""Takes a snapshot of the Ray cluster: nodes, free resources, those of leases and of ado's operators, waiting placement groups."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from . import nodes
from .placement import Claim, Need, Node

# a placement group of a pool is either a lease, or the mark of a waiting request, which is removed as soon as Ray has created it
LEASE, MARK = "lease", "waiting"
PREFIX = "ado-actuators"
_DISPATCHERS, _JOB_DIGITS = "dispatcher-", 8
# ends of the module names of this core's actors, in all plugins
DISPATCHER, HOST = ".core.actuator.dispatcher", ".core.cluster.hosts"
# module of ado's manager of a space: an operation starts it before its operator, and the dispatcher with its first request
MANAGER = "ado.modules.operators.discovery_space_manager"


def owner_name(dispatcher: str) -> str:
    """Return the name of the pool of a dispatcher, from the id of its actor."""
    return f"{_DISPATCHERS}{dispatcher}"


def operation_of(owner: str) -> str:
    """Return the id of the Ray job of a pool, with which the id of its dispatcher ends; of a pool without a dispatcher its name."""
    return owner[-_JOB_DIGITS:] if owner.startswith(_DISPATCHERS) else owner


@dataclasses.dataclass(frozen=True)
class GroupName:
    """Name of a pool's placement group, from which other pools read its purpose.

    Attributes:
        owner: name of the pool.
        kind: ``lease`` or ``waiting``.
        threads: CPUs that each bundle trains with.
        since_s: start of the request's wait, seconds since the epoch.
    """

    owner: str
    kind: str
    threads: int
    since_s: float

    def __str__(self) -> str:
        """Return a unique name for Ray."""
        return f"{PREFIX}:{self.owner}:{self.kind}:{self.threads}:{self.since_s:.3f}:{uuid.uuid4().hex[:12]}"


def parse_name(name: str) -> GroupName | None:
    """Parse the name of a placement group; None if it does not belong to a pool."""
    parts = name.split(":")
    if len(parts) != 6 or parts[0] != PREFIX:
        return None
    with contextlib.suppress(ValueError):
        return GroupName(parts[1], parts[2], int(parts[3]), float(parts[4]))
    return None


@dataclasses.dataclass(frozen=True)
class Actor:
    """A live actor: its class and module, its name or an empty string, and its resources on its node."""

    class_name: str
    module: str
    name: str
    job: str
    node: str
    resources: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Pending:
    """What another program waits for: a placement group, or queued tasks and actors that need the same resources each."""

    id: str
    bundles: tuple[Mapping[str, float], ...]
    queued: bool = False


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A waiting request of any pool: its owner, the start of its wait, and what it needs."""

    group: str
    owner: str
    since_s: float
    need: Need


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment.

    Attributes:
        nodes: those that are alive.
        groups: Ray's table of placement groups.
        pending: what other programs wait for, ado's own tasks included.
        waiting: requests of pools that wait.
        actors: all live actors except hosts.
        operators: jobs in which ado runs.
    """

    nodes: tuple[Node, ...] = ()
    groups: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pending: tuple[Pending, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    actors: tuple[Actor, ...] = ()
    operators: frozenset[str] = frozenset()


def need(gpu_model: str, *, hosts: int, threads: int, gpus: int, roce: bool = False) -> Need:
    """Return what a measurement needs, on a node of a GPU type."""
    marks = nodes.marks(gpu_model, roce=roce)
    return Need(hosts, threads, gpus, marks.resources, tuple(marks.labels.items()))


def look() -> Snapshot:
    """Ask Ray for the state of the cluster; takes milliseconds."""
    groups = placement_group_table()
    actors = _actors()
    own = ray.get_runtime_context().get_job_id()
    operators = _operators(actors, own)
    free = _free()
    claims: dict[str, list[Claim]] = collections.defaultdict(list)
    pending, waiting = queued(), []
    for group, row in groups.items():
        name, bundles = parse_name(row["name"]), row["bundles"]
        if row["state"] == "PENDING" and name is None:
            pending.append(Pending(group, tuple(bundles.values())))
        if name is None or row["state"] not in ("PENDING", "CREATED", "PREPARED", "RESCHEDULING"):
            continue
        if name.kind == MARK:
            waiting.append(Waiting(group, name.owner, name.since_s, _need(name, list(bundles.values()), row)))
        for index, node in row["bundles_to_node_id"].items() if row["state"] == "CREATED" else ():
            if name.kind == LEASE:
                claims[node].append(Claim(group, name.owner, name.threads, bundles[index]))
            else:
                # a mark, which its pool removes as soon as Ray has created it: its resources count as free
                _add(free.setdefault(node, {}), bundles[index])
    return Snapshot(
        nodes=tuple(_node(node, free, claims, actors, operators, own) for node in nodes.nodes()),
        groups=groups,
        pending=tuple(pending),
        waiting=tuple(waiting),
        actors=tuple(actor for actor in actors if not actor.module.endswith(HOST)),
        operators=operators,
    )


def _operators(actors: list[Actor], own: str) -> frozenset[str]:
    """Return the jobs in which ado runs. A trial of Ray Tune may exist for a while before there is a dispatcher."""
    return frozenset({own, *(one.job for one in actors if one.module == MANAGER or one.module.endswith(DISPATCHER))})


def _node(
    node: dict[str, Any],
    free: Mapping[str, Mapping[str, float]],
    claims: Mapping[str, list[Claim]],
    actors: list[Actor],
    operators: frozenset[str],
    own: str,
) -> Node:
    identifier = node["NodeID"]
    held = [one for one in actors if one.node == identifier and one.job in operators and not one.module.endswith(HOST)]
    return Node(
        id=identifier,
        total=node["Resources"],
        free=free.get(identifier, {}),
        labels=node.get("Labels", {}),
        operators=sum(one.resources.get("CPU", 0.0) for one in held),
        # another operation may end and free its GPUs
        operator_gpus=sum(one.resources.get("GPU", 0.0) for one in held if one.job == own),
        claims=tuple(claims.get(identifier, ())),
    )


def _need(name: GroupName, bundles: list[Mapping[str, float]], row: Mapping[str, Any]) -> Need:
    """Return what a waiting request needs. Ray's table has no labels, so a GPU type known by label counts as any type."""
    marks = tuple(kind for kind in bundles[0] if kind not in ("CPU", "GPU"))
    return Need(len(bundles), name.threads, int(bundles[0].get("GPU", 0)), marks)


def queued() -> list[Pending]:
    """Return what tasks and actors outside of placement groups wait for, as of a second ago; empty if Ray's format has changed."""
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import ResourceUsageBatchData

        usage = ResourceUsageBatchData.FromString(state._connect_and_get_accessor().get_all_resource_usage())
        shapes = [dict(demand.shape) for demand in usage.resource_load_by_shape.resource_demands]
    except Exception as error:
        logging.getLogger(__name__).debug("the queued tasks of the cluster are unknown: %s", error)
        return []
    plain = [shape for shape in shapes if shape and not any("_group_" in kind for kind in shape)]
    return [Pending(str(sorted(shape.items())), (shape,), queued=True) for shape in plain]


def _add(to: dict[str, float], resources: Mapping[str, float]) -> None:
    for kind, amount in resources.items():
        to[kind] = to.get(kind, 0.0) + amount


def _free() -> dict[str, dict[str, float]]:
    """Return the free resources of each node; Ray has no public function for this."""
    from ray._private.state import available_resources_per_node

    return {node: dict(resources) for node, resources in available_resources_per_node().items()}


def _actors() -> list[Actor]:
    """Return all live actors. ``ray.util.state`` needs a dashboard, so Ray's own table is read; empty if its format has changed."""
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import ActorTableData

        table = state._connect_and_get_accessor().get_actor_table(None, "ALIVE")
        return [_actor(ActorTableData.FromString(row)) for row in table]
    except Exception as error:
        logging.getLogger(__name__).debug("the actors of the cluster are unknown: %s", error)
        return []


def _actor(row: Any) -> Actor:
    module = row.function_descriptor.python_function_descriptor.module_name
    where = row.address.node_id.hex()
    return Actor(row.class_name, module, row.name, row.job_id.hex(), where, plain(row.required_resources))


def plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Return resources under their plain names: in a placement group each appears with and without the bundle's index."""
    found: dict[str, float] = {}
    for kind, amount in resources.items():
        name = kind.partition("_group_")[0]
        found[name] = max(found.get(name, 0.0), amount)
    return found
