"""Leases beside ado's operators, other pools and other programs, on a real Ray instance with two CPUs; every wait has an end."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.cluster import operator_waits, patience, tasks
from ado_actuators.sfttrainer.core.cluster import pool as pool_module
from ado_actuators.sfttrainer.core.cluster.hosts import Shape
from ado_actuators.sfttrainer.core.cluster.pool import Pool
from ado_actuators.sfttrainer.core.host.host import HostSpec

from ...processes import start_ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

SERVED_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def ray_instance(own_home: Path) -> Iterator[None]:
    """Start Ray with two CPUs and two GPUs that exist for scheduling only; shut it down afterwards."""
    start_ray(lambda: ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False))
    yield
    ray.shutdown()


@pytest.fixture
def shape(tmp_path: Path) -> Callable[..., Shape]:
    """Give a function that returns shapes; shapes of other names are different ones."""

    def make(cpus: int, gpus: int = 0, name: str = "current") -> Shape:
        spec = HostSpec(name, None, processes=1, gpus=gpus, threads=cpus, state_dir=str(tmp_path))
        return Shape(host=spec, nodes=1, cpus=cpus, gpu_model="any")

    return make


@ray.remote
class Trial:
    """An actor of the operation that waits for a measurement, as Ray Tune's trials do."""

    def ping(self) -> None:
        """Answer once the actor has what it asked for."""


@ray.remote
def hold(path: str) -> None:
    """Hold what the task was given until there is a file."""
    while not Path(path).exists():
        time.sleep(0.1)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[float], Callable[[], None]]]:
    """Give a function that has another program hold CPUs, and gives one that ends it."""
    done = tmp_path / "done"
    started = []

    def start(cpus: float) -> Callable[[], None]:
        started.append(hold.options(num_cpus=cpus).remote(str(done)))
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0.0) > 2 - cpus and time.monotonic() < deadline:
            time.sleep(0.1)
        # Ray's table of tasks is a second old
        while not any(task.runs and task.name == "hold" for task in tasks.table()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return done.touch

    yield start
    done.touch()
    ray.get(started)


@pytest.fixture
def trial() -> Iterator[Callable[..., None]]:
    """Give a function that starts a trial."""
    started = []

    def start(**options: float) -> None:
        started.append(Trial.options(**options).remote())  # type: ignore[attr-defined]
        ray.get(started[-1].ping.remote())

    yield start
    for one in started:
        ray.kill(one)


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run a scenario in an event loop."""
    return asyncio.run(scenario)


@pytest.mark.parametrize("kind", ["actor", "placement group", "task"])
def test_a_trial_that_waits_for_its_own_cpu_is_reported(
    holder: Callable[[float], Callable[[], None]], later: Callable[[float], None], kind: str
) -> None:
    """It has asked for no measurement yet; the message says what it needs and what holds it, once, and when the wait is over."""
    release = holder(2.0)
    told: list[tuple[str, bool]] = []
    waits = operator_waits.OperatorWaits(lambda text, lasts: told.append((text, lasts)))
    deadline = time.monotonic() + SERVED_S
    # Ray's table of tasks is a second old
    while operator_waits.own_requests() and time.monotonic() < deadline:
        time.sleep(0.1)
    waits.check()
    assert told == []
    if kind == "actor":
        waiting = Trial.options(num_cpus=1).remote()  # type: ignore[attr-defined]
    else:
        waiting = placement_group([{"CPU": 1}]) if kind == "placement group" else hold.remote("/")
    try:
        while not operator_waits.own_requests() and time.monotonic() < deadline:
            time.sleep(0.1)
        waits.check()
        assert told == []
        later(31)
        while not told and time.monotonic() < deadline:
            waits.check()
            time.sleep(0.1)
        ((text, lasts),) = told
        assert re.fullmatch(
            r"ado's operator has waited 3\d s for 1 CPU: 0 of 2 CPUs free, held by task hold \(2 CPUs\)\. "
            r"It goes on as soon as they are free; end the other programs that hold them\.",
            text,
        )
        assert lasts
        waits.check()
        assert len(told) == 1
        release()
        while len(told) < 2 and time.monotonic() < deadline:
            waits.check()
            time.sleep(0.1)
        assert told[1:] == [("ado's operator waits no longer.", False)]
    finally:
        if kind == "actor":
            ray.kill(waiting)
        elif kind == "placement group":
            remove_placement_group(waiting)


async def held_cpus(pool: Pool, wanted: Shape) -> float:
    """Return the CPUs that a lease holds in Ray; close the pool."""
    lease = await pool.acquire(wanted, SERVED_S)
    assert await lease.answers()
    row = await asyncio.to_thread(ray.util.placement_group_table, lease.group)
    pool.close()
    return sum(bundle.get("CPU", 0.0) for bundle in row["bundles"].values())


async def made(group: PlacementGroup, timeout_s: float = SERVED_S) -> bool:
    """Whether Ray makes a placement group in time; remove it."""
    ready = await asyncio.to_thread(group.wait, timeout_s)
    remove_placement_group(group)
    return bool(ready)


@pytest.mark.parametrize(("trials", "reserved"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_a_measurement_on_all_cpus_beside_trials(
    trial: Callable[..., None], shape: Callable[..., Shape], trials: int, reserved: float
) -> None:
    """Trials wait for the measurement, so it may use their CPUs; a trial finds one free where there is none yet."""
    for _ in range(trials):
        trial(num_cpus=1)
    assert run(held_cpus(Pool(600), shape(2))) == reserved


def test_all_gpus_beside_a_trial(trial: Callable[..., None], shape: Callable[..., Shape]) -> None:
    """All GPUs of a node come with all of its CPUs, of which a trial holds one."""
    trial(num_cpus=1)
    assert run(held_cpus(Pool(600), shape(2, gpus=2))) == 1.0


def test_a_trial_starts_beside_a_trainer(trial: Callable[..., None], shape: Callable[..., Shape]) -> None:
    """The idle trainer of a measurement on all CPUs stays when the next trial starts."""

    async def scenario() -> int:
        pool = Pool(600)
        pool.give_back(await pool.acquire(shape(2), SERVED_S), keep=True)
        await asyncio.to_thread(trial, num_cpus=1)
        await asyncio.sleep(1.5)
        left = len(pool._idle)
        pool.close()
        return left

    assert run(scenario()) == 1


def test_two_pools_never_measure_on_the_same_cpus(shape: Callable[..., Shape]) -> None:
    """Each of two pools asks for both CPUs again and again, at the same moments: one at a time has them."""

    async def scenario() -> int:
        pools, held, most = [Pool(600), Pool(600)], 0, 0

        async def use(pool: Pool) -> None:
            nonlocal held, most
            for _ in range(2):
                lease = await pool.acquire(shape(2), SERVED_S)
                held += 1
                most = max(most, held)
                await asyncio.sleep(0.3)
                held -= 1
                pool.give_back(lease, keep=False)

        await asyncio.gather(*(use(pool) for pool in pools))
        for pool in pools:
            pool.close()
        return most

    assert run(scenario()) == 1


def test_a_busy_pool_gives_way_to_another(shape: Callable[..., Shape], later: Callable[[float], None]) -> None:
    """One pool always has two requests in flight; a request of another pool is served, and then the first pool goes on."""

    async def scenario() -> bool:
        busy, other, ended = Pool(600), Pool(600), False

        async def stream() -> int:
            served = 0
            while not ended or not served:
                lease = await busy.acquire(shape(2), 2 * SERVED_S)
                await asyncio.sleep(0.2)
                busy.give_back(lease, keep=True)
                served += 1
            return served

        streams = [asyncio.create_task(stream()) for _ in range(2)]
        await asyncio.sleep(3.0)
        waiting = asyncio.create_task(other.acquire(shape(2), 2 * SERVED_S))
        await asyncio.sleep(3.0)
        assert not waiting.done()
        later(patience.PATIENCE_S)
        other.give_back(await waiting, keep=True)
        ended = True
        counts = await asyncio.wait_for(asyncio.gather(*streams), SERVED_S)
        busy.close()
        other.close()
        return min(counts) > 0

    assert run(scenario())


def test_what_another_program_holds_is_waited_for_and_named(
    holder: Callable[[float], Callable[[], None]], shape: Callable[..., Shape], later: Callable[[float], None]
) -> None:
    """Half a CPU of two: the wait says what it needs, what is free and what to do, and ends with what it waits for."""
    reported: list[tuple[str, bool, bool]] = []
    free = holder(0.5)

    async def scenario() -> None:
        pool = Pool(600, report=lambda identifier, text, lasts, warn: reported.append((text, lasts, warn)))
        waiting = asyncio.create_task(pool.acquire(shape(2), 2 * SERVED_S))
        await asyncio.sleep(1.0)
        assert not reported
        later(pool_module.REPORT_AFTER_S)
        while not reported:
            await asyncio.sleep(0.1)
        assert not waiting.done()
        free()
        await waiting
        pool.close()

    run(scenario())
    (text, lasts, warn), after = reported
    assert " s for 2 CPUs: 1.5 of 2 CPUs free, held by task hold (0.5 CPUs). It starts as soon as they are free" in text
    assert (lasts, warn, after) == (True, True, ("The wait for CPUs and GPUs is over.", False, False))


def test_gpus_that_the_operation_holds_are_not_waited_for(
    trial: Callable[..., None], shape: Callable[..., Shape], later: Callable[[float], None]
) -> None:
    """A trial holds a GPU until its measurement has ended, and the measurement needs both: it fails within two minutes, not an hour."""
    trial(num_cpus=0, num_gpus=1)

    async def scenario() -> str:
        pool = Pool(600)
        waiting = asyncio.create_task(pool.acquire(shape(1, gpus=2), 3600))
        await asyncio.sleep(2.0)
        assert not waiting.done()
        later(115)
        with pytest.raises(failures.Broken) as caught:
            await waiting
        pool.close()
        return str(caught.value)

    assert run(scenario()) == (
        "2 GPUs and 1 CPU can never become free: the operation itself holds them (actor Trial (1 GPU))."
    )


@ray.remote(num_cpus=0)
class Dispatcher:
    """Has the name and the method of ours, and a pool."""

    async def measure(self, shape: Shape) -> bool:
        """Return whether a measurement would begin in time."""
        pool = Pool(600)
        lease = await pool.acquire(shape, SERVED_S)
        answers = await lease.answers()
        pool.close()
        return answers


@ray.remote(num_cpus=0)
class Actuator:
    """Passes a request on, as actuators do."""

    def submit(self, shape: Shape) -> None:
        """Return before the measurement begins."""
        self._dispatcher = Dispatcher.remote()  # type: ignore[attr-defined]
        self._measuring = self._dispatcher.measure.remote(shape)

    def measured(self) -> bool | None:
        """Return whether it was measured; None while it is not known."""
        done, _ = ray.wait([self._measuring], timeout=0)
        return bool(ray.get(done[0])) if done else None


@ray.remote(num_cpus=2)
def measuring(actuator: Any, shape: Shape) -> bool:
    """Ask for a measurement and poll for its result, as trials do."""
    ray.get(actuator.submit.remote(shape))
    while (measured := ray.get(actuator.measured.remote())) is None:
        time.sleep(1.0)
    return bool(measured)


def test_a_trial_may_be_a_task(shape: Callable[..., Shape]) -> None:
    """It holds both CPUs, which its measurement needs, until it is measured."""
    actuator = Actuator.remote()  # type: ignore[attr-defined]
    assert ray.get(measuring.remote(actuator, shape(2)), timeout=2 * SERVED_S)
    ray.kill(actuator)


def test_idle_trainers_stay_for_a_group_they_do_not_serve(
    holder: Callable[[float], Callable[[], None]], shape: Callable[..., Shape]
) -> None:
    """A placement group that another program's CPU keeps waiting ends no trainer, one that the trainer keeps waiting does."""

    async def scenario() -> tuple[int, bool]:
        pool = Pool(600)
        pool.give_back(await pool.acquire(shape(1), SERVED_S), keep=True)
        free = await asyncio.to_thread(holder, 1)
        group = placement_group([{"CPU": 2}])
        await asyncio.sleep(2.0)
        left = len(pool._idle)
        free()
        served = await made(group)
        pool.close()
        return left, served

    assert run(scenario()) == (1, True)


def test_an_idle_trainer_gives_way_to_a_task(shape: Callable[..., Shape], tmp_path: Path) -> None:
    """Tasks and actors outside of placement groups count as well, such as ado's own task for an experiment."""
    (tmp_path / "done").touch()

    async def scenario() -> int:
        pool = Pool(600)
        pool.give_back(await pool.acquire(shape(2), SERVED_S), keep=True)
        task = hold.options(num_cpus=2).remote(str(tmp_path / "done"))
        await asyncio.to_thread(ray.get, task, timeout=SERVED_S)
        left = len(pool._idle)
        pool.close()
        return left

    assert run(scenario()) == 0


def test_a_trainer_stays_after_a_long_queue(shape: Callable[..., Shape], later: Callable[[float], None]) -> None:
    """A request that has waited for long for the same trainer is served, and the trainer stays for the next one."""

    async def scenario() -> bool:
        pool = Pool(600)
        lease = await pool.acquire(shape(2), SERVED_S)
        waiting = asyncio.create_task(pool.acquire(shape(2), 2 * SERVED_S))
        await asyncio.sleep(1.0)
        later(patience.PATIENCE_S)
        await asyncio.sleep(1.0)
        pool.give_back(lease, keep=True)
        pool.give_back(await waiting, keep=True)
        await asyncio.sleep(1.5)
        again = await pool.acquire(shape(2), SERVED_S)
        pool.close()
        return again is lease

    assert run(scenario())


def test_a_busy_pool_gives_way_to_a_foreign_group(shape: Callable[..., Shape], later: Callable[[float], None]) -> None:
    """While one measurement follows the other, a placement group that has waited for long is made."""

    async def scenario() -> bool:
        pool, ended = Pool(600), False

        async def stream() -> None:
            while not ended:
                lease = await pool.acquire(shape(2), 2 * SERVED_S)
                await asyncio.sleep(0.2)
                pool.give_back(lease, keep=True)

        streams = [asyncio.create_task(stream()) for _ in range(2)]
        await asyncio.sleep(1.0)
        making = asyncio.create_task(made(placement_group([{"CPU": 2}])))
        await asyncio.sleep(2.0)
        assert not making.done()
        later(patience.PATIENCE_S)
        served = await making
        ended = True
        await asyncio.wait_for(asyncio.gather(*streams), SERVED_S)
        pool.close()
        return served

    assert run(scenario())


def test_two_shapes_of_one_pool_share_the_cpus(shape: Callable[..., Shape]) -> None:
    """A lease of one CPU and another of one CPU and a GPU are held at once."""

    async def scenario() -> int:
        pool = Pool(600)
        leases = await asyncio.gather(pool.acquire(shape(1), SERVED_S), pool.acquire(shape(1, gpus=1), SERVED_S))
        kinds = {dataclasses.astuple(lease.shape.host) for lease in leases}
        pool.close()
        return len(kinds)

    assert run(scenario()) == 2
