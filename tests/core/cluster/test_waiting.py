"""Messages of long waits, and which leases end for which requests: on hand-written snapshots, without a running Ray."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import pytest

from ado_actuators.sfttrainer.core.cluster import operator_waits, patience, snapshot, tasks
from ado_actuators.sfttrainer.core.cluster.patience import Patience
from ado_actuators.sfttrainer.core.cluster.placement import Claim, Need, Node
from ado_actuators.sfttrainer.core.cluster.snapshot import Actor, GroupName, Pending, Snapshot, Waiting, parse_name
from ado_actuators.sfttrainer.core.cluster.tasks import Callers, Task
from ado_actuators.sfttrainer.core.cluster.waiting import explain

pytestmark = pytest.mark.ray


def node(cpus: float, free: float, *claims: Claim, gpus: float = 0, free_gpus: float = 0) -> Node:
    """Return a node with leases."""
    return Node("n", {"CPU": cpus, "GPU": gpus}, {"CPU": free, "GPU": free_gpus}, claims=claims)


def lease(group: str, cpus: float, owner: str = "me") -> Claim:
    """Return what a lease holds that trains with as many CPUs as it reserves."""
    return Claim(group, owner, cpus, {"CPU": cpus})


def test_a_wait_names_who_holds_what() -> None:
    """Leases by whose they are, actors by name or class; actors of ado's operators hold no CPUs that count."""
    actors = (
        Actor("Model", "", "serve", "2", "n", {"CPU": 1.0}),
        Actor("Worker", "", "", "2", "n", {"CPU": 0.5}),
        Actor("Trial", "", "", "1", "n", {"CPU": 1.0}),
    )
    busy = Node("n", {"CPU": 8}, {"CPU": 0.5}, operators=1, claims=(lease("a", 2), lease("b", 3, "other")))
    why = explain(Need(1, 4), Snapshot(nodes=(busy,), actors=actors, operators=frozenset({"1"})), "me")
    assert why.message(31.2) == (
        "A measurement has waited 31 s for 4 CPUs: 1.5 of 8 CPUs free, held by measurements of another operation (3 CPUs), "
        "other measurements of this operation (2 CPUs), actor serve (1 CPU) and actor Worker (0.5 CPUs). "
        "It starts as soon as they are free; end the other programs that hold them, or use a smaller cpus_per_process or number_gpus."
    )


def test_a_wait_for_gpus_names_who_holds_gpus() -> None:
    """CPUs are free, and a GPU is not."""
    actor = Actor("Model", "", "", "2", "n", {"CPU": 1.0, "GPU": 1.0})
    why = explain(Need(2, 1, gpus=1), Snapshot(nodes=(node(8, 7, gpus=1),), actors=(actor,)), "me")
    assert (why.needs, why.free, why.held) == ("2 times 1 GPU and 1 CPU", "0 of 1 GPU free", "actor Model (1 GPU)")


def task(name: str, status: str = "RUNNING", job: str = "2", **resources: float) -> Task:
    """Return a task outside of actors."""
    return Task(name, "", name, job, "n", normal=True, status=status, resources=resources)


def test_tasks_are_named_as_far_as_they_can_hold_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ado's operators come last, since most of them are blocked and hold nothing; GPUs of tasks count as well."""
    listed = [task("tune", job="1", CPU=1.0), task("done", "FINISHED", CPU=1.0), task("preprocess", CPU=1.0, GPU=1.0)]
    monkeypatch.setattr(tasks, "table", lambda: listed)
    one_held = Snapshot(nodes=(node(4, 3, gpus=1),), operators=frozenset({"1"}))
    assert explain(Need(1, 4), one_held, "me").held == "task preprocess (1 CPU)"
    assert explain(Need(1, 1, gpus=1), one_held, "me").held == "task preprocess (1 GPU)"
    monkeypatch.setattr(tasks, "table", list)
    assert explain(Need(1, 1, gpus=1), one_held, "me").held == "other tasks (1 GPU)"


def test_a_task_that_waits_for_its_own_tasks_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has given its CPUs back, and not its GPUs, of whichever job it is. What it waits for is named, and is no word of Ray's."""
    child = Task("c", "outer", "f", "3", "n", normal=False, status="RUNNING", resources={})
    listed = [task("outer", job="3", CPU=1.0, GPU=1.0), child, task("tune", job="1", CPU=1.0)]
    monkeypatch.setattr(tasks, "table", lambda: listed)
    one_held = Snapshot(nodes=(node(4, 3, gpus=1),), operators=frozenset({"1"}))
    assert explain(Need(1, 4), one_held, "me").held == "task tune (1 CPU)"
    assert explain(Need(1, 1, gpus=1), one_held, "me").held == "task outer (1 GPU)"
    monkeypatch.setattr(tasks, "table", lambda: [listed[0], dataclasses.replace(child, status="FINISHED")])
    assert explain(Need(1, 4), one_held, "me").held == "task outer (1 CPU)"
    trial = Snapshot(nodes=(node(4, 3),), actors=(Actor("ImplicitFunc", "", "", "3", "n", {"CPU": 1.0}),))
    assert explain(Need(1, 4), trial, "me").held == "a trial of Ray Tune (1 CPU)"


def test_another_actuator_of_the_operation_is_not_to_be_ended() -> None:
    """Its measurements are of the same operation; those of another Ray job are not."""
    mine = "dispatcher-aa01000000"
    for owner, own in (("dispatcher-bb01000000", True), ("dispatcher-bb02000000", False)):
        why = explain(Need(1, 2), Snapshot(nodes=(node(2, 0, lease("a", 2, owner)),)), mine)
        assert why.only_own is own
        assert ("end the other programs" in why.message(40)) is not own


def test_nobody_holds_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement trains with the CPU that an operator has lent, which Ray lists as that of a task."""
    monkeypatch.setattr(tasks, "table", lambda: [task("tune", CPU=1.0)])
    lent = Node("n", {"CPU": 2}, {"CPU": 0}, claims=(Claim("a", "me", 2, {"CPU": 1.0}),))
    why = explain(Need(1, 2), Snapshot(nodes=(lent,)), "me")
    assert (why.held, why.only_own) == ("other measurements of this operation (2 CPUs)", True)


def test_trials_count_as_operators_before_there_is_a_dispatcher() -> None:
    """ado's manager of the space is there before them; actors of other jobs are no operators."""
    manager = Actor("DiscoverySpaceManager", snapshot.MANAGER, "", "3", "n", {})
    dispatcher = Actor("Dispatcher", "ado_actuators.x.core.actuator.dispatcher", "", "4", "n", {})
    others = Actor("Model", "serving", "", "5", "n", {"CPU": 1.0})
    assert snapshot._operators([manager, dispatcher, others], "1") == {"1", "3", "4"}


ASKED = [
    Task("m", "s", tasks.MEASURE, "1", "n", normal=False, status="RUNNING", resources={}),
    Task("s", "trial", "Timed.submit", "1", "n", normal=False, status="FINISHED", resources={}),
    task("trial", job="1", CPU=2.0, GPU=1.0),
]


@pytest.mark.parametrize(
    ("rows", "free", "counted"),
    [
        (ASKED, 0, 2),
        ([*ASKED, task("preprocess", CPU=1.0)], 0, 1),
        # blocked in Ray: what is held is all of the other task
        ([*ASKED, task("preprocess", CPU=1.0)], 1, 0),
        ([*ASKED[:2], task("trial", "FINISHED", job="1", CPU=2.0)], 0, 0),
        ([*ASKED[1:]], 0, 0),
        ([dataclasses.replace(ASKED[0], status="FINISHED"), *ASKED[1:]], 0, 0),
        ([*ASKED[:2], task("trial", job="2", CPU=2.0)], 0, 0),
    ],
    ids=["asks", "beside another task", "blocked", "ended", "asks for nothing", "measured", "of another job"],
)
def test_a_task_that_asked_for_a_measurement_lends_its_cpus(
    monkeypatch: pytest.MonkeyPatch, rows: list[Task], free: float, counted: float
) -> None:
    """What it holds for certain, once two readings of Ray's table have shown it."""
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "1"))
    monkeypatch.setattr(tasks, "table", lambda: rows)
    seen, counting = Snapshot(nodes=(node(2, free),), operators=frozenset({"1"})), Callers()
    assert counting.counted(seen).nodes[0].operators == 0
    now_s += tasks.READ_S
    assert counting.counted(seen).nodes[0].operators == counted


def test_the_gpu_of_a_task_that_asked_can_never_become_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes no GPU from a task that is blocked; one of another operation may end and free its GPU."""
    monkeypatch.setattr(tasks, "table", lambda: ASKED)
    for own, held in (("1", 1), ("2", 0)):
        monkeypatch.setattr("ray.get_runtime_context", lambda own=own: SimpleNamespace(get_job_id=lambda: own))
        monkeypatch.setattr(tasks, "READ_S", 0.0)
        seen = Snapshot(nodes=(node(4, 2, gpus=1),), operators=frozenset({"1"}))
        counting = Callers()
        counting.counted(seen)
        assert counting.counted(seen).nodes[0].operator_gpus == held


def test_a_trial_that_waits_is_told_about_other_trials() -> None:
    """They hold the CPU that it needs, although a measurement could use it."""
    actors = (Actor("Trial", "", "", "1", "n", {"CPU": 1.0}), Actor("Model", "", "serve", "2", "n", {"CPU": 0.5}))
    busy = Node("n", {"CPU": 2}, {"CPU": 0.5}, operators=1)
    seen = Snapshot(nodes=(busy,), actors=actors, operators=frozenset({"1"}))
    why = explain(Need(1, 1), operator_waits.for_operators(seen), "")
    assert (why.free, why.held) == ("0.5 of 2 CPUs free", "actor Trial (1 CPU) and actor serve (0.5 CPUs)")


def test_a_queue_behind_the_own_measurements_asks_for_nothing() -> None:
    """Nobody has to do anything about it."""
    why = explain(Need(1, 2), Snapshot(nodes=(node(2, 0, lease("a", 2)),)), "me")
    assert why.only_own
    assert why.message(40).endswith(
        "held by other measurements of this operation (2 CPUs). It starts when a measurement of this operation ends."
    )


def test_names_of_groups_are_read_by_other_pools() -> None:
    """Those of other programs are not mistaken for ours."""
    name = GroupName("dispatcher-1", "lease", 4, 12.5)
    assert parse_name(str(name)) == name
    assert str(name) != str(name)
    for foreign in ("", "train", "ado-actuators:a:b", "ado-actuators:a:lease:x:1:2"):
        assert parse_name(foreign) is None


def waiting(owner: str, since_s: float, cpus: int = 2) -> Waiting:
    """Return a request that waits."""
    return Waiting("g", owner, since_s, Need(1, cpus))


@pytest.mark.parametrize(("waited_s", "gives_way"), [(10, False), (40, True)])
def test_a_lease_goes_on_to_the_next_until_another_pool_has_waited_for_long(waited_s: float, gives_way: bool) -> None:
    """A younger request of another pool waits; an older one is served."""
    now, decide = time.time(), Patience()
    other = waiting("other", now - waited_s)
    decide.update(Snapshot(nodes=(node(2, 0, lease("a", 2)),)), [waiting("me", now), other])
    assert decide.ends("a", now, [other]) is gives_way
    assert decide.holds_back(Need(1, 2), now) is gives_way


def test_a_clock_that_is_set_back_makes_nobody_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait of the other pool then begins in the future; what counts is for how long it has been seen."""
    wall_s, now_s = 1e9, 100.0
    monkeypatch.setattr("time.time", lambda: wall_s)
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    decide, other = Patience(), waiting("other", wall_s)
    seen = Snapshot(nodes=(node(2, 0, lease("a", 2)),))
    decide.update(seen, [other])
    wall_s -= 3600
    for passed_s, gives_way in ((20, False), (20, True)):
        now_s, wall_s = now_s + passed_s, wall_s + passed_s
        decide.update(seen, [other])
        assert decide.ends("a", wall_s, [other]) is gives_way


def test_a_request_that_does_not_take_free_resources_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of another pool that has not taken free resources for a minute no longer holds back others."""
    now, decide = time.time(), Patience()
    free, requests = Snapshot(nodes=(node(2, 2),)), [waiting("me", now), waiting("other", now - 40)]
    decide.update(free, requests)
    assert decide.holds_back(Need(1, 2), now)
    monkeypatch.setattr(patience, "UNTAKEN_S", -1.0)
    assert not decide.holds_back(Need(1, 2), now)


def test_a_request_that_waits_for_another_program_holds_nothing_back() -> None:
    """The older request needs both CPUs, of which a foreign program holds one; the other is for the younger request."""
    now, decide = time.time(), Patience()
    decide.update(Snapshot(nodes=(node(2, 1),)), [waiting("me", now, cpus=1), waiting("other", now - 40)])
    assert not decide.holds_back(Need(1, 1), now)


def test_idle_leases_are_given_up_for_a_foreign_group_once() -> None:
    """Should it go on waiting, it lacks something that its bundles do not show; the next lease is kept."""
    decide, group = Patience(), Pending("f", ({"CPU": 2.0},))
    assert not decide.yields()
    for name, ended in (("a", {"a"}), ("b", set())):
        decide.update(Snapshot(nodes=(node(2, 0, lease(name, 2)),), pending=(group,)), [])
        assert decide.idle_to_end([name]) == ended
        # nothing is asked for that could take what was freed for the group, until it has it
        assert decide.yields()
    decide.update(Snapshot(nodes=(node(2, 0),)), [])
    assert not decide.yields()


@pytest.mark.parametrize(("cpus", "free", "waits_s"), [(2.0, 1.0, patience.QUEUED_S), (1.0, 0.0, patience.PATIENCE_S)])
def test_a_queued_task_may_have_its_resources_already(
    monkeypatch: pytest.MonkeyPatch, cpus: float, free: float, waits_s: float
) -> None:
    """Ray's table lists it while its worker starts; the lease holds one CPU of two, so only a task of two surely waits for it."""
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    decide, task = Patience(), Pending("t", ({"CPU": cpus},), queued=True)
    seen = Snapshot(nodes=(node(2, free, lease("a", 1)),), pending=(task,))
    decide.update(seen, [])
    now_s += waits_s - 0.1
    assert decide.idle_to_end(["a"]) == set()
    now_s += 0.2
    assert decide.idle_to_end(["a"]) == {"a"}


@pytest.mark.parametrize(("owner", "reported"), [("dispatcher-ab02000000", True), ("dispatcher-ab01000000", False)])
def test_a_trial_that_waits_for_an_own_measurement_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, owner: str, reported: bool
) -> None:
    """A measurement of the same Ray job runs and is shown; one of another job's operation is a reason to report, after half a minute."""
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    context = SimpleNamespace(get_job_id=lambda: "01000000")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(operator_waits, "own_requests", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(operator_waits, "look", lambda: Snapshot(nodes=(node(2, 0, lease("a", 2, owner)),)))
    told: list[str] = []
    waits = operator_waits.OperatorWaits(lambda text, lasts: told.append(text))
    waits.check()
    assert told == []
    now_s += 31
    waits.check()
    assert bool(told) is reported
    if told:
        assert told[0].startswith(
            "ado's operator has waited 31 s for 1 CPU: 0 of 2 CPUs free, held by measurements of another operation (2 CPUs)."
        )
