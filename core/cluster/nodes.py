"""The resources of the nodes of the Ray cluster, and whether a workload fits them."""

from __future__ import annotations

import dataclasses
from typing import Any

import ray

from .. import failures
from ..workload.fields import Workload

ACCELERATOR = "accelerator_type:"
# node labels that name a GPU type: Ray's own, and that of NVIDIA's device plugin for Kubernetes
GPU_LABELS = ("ray.io/accelerator-type", "nvidia.com/gpu.product")
# custom resource of the nodes with RDMA, for clusters in which not all nodes have it
ROCE = "RoCE"
# requested amount of a resource that only marks nodes, small enough for any number of measurements
MARK = 0.001


@dataclasses.dataclass(frozen=True)
class Marks:
    """Resources and labels that a node needs for a workload, besides CPUs and GPUs.

    Attributes:
        resources: names of resources the nodes have.
        labels: labels of the nodes, with their values.
    """

    resources: tuple[str, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)

    def on(self, node: dict[str, Any]) -> bool:
        """Whether a node has all of these resources and labels."""
        found = node.get("Labels", {})
        return all(name in node["Resources"] for name in self.resources) and all(
            found.get(name) == value for name, value in self.labels.items()
        )


def nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, each with ``Resources`` and ``Labels``."""
    return [node for node in ray.nodes() if node["Alive"]]


def check(workload: Workload, cpus: int | None = None, *, autoscaling: bool) -> None:
    """Reject a workload that this cluster can never run.

    Args:
        workload: the workload.
        cpus: CPUs of each host; None: those of the nodes that the cluster has now.
        autoscaling: whether nodes may be added, so that nothing is rejected.

    Raises:
        failures.Broken: with what the cluster has.
    """
    if autoscaling:
        return
    cpus = cpus_per_host(workload) if cpus is None else cpus
    if workload.number_gpus == 0:
        # processes share nodes
        places = sum(int(node["Resources"].get("CPU", 0) // cpus) for node in nodes())
        if places < workload.number_nodes:
            unit = "CPU" if cpus == 1 else "CPUs"
            one = f"1 process with {cpus} {unit} does"
            several = f"{workload.number_nodes} processes with {cpus} {unit} each do"
            raise failures.Broken(f"{several if workload.number_nodes > 1 else one} not fit; {offer()}")
        return
    with_gpus = [node for node in nodes() if _fits(node, workload)]
    fitting = [node for node in with_gpus if node["Resources"].get("CPU", 0) >= cpus]
    if len(fitting) < workload.number_nodes:
        kind = "" if workload.gpu_model == "any" else f" of type {workload.gpu_model}"
        kind += f" and {cpus} CPUs" if workload.cpus_per_process or len(with_gpus) >= workload.number_nodes else ""
        kind += " and RoCE" if workload.enable_roce else ""
        number = f"{workload.number_nodes} nodes have" if workload.number_nodes > 1 else "node has"
        raise failures.Broken(f"No {number} {workload.gpus_per_node} GPUs{kind}; {offer()}")


def cpus_per_host(workload: Workload) -> int:
    """Return the CPUs of each host: what the workload asks for, or an even share of a node.

    On CPU the hosts of a measurement share the nodes; with GPUs a host takes the share of its GPUs.
    """
    processes = max(1, workload.gpus_per_node)
    if workload.cpus_per_process:
        return workload.cpus_per_process * processes
    alive = nodes()
    if workload.number_gpus == 0:
        # nodes without CPUs, such as the head of many clusters, run no process
        with_cpus = [node["Resources"]["CPU"] for node in alive if node["Resources"].get("CPU", 0) >= 1]
        smallest = min(with_cpus, default=1)
        sharing = -(-workload.number_nodes // max(1, len(with_cpus)))
        return max(1, int(smallest // sharing))
    shares = [node["Resources"].get("CPU", 1) / node["Resources"]["GPU"] for node in alive if _fits(node, workload)]
    return max(1, int(min(shares, default=1) * processes))


class StableShares:
    """CPUs of each host that stay the same while nodes come and go, so that the results of an operation can be compared."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], int] = {}

    def cpus_per_host(self, workload: Workload) -> int:
        """Return the CPUs of each host, as at the first call for a workload on as many nodes and GPUs of the same type."""
        now = cpus_per_host(workload)
        if workload.cpus_per_process:
            return now
        key = (workload.number_nodes, workload.gpus_per_node, workload.gpu_model, workload.enable_roce)
        return self._found.setdefault(key, now)


def marks(gpu_model: str, *, roce: bool = False) -> Marks:
    """Return the marks of the nodes with a GPU type and, with ``roce``, with RDMA if the cluster marks such nodes.

    A type is marked by Ray's accelerator type, by a resource of its name, or by a node label; where no node has the type
    it is Ray's accelerator type, which an autoscaler may know.
    """
    alive = nodes()
    names = {name for node in alive for name in node["Resources"]}
    special = (ROCE,) if roce and ROCE in names else ()
    if gpu_model == "any":
        return Marks(special)
    for resource in (ACCELERATOR + gpu_model, gpu_model):
        if resource in names:
            return Marks((resource, *special))
    for label in GPU_LABELS:
        if any(node.get("Labels", {}).get(label) == gpu_model for node in alive):
            return Marks(special, {label: gpu_model})
    return Marks((ACCELERATOR + gpu_model, *special))


def alike() -> bool:
    """Whether all GPUs of the cluster are of one type, so that a workload that does not fit one of them fits none."""
    return len({_types(node) for node in nodes() if node["Resources"].get("GPU")}) <= 1


def _types(node: dict[str, Any]) -> tuple[str, ...]:
    named = {name.removeprefix(ACCELERATOR) for name in node["Resources"] if name.startswith(ACCELERATOR)}
    return tuple(sorted(named | {value for name, value in node.get("Labels", {}).items() if name in GPU_LABELS}))


def offer() -> str:
    """Return the remedy for a workload that needs more than there is, with the resources of the cluster."""
    found = []
    for node in nodes():
        resources = node["Resources"]
        gpus = f", {resources['GPU']:g} GPUs {'/'.join(_types(node))}".rstrip() if resources.get("GPU") else ""
        found.append(f"{resources.get('CPU', 0):g} CPUs{gpus}")
    return (
        "set autoscaling: true, or use what the cluster has: "
        + "; ".join(found[:4])
        + ("; ..." if len(found) > 4 else "")
        + "."
    )


def _fits(node: dict[str, Any], workload: Workload) -> bool:
    enough = node["Resources"].get("GPU", 0) >= max(1, workload.gpus_per_node)
    return bool(enough and marks(workload.gpu_model, roce=workload.enable_roce).on(node))
