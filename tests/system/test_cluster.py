"""Measurements on a real Ray cluster of two nodes on this machine: real gloo training across them, real faults."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ado.modules.actuators.measurement_queue import MeasurementQueue
from ado.schema.point import SpacePoint
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.cluster import nodes
from ado_actuators.sfttrainer.core.cluster.hosts import Shape
from ado_actuators.sfttrainer.core.cluster.pool import Pool
from ado_actuators.sfttrainer.core.host.host import HostSpec
from ado_actuators.sfttrainer.core.workload.validation import parse

from ..processes import limit_s, start_ray, wait_for
from .conftest import unsupervised

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 32, "batch_size": 4, "number_gpus": 0, "max_steps": 5}
# long enough to be disturbed, however fast the machine is
LONG = {"max_steps": 100_000, "stop_after_seconds": 10, "target_ci_percent": 0}


# GPUs that exist for scheduling only
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 2, "resources": {"accelerator_type:TestGPU": 2}}


@pytest.fixture
def cluster(own_home: Path) -> Iterator[Cluster]:
    """Start the first of two nodes with one CPU."""
    two = start_ray(lambda: Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False}))
    ray.init(address=two.address, log_to_driver=False)
    yield two
    ray.shutdown()
    two.shutdown()


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Function that submits one workload to an actuator, and returns a function that waits for the result."""
    queue = MeasurementQueue()
    # limits of waiting are the default ones
    retries = getattr(request, "param", {"max_retries": 1, "retry_backoff_s": 0.1})
    settings = SFTTrainer.parameters_class(state_dir=str(tmp_path), **retries)
    actuator = unsupervised(SFTTrainer(queue=queue, params=settings))
    # queue and dispatcher are on the first node before the second one, which may get lost, exists
    ray.get(actuator._dispatch().__ray_ready__.remote())
    start_ray(lambda: cluster.add_node(**NODE))
    reference = SFTTrainer.catalog().experiments[0].reference

    def start(**change: Any) -> Callable[[float], Any]:
        entity = SpacePoint(entity={**SMALL, **change}).to_entity()
        actuator.submit([entity], reference, "test", 0)
        return lambda timeout_s: queue.get(timeout=limit_s(timeout_s)).measurements[0]

    yield start
    ray.get(actuator._dispatch().cleanup.remote())


def trainers() -> list[psutil.Process]:
    """Return the trainers of Ray's hosts in this test run, without those that are children of this process."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "ppid"]):
        command, environ = process.info["cmdline"] or [], process.info["environ"] or {}
        if "core/trainer" in " ".join(command) and environ.get("HOME") == os.environ["HOME"]:
            found.append(process)
    return [process for process in found if process.info["ppid"] != os.getpid()]


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def measuring(state_dir: Path, hosts: int = 1) -> list[psutil.Process]:
    """Return the trainers once this number of hosts has begun a measurement, that is has a run directory."""
    runs = state_dir / "runs"
    found = trainers()
    return found if runs.exists() and len(list(runs.iterdir())) == len(found) == hosts else []


def values(result: Any) -> dict[str, Any]:
    """Return the values of a valid result."""
    return {one.property.targetProperty.identifier: one.value for one in result.measurements}


def test_two_nodes_train_together(submit: Callable[..., Any]) -> None:
    """One process a node, DDP over gloo: ranks agree on the steps, and global tokens are the sum over ranks."""
    result = submit(number_nodes=2)(200)
    got = values(result)
    assert got["is_valid"] == 1
    assert result.metadata["facts"]["wrapped_by"] == "DistributedDataParallel"
    assert len(result.metadata["hosts"]) == 2
    assert got["train_tokens_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 4 * 32)


def test_hosts_with_gpus_are_spread_over_nodes_of_their_type(submit: Callable[..., Any], tmp_path: Path) -> None:
    """Two nodes with one GPU each of a type that Ray names: one host on either; three nodes of it are refused at once."""
    spec = HostSpec("current", None, processes=1, gpus=1, threads=1, state_dir=str(tmp_path))

    async def scenario() -> set[str]:
        pool = Pool(60)
        lease = await pool.acquire(Shape(host=spec, nodes=2, cpus=1, gpu_model="TestGPU"), 60)
        placed = set(placement_group_table(lease.group)["bundles_to_node_id"].values())
        pool.close()
        return placed

    assert len(asyncio.run(scenario())) == 2
    asked = parse({**SMALL, "number_gpus": 3, "number_nodes": 3, "batch_size": 3, "gpu_model": "TestGPU"})
    with pytest.raises(
        failures.Broken,
        match="No 3 nodes have 1 GPUs of type TestGPU; set autoscaling: true, or use what the cluster has: 1 CPUs, 2 GPUs",
    ):
        nodes.check(asked, autoscaling=False)


def processes_of(name: str) -> list[psutil.Process]:
    """Return the Ray workers of this test run whose actor has this name."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command, environ = " ".join(process.info["cmdline"] or []), process.info["environ"] or {}
        if f"ray::{name}" in command and environ.get("HOME") == os.environ["HOME"]:
            found.append(process)
    return found


def test_a_host_that_stops_answering_is_lost(submit: Callable[..., Any]) -> None:
    """Its process stopped (SIGSTOP), so that no limit of its own can end the measurement: repeated by another one."""
    answer = submit(max_steps=60, target_ci_percent=0)
    (trainer,) = wait_for(lambda: len(found := trainers()) == 1 and found, 90)
    host = trainer.parent()
    assert host is not None
    host.send_signal(signal.SIGSTOP)
    result = answer(250)
    assert (values(result)["is_valid"], result.metadata["attempts"]) == (1, 2)
    assert wait_for(lambda: not alive(trainer) and not alive(host), 30)


def test_a_killed_dispatcher_is_started_again(submit: Callable[..., Any], tmp_path: Path) -> None:
    """What it had not answered is asked again though it held every CPU, and later requests are measured; nothing stays reserved."""
    answer = submit(number_nodes=2, **LONG)
    both = wait_for(lambda: measuring(tmp_path, hosts=2), 90)
    (dispatcher,) = processes_of("Dispatcher")
    dispatcher.kill()
    assert values(answer(150))["is_valid"] == 1
    assert not any(alive(trainer) for trainer in both)
    assert values(submit(number_nodes=2, seed=7)(150))["is_valid"] == 1
    assert [group["state"] for group in placement_group_table().values()].count("CREATED") == 1


def test_a_dispatcher_is_restarted_any_number_of_times_on_its_node(submit: Callable[..., Any]) -> None:
    """Killed five times, it is always a child of the same node's raylet, and measures."""
    (dispatcher,) = processes_of("Dispatcher")
    raylet = dispatcher.ppid()
    killed: set[psutil.Process] = set()
    for _ in range(5):
        dispatcher.kill()
        killed.add(dispatcher)
        (dispatcher,) = wait_for(lambda: set(processes_of("Dispatcher")) - killed, 60)
        assert dispatcher.ppid() == raylet
    assert values(submit()(150))["is_valid"] == 1


def test_other_measurements_go_on(submit: Callable[..., Any], tmp_path: Path) -> None:
    """Of two that train side by side one is killed and repeated; the other does not notice."""
    answers = [submit(cpus_per_process=1, seed=seed, **LONG) for seed in (1, 2)]
    both = wait_for(lambda: measuring(tmp_path, hosts=2), 90)
    assert both
    both[0].send_signal(signal.SIGKILL)
    results = [answer(150) for answer in answers]
    assert [values(result)["is_valid"] for result in results] == [1, 1]
    assert sorted(result.metadata["attempts"] for result in results) == [1, 2]
    assert wait_for(lambda: not list((Path(results[0].metadata["log"]).parents[1] / "runs").iterdir()), 15)


def test_a_killed_rank_is_repeated_in_fresh_processes(submit: Callable[..., Any], tmp_path: Path) -> None:
    """One of two trainers killed: noticed at once, repeated, measured at the second attempt."""
    answer = submit(number_nodes=2, **LONG)
    both = wait_for(lambda: measuring(tmp_path, hosts=2), 90)
    assert both
    both[1].send_signal(signal.SIGKILL)
    assert wait_for(lambda: not any(alive(p) for p in both), 15)
    result = answer(150)
    assert (values(result)["is_valid"], result.metadata["attempts"]) == (1, 2)


@pytest.mark.parametrize("submit", [{}], ids=["default configuration"], indirect=True)
def test_a_node_lost_in_mid_measurement(cluster: Cluster, submit: Callable[..., Any]) -> None:
    """A node that trains vanishes: what it measured is repeated, what waited for it waits, and both fail, as what is left is too small."""
    long = {"number_nodes": 2, "max_steps": 2000, "target_ci_percent": 0, "stop_after_seconds": 600}
    answers = [submit(**long, seed=seed) for seed in (1, 2)]
    assert wait_for(lambda: len(trainers()) == 2, 90)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    for answer in answers:
        assert answer(200).reason.startswith(
            "2 processes with 1 CPU each do not fit; set autoscaling: true, or use what the cluster has: 1 CPUs"
        )
    assert trainers() == []


def test_an_impossible_combination_reaches_no_node(submit: Callable[..., Any]) -> None:
    """A finished measurement, is_valid 0, with the rule in the metadata; no trainer is started for it."""
    result = submit(batch_size=3, number_nodes=2)(30)
    assert values(result) == {"is_valid": 0, "failure": "invalid_configuration"}
    assert result.metadata["reason"] == "batch_size 3 is not divisible by 2 processes."
    assert trainers() == []


def test_a_killed_host_is_repeated(submit: Callable[..., Any]) -> None:
    """The Ray worker that holds the trainer is killed: its trainer ends too, and the measurement is repeated."""
    answer = submit(max_steps=60, target_ci_percent=0)
    (trainer,) = wait_for(lambda: len(found := trainers()) == 1 and found, 90)
    parent = trainer.parent()
    assert parent is not None
    parent.kill()
    assert wait_for(lambda: not alive(trainer), 15)
    result = answer(150)
    assert (values(result)["is_valid"], result.metadata["attempts"]) == (1, 2)


def test_a_node_that_joins_late_beside_a_head_without_cpus(own_home: Path, tmp_path: Path) -> None:
    """With autoscaling two processes wait for a node, and each trains with one of its two CPUs."""
    growing = start_ray(
        lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    )
    ray.init(address=growing.address, log_to_driver=False)
    try:
        queue = MeasurementQueue()
        settings = SFTTrainer.parameters_class(state_dir=str(tmp_path), autoscaling=True)
        actuator = unsupervised(SFTTrainer(queue=queue, params=settings))
        entity = SpacePoint(entity={**SMALL, "number_nodes": 2}).to_entity()
        actuator.submit([entity], SFTTrainer.catalog().experiments[0].reference, "test", 0)
        # an autoscaler sees what is missing
        pending = wait_for(lambda: [g for g in placement_group_table().values() if g["state"] == "PENDING"], 60)
        assert [bundle["CPU"] for bundle in pending[0]["bundles"].values()] == [1.0, 1.0]
        start_ray(lambda: growing.add_node(num_cpus=2))
        result = queue.get(timeout=limit_s(150)).measurements[0]
        assert values(result)["is_valid"] == 1
        assert (result.metadata["facts"]["cpu_threads"], len(result.metadata["hosts"])) == (1, 2)
        ray.get(actuator._dispatch().cleanup.remote())
    finally:
        ray.shutdown()
        growing.shutdown()
