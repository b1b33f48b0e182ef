"""Whether a workload fits the nodes of a cluster: hand-written nodes, without a running Ray."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.cluster import nodes as cluster
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = pytest.mark.ray

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 64, "batch_size": 8, "number_gpus": 0}
# as Ray lists a node whose GPU type both Ray and a device plugin name
LABELS = {"nvidia.com/gpu.product": "NVIDIA-TEST"}
RESOURCES = {"CPU": 2.0, "GPU": 4.0, "accelerator_type:TestGPU": 4.0}


def node(resources: dict[str, float], labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a live node, with the keys of ``ray.nodes()`` that are read."""
    return {"Alive": True, "Resources": resources, "Labels": labels or {}}


@pytest.fixture(autouse=True)
def one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cluster consist of one node with two CPUs and four GPUs."""
    monkeypatch.setattr(ray, "nodes", lambda: [node(RESOURCES, LABELS)])


def test_gpus_are_alike_if_all_nodes_with_gpus_have_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two types, a workload that does not fit one of them may fit the other."""
    small, large = ({"GPU": 4.0, f"accelerator_type:{name}": 1.0} for name in ("T4", "A100"))
    none = {"CPU": 4.0}
    for resources, same in (([small, none], True), ([none], True), ([small, large], False)):
        found = [node(one) for one in resources]
        monkeypatch.setattr(ray, "nodes", lambda found=found: found)
        assert cluster.alike() is same


def test_a_gpu_type_that_no_node_has_fails_at_once() -> None:
    """The message lists what the cluster has."""
    with pytest.raises(failures.Broken) as caught:
        cluster.check(parse({**SMALL, "number_gpus": 2, "gpu_model": "H100"}), autoscaling=False)
    assert (
        str(caught.value)
        == "No node has 2 GPUs of type H100; set autoscaling: true, or use what the cluster has: 2 CPUs, 4 GPUs NVIDIA-TEST/TestGPU."
    )


def test_the_resource_roce_is_requested_where_some_nodes_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no node has it, nodes do not differ."""
    plain, rdma = node({"GPU": 4.0}), node({"GPU": 4.0, "RoCE": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [plain, rdma])
    assert cluster.marks("any", roce=True) == cluster.Marks(("RoCE",))
    assert [cluster.marks("any", roce=True).on(one) for one in (plain, rdma)] == [False, True]
    assert cluster.marks("any") == cluster.Marks()
    monkeypatch.setattr(ray, "nodes", lambda: [plain])
    assert cluster.marks("any", roce=True) == cluster.Marks()


def test_more_gpus_than_a_node_has_fail_at_once() -> None:
    """Eight GPUs on one node are impossible where the nodes have four."""
    with pytest.raises(
        failures.Broken,
        match="No node has 8 GPUs; set autoscaling: true, or use what the cluster has: 2 CPUs, 4 GPUs NVIDIA-TEST/TestGPU",
    ):
        cluster.check(parse({**SMALL, "number_gpus": 8}), autoscaling=False)


def test_more_processes_than_cpus_fail_at_once() -> None:
    """Four processes need four CPUs; waiting for two of them would not end."""
    with pytest.raises(
        failures.Broken,
        match="4 processes with 1 CPU each do not fit; set autoscaling: true, or use what the cluster has: 2 CPUs",
    ):
        cluster.check(parse({**SMALL, "number_nodes": 4}), autoscaling=False)


def test_more_cpus_than_a_node_with_gpus_has_fail_at_once() -> None:
    """Two processes of eight CPUs each do not fit together with two GPUs on a node of two CPUs."""
    with pytest.raises(
        failures.Broken,
        match="No node has 2 GPUs and 16 CPUs; set autoscaling: true, or use what the cluster has: 2 CPUs",
    ):
        cluster.check(parse({**SMALL, "number_gpus": 2, "cpus_per_process": 8}), autoscaling=False)


def test_an_autoscaling_cluster_can_get_a_missing_gpu_type() -> None:
    """No workload is rejected there for lack of nodes."""
    cluster.check(parse({**SMALL, "number_gpus": 2, "gpu_model": "H100"}), autoscaling=True)


@pytest.mark.parametrize(
    ("change", "cpus"),
    [({}, 2), ({"number_nodes": 2}, 1), ({"cpus_per_process": 1}, 1), ({"number_gpus": 2, "gpu_model": "TestGPU"}, 1)],
)
def test_processes_share_the_cpus_of_a_node(change: dict[str, Any], cpus: int) -> None:
    """A CPU run takes the whole node, several processes divide it, and GPUs take their share."""
    assert cluster.cpus_per_host(parse({**SMALL, **change})) == cpus


def test_nodes_without_cpus_get_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head with no CPUs and a worker with two: two processes get one CPU each."""
    monkeypatch.setattr(ray, "nodes", lambda: [node({}), node({"CPU": 2.0})])
    workload = parse({**SMALL, "number_nodes": 2})
    assert cluster.cpus_per_host(workload) == 1
    cluster.check(workload, autoscaling=False)


def test_the_cpus_of_a_process_stay_the_same_when_nodes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of one operation can be compared; what the remaining nodes cannot hold is rejected, with what they have."""
    shares, workload = cluster.StableShares(), parse({**SMALL, "number_nodes": 2})
    large, small = node({"CPU": 4.0}), node({"CPU": 2.0})
    for found in ([large, large], [large, large, small], [large]):
        monkeypatch.setattr(ray, "nodes", lambda found=found: found)
        assert shares.cpus_per_host(workload) == 4
    with pytest.raises(
        failures.Broken,
        match="2 processes with 4 CPUs each do not fit; set autoscaling: true, or use what the cluster has: 4 CPUs",
    ):
        cluster.check(workload, shares.cpus_per_host(workload), autoscaling=False)
    assert shares.cpus_per_host(parse({**SMALL, "number_nodes": 2, "cpus_per_process": 1})) == 1


def test_gpus_whose_cpus_have_gone_are_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of the same GPUs with fewer CPUs: the message says what it lacks."""
    monkeypatch.setattr(ray, "nodes", lambda: [node({"CPU": 2.0, "GPU": 2.0})])
    with pytest.raises(
        failures.Broken,
        match="No node has 2 GPUs and 8 CPUs; set autoscaling: true, or use what the cluster has: 2 CPUs, 2 GPUs",
    ):
        cluster.check(parse({**SMALL, "number_gpus": 2}), 8, autoscaling=False)
