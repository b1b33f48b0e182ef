"""Leases of hosts on a real Ray instance with two CPUs and GPUs that exist for scheduling only."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.cluster import nodes as cluster
from ado_actuators.sfttrainer.core.cluster import patience, snapshot
from ado_actuators.sfttrainer.core.cluster import pool as pool_module
from ado_actuators.sfttrainer.core.cluster.hosts import Shape
from ado_actuators.sfttrainer.core.cluster.pool import Pool
from ado_actuators.sfttrainer.core.cluster.snapshot import Snapshot
from ado_actuators.sfttrainer.core.host.host import HostSpec
from ado_actuators.sfttrainer.core.workload.validation import parse

from ...processes import start_ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

SMALL = {"model_name": "tiny-llama-5m", "model_max_length": 64, "batch_size": 8, "number_gpus": 0}


@pytest.fixture(scope="module", autouse=True)
def ray_instance(own_home: Path) -> Iterator[None]:
    """Start Ray with two CPUs, four GPUs of a type and no dashboard; shut it down afterwards."""
    start_ray(
        lambda: ray.init(
            num_cpus=2,
            num_gpus=4,
            resources={"accelerator_type:TestGPU": 4},
            labels={"nvidia.com/gpu.product": "NVIDIA-TEST"},
            include_dashboard=False,
            log_to_driver=False,
        )
    )
    yield
    ray.shutdown()


def shape(tmp_path: Path, cpus: int, nodes: int = 1, name: str = "current") -> Shape:
    """Return a shape of CPU hosts."""
    spec = HostSpec(name, None, processes=1, gpus=0, threads=cpus, state_dir=str(tmp_path))
    return Shape(host=spec, nodes=nodes, cpus=cpus, gpu_model="any")


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run a scenario in an event loop."""
    return asyncio.run(scenario)


def test_leases_that_fit_run_at_the_same_time_and_the_others_wait(tmp_path: Path) -> None:
    """Four leases of one CPU on two CPUs: never more than two at a time, all served, by two hosts."""

    async def scenario() -> tuple[int, int]:
        pool, held, most, hosts = Pool(60), 0, 0, set()

        async def use() -> None:
            nonlocal held, most
            lease = await pool.acquire(shape(tmp_path, 1), 60)
            held += 1
            most = max(most, held)
            hosts.add(id(lease))
            await asyncio.sleep(1.0)
            held -= 1
            pool.give_back(lease, keep=True)

        await asyncio.gather(*(use() for _ in range(4)))
        pool.close()
        return most, len(hosts)

    assert run(scenario()) == (2, 2)


@pytest.mark.parametrize("asked", [None, "7"])
def test_hosts_have_the_priority_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    """Not Ray's niceness of 15, which slows training on a busy machine; a cluster that sets the variable is left alone."""
    if asked is not None:
        monkeypatch.setenv("RAY_worker_niceness", asked)

    async def scenario() -> int:
        pool = Pool(60)
        lease = await pool.acquire(shape(tmp_path, 1), 60)
        await lease.hosts[0].ping.remote()
        started = psutil.Process().children(recursive=True)
        found = [one.nice() for one in started if "".join(one.cmdline()).startswith("ray::HostActor")]
        pool.give_back(lease, keep=False)
        pool.close()
        return max(found)

    assert run(scenario()) == psutil.Process().nice() + (15 if asked else 0)


def test_idle_hosts_are_ended_for_another_shape(tmp_path: Path) -> None:
    """A host that holds every CPU and is idle does not keep another shape waiting."""

    async def scenario() -> float:
        pool = Pool(600)
        first = await pool.acquire(shape(tmp_path, 2), 60)
        pool.give_back(first, keep=True)
        begin = time.monotonic()
        second = await pool.acquire(shape(tmp_path, 1), 60)
        pool.give_back(second, keep=False)
        pool.close()
        return time.monotonic() - begin

    assert run(scenario()) < 20


def test_idle_hosts_are_ended_after_idle_timeout_s(tmp_path: Path) -> None:
    """After idle_timeout_s the CPUs are free again."""

    async def scenario() -> float:
        pool = Pool(1.0)
        pool.give_back(await pool.acquire(shape(tmp_path, 2), 60), keep=True)
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        return ray.available_resources().get("CPU", 0)

    assert run(scenario()) == 2


def test_idle_hosts_are_ended_for_another_pool(tmp_path: Path) -> None:
    """A study with two actuators has two pools: the idle host of one does not keep the other waiting."""

    async def scenario() -> float:
        one, other = Pool(600), Pool(600)
        one.give_back(await one.acquire(shape(tmp_path, 2), 60), keep=True)
        begin = time.monotonic()
        other.give_back(await other.acquire(shape(tmp_path, 2), 60), keep=False)
        one.close()
        return time.monotonic() - begin

    assert run(scenario()) < 20


def test_waiting_ends_after_pending_timeout_s(tmp_path: Path) -> None:
    """The message says what was needed and what holds it."""

    async def scenario() -> str:
        pool = Pool(600)
        lease = await pool.acquire(shape(tmp_path, 2), 60)
        with pytest.raises(failures.Broken) as caught:
            await pool.acquire(shape(tmp_path, 1), 1.0)
        pool.give_back(lease, keep=False)
        return str(caught.value)

    expected = "pending_timeout_s 1 s have passed without 1 CPU: 0 of 2 CPUs free, held by other measurements of this operation (2 CPUs)."
    assert run(scenario()) == expected


async def pending() -> int:
    """Return how many placement groups wait for resources."""
    groups = await asyncio.to_thread(placement_group_table)
    return sum(group["state"] == "PENDING" for group in groups.values())


async def free_cpus(wanted: float) -> float:
    """Return the free CPUs once they are ``wanted``, or after half a minute."""
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return ray.available_resources().get("CPU", 0)


def test_three_hundred_requests_at_once_are_served_in_order(tmp_path: Path) -> None:
    """They ask Ray for one placement group at a time, and use the hosts of those before them."""

    async def scenario() -> tuple[list[int], int, int]:
        pool, served, hosts = Pool(60), list[int](), set[int]()

        async def use(number: int) -> None:
            lease = await pool.acquire(shape(tmp_path, 2), 120)
            served.append(number)
            hosts.add(id(lease))
            await asyncio.sleep(0)
            pool.give_back(lease, keep=True)

        first = await pool.acquire(shape(tmp_path, 2), 120)
        waiting = [asyncio.create_task(use(number)) for number in range(300)]
        await asyncio.sleep(3.0)
        asked = await pending()
        pool.give_back(first, keep=True)
        await asyncio.gather(*waiting)
        pool.close()
        return served, len(hosts), asked

    assert run(scenario()) == (list(range(300)), 1, 1)


def test_a_host_that_died_while_idle_is_not_handed_out(tmp_path: Path) -> None:
    """Its lease is ended, and the request gets a new one without a second attempt."""

    async def scenario() -> bool:
        pool = Pool(600)
        first = await pool.acquire(shape(tmp_path, 2), 60)
        assert await first.answers()
        pool.give_back(first, keep=True)
        ray.kill(first.hosts[0])
        while await first.answers():  # Ray kills an actor some time after the call
            await asyncio.sleep(0.05)
        second = await pool.acquire(shape(tmp_path, 2), 60)
        answers = second is not first and await second.answers()
        pool.close()
        return answers

    assert run(scenario())


def test_a_cancelled_wait_leaves_neither_a_group_nor_a_lease(tmp_path: Path) -> None:
    """No placement group goes on waiting, and all CPUs are free again."""

    async def scenario() -> tuple[int, float]:
        pool = Pool(600)
        lease = await pool.acquire(shape(tmp_path, 2), 60)
        waiting = asyncio.create_task(pool.acquire(shape(tmp_path, 1), 60))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        still = await pending()
        pool.give_back(lease, keep=False)
        return still, await free_cpus(2)

    assert run(scenario()) == (0, 2)


def test_the_lease_of_a_cancelled_request_goes_to_the_next(tmp_path: Path) -> None:
    """A wait that is cancelled in the moment it is over does not keep the lease."""

    async def scenario() -> bool:
        pool = Pool(600)
        lease = await pool.acquire(shape(tmp_path, 2), 60)
        cancelled, other = (asyncio.create_task(pool.acquire(shape(tmp_path, 2), 60)) for _ in range(2))
        await asyncio.sleep(0)
        pool.give_back(lease, keep=True)
        cancelled.cancel()
        got = await asyncio.wait_for(other, 10)
        pool.close()
        return got is lease

    assert run(scenario())


def test_closing_ends_every_wait(tmp_path: Path) -> None:
    """A request that waits for CPUs fails at once when the operation ends."""

    async def scenario() -> tuple[str, float]:
        pool = Pool(600)
        await pool.acquire(shape(tmp_path, 2), 60)
        waiting = asyncio.create_task(pool.acquire(shape(tmp_path, 1), 600))
        await asyncio.sleep(0.5)
        pool.close()
        (error,) = await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 10)
        return str(error), await free_cpus(2)

    assert run(scenario()) == ("The operation has ended.", 2)


def test_no_more_idle_hosts_are_ended_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for one CPU ends one of two idle hosts that hold one each."""
    # however long Ray takes here to free what a host held that may still have been starting
    monkeypatch.setattr(pool_module, "FREEING_S", 60.0)

    async def scenario() -> int:
        pool = Pool(600)
        for lease in [await pool.acquire(shape(tmp_path, 1), 60) for _ in range(2)]:
            pool.give_back(lease, keep=True)
        await pool.acquire(shape(tmp_path, 1, name="another"), 60)
        left = len(pool._idle)
        pool.close()
        return left

    assert run(scenario()) == 1


def test_a_shape_that_has_waited_for_long_is_served(tmp_path: Path, later: Callable[[float], None]) -> None:
    """Requests for one shape keep coming; its lease is ended once another shape has waited for ``PATIENCE_S``."""

    async def scenario() -> list[str]:
        leases, served = Pool(600), []

        async def use(name: str) -> None:
            lease = await leases.acquire(shape(tmp_path, 2, name=name), 100)
            served.append(name)
            await asyncio.sleep(0.5)
            leases.give_back(lease, keep=True)

        first = [asyncio.create_task(use("first")) for _ in range(12)]
        await asyncio.sleep(0.1)
        second = asyncio.create_task(use("second"))
        await asyncio.sleep(1.5)
        assert "second" not in served
        later(patience.PATIENCE_S)
        await asyncio.gather(second, *first)
        leases.close()
        return served

    served = run(scenario())
    assert sorted(served) == ["first"] * 12 + ["second"]
    assert served[-1] == "first"


def test_a_shape_with_gpus_is_served_among_shapes_without(tmp_path: Path, later: Callable[[float], None]) -> None:
    """Its GPUs are free, and the CPUs that it needs are held by a shape without GPUs; otherwise it would wait for all twelve requests."""
    with_gpus = dataclasses.replace(shape(tmp_path, 2), host=dataclasses.replace(shape(tmp_path, 2).host, gpus=1))

    async def scenario() -> list[int]:
        leases, served = Pool(600), []

        async def use(wanted: Shape) -> None:
            lease = await leases.acquire(wanted, 100)
            served.append(wanted.host.gpus)
            await asyncio.sleep(0.5)
            leases.give_back(lease, keep=True)

        first = [asyncio.create_task(use(shape(tmp_path, 2))) for _ in range(12)]
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(use(with_gpus))
        await asyncio.sleep(1.5)
        later(patience.PATIENCE_S)
        await asyncio.gather(waiting, *first)
        leases.close()
        return served

    assert run(scenario())[-1] == 0


def test_two_shapes_that_wait_do_not_block_each_other(tmp_path: Path) -> None:
    """Ray creates the group that shows the wait of one, when the CPUs become free, before the one that the other asks for."""

    async def scenario() -> int:
        pool = Pool(600)
        lease = await pool.acquire(shape(tmp_path, 2), 60)
        waiting = {asyncio.create_task(pool.acquire(shape(tmp_path, 2, name=name), 60)) for name in ("one", "other")}
        while await pending() < 2:
            await asyncio.sleep(0.1)
        pool.give_back(lease, keep=False)
        served = 0
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                pool.give_back(one.result(), keep=False)
                served += 1
        pool.close()
        return served

    assert run(scenario()) == 2


def test_a_slow_ray_is_given_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a placement group may take longer than a pool allows at first; here its making shows 4 s later."""
    seen_s = dict[str, float]()

    def slow() -> Snapshot:
        seen = snapshot.look()
        for group in seen.groups:
            seen_s.setdefault(group, time.monotonic())
        late = {group for group, first_s in seen_s.items() if time.monotonic() - first_s < 4.0}
        hidden = {group: {**row, "state": "PENDING"} for group, row in seen.groups.items() if group in late}
        return dataclasses.replace(seen, groups={**seen.groups, **hidden})

    monkeypatch.setattr(pool_module, "look", slow)

    async def scenario() -> bool:
        pool = Pool(600)
        answers = await (await pool.acquire(shape(tmp_path, 1), 60)).answers()
        pool.close()
        return answers

    assert run(scenario())


def test_a_closed_pool_starts_nothing(tmp_path: Path) -> None:
    """A request after the end of the operation gets no hosts."""

    async def scenario() -> str:
        pool = Pool(600)
        pool.close()
        with pytest.raises(failures.Broken) as caught:
            await pool.acquire(shape(tmp_path, 1), 5)
        return str(caught.value)

    assert run(scenario()) == "The operation has ended."


def test_a_gpu_type_that_only_a_node_label_names(tmp_path: Path) -> None:
    """Hosts are placed by the label, and never on a node that lacks it."""

    async def scenario() -> tuple[str, str]:
        pool = Pool(60)
        spec = HostSpec("current", None, processes=1, gpus=1, threads=1, state_dir=str(tmp_path))
        lease = await pool.acquire(Shape(host=spec, nodes=1, cpus=1, gpu_model="NVIDIA-TEST"), 60)
        group = placement_group_table(lease.group)
        pool.close()
        (node,) = [node for node in ray.nodes() if node["NodeID"] == group["bundles_to_node_id"][0]]
        with pytest.raises(failures.Broken) as caught:
            cluster.check(parse({**SMALL, "number_gpus": 1, "gpu_model": "NVIDIA-OTHER"}), autoscaling=False)
        return node["Labels"]["nvidia.com/gpu.product"], str(caught.value)

    message = (
        "No node has 1 GPUs of type NVIDIA-OTHER; set autoscaling: true, or use what the cluster has: "
        "2 CPUs, 4 GPUs NVIDIA-TEST/TestGPU."
    )
    assert run(scenario()) == ("NVIDIA-TEST", message)


@pytest.mark.timeout(60)
def test_a_wait_ends_when_the_cluster_can_no_longer_hold_it(tmp_path: Path) -> None:
    """The check that passed at first fails while waiting, as after the loss of a node."""

    async def scenario() -> float:
        pool = Pool(600)
        await pool.acquire(shape(tmp_path, 2), 60)
        begin = time.monotonic()

        def check() -> None:
            if time.monotonic() - begin > 1:
                raise failures.Broken("the node is gone")

        with pytest.raises(failures.Broken, match="the node is gone"):
            await pool.acquire(shape(tmp_path, 1), 3600, check)
        took = time.monotonic() - begin
        pool.close()
        return took

    assert run(scenario()) < 20


@pytest.mark.timeout(60)
def test_a_group_that_no_node_can_hold_ends_no_idle_host(tmp_path: Path) -> None:
    """Somebody's placement group of 100 CPUs stays pending, and the idle trainer stays."""

    async def scenario() -> int:
        pool = Pool(600)
        pool.give_back(await pool.acquire(shape(tmp_path, 2), 60), keep=True)
        group = ray.util.placement_group([{"CPU": 100}])
        await asyncio.sleep(4)
        left = len(pool._idle)
        ray.util.remove_placement_group(group)
        pool.close()
        return left

    assert run(scenario()) == 1
