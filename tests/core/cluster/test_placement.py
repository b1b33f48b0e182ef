"""On which nodes a measurement can be placed: exact numbers on hand-written snapshots."""

from __future__ import annotations

import dataclasses

import pytest

from ado_actuators.sfttrainer.core.cluster import placement
from ado_actuators.sfttrainer.core.cluster.placement import Claim, Need, Node


def node(
    cpus: float, gpus: float = 0, *, free: float | None = None, identifier: str = "a", operators: float = 0
) -> Node:
    """Return a node of which ``free`` CPUs are free."""
    left = cpus - operators if free is None else free
    return Node(identifier, {"CPU": cpus, "GPU": gpus}, {"CPU": left, "GPU": gpus}, operators=operators)


def leased(on: Node, group: str, threads: float, cpus: float, gpus: float = 0) -> Node:
    """Return a node with one more lease."""
    claim = Claim(group, "pool", threads, {"CPU": cpus, "GPU": gpus})
    free = {"CPU": on.free["CPU"] - cpus, "GPU": on.free["GPU"] - gpus}
    return dataclasses.replace(on, free=free, claims=(*on.claims, claim))


@pytest.mark.parametrize(
    ("cpus", "operators", "threads", "reserved"),
    [(2, 0, 2, 1), (2, 1, 2, 1), (2, 2, 2, 0), (1, 0, 1, 1), (1, 1, 1, 0), (8, 0, 8, 7), (8, 3, 8, 5), (8, 1, 4, 4)],
)
def test_a_lease_leaves_cpus_to_ados_operators(cpus: int, operators: int, threads: int, reserved: float) -> None:
    """It trains with all it asks for, whatever trials hold, and reserves what they leave."""
    (place,) = placement.place(Need(1, threads), [node(cpus, operators=operators)]) or []
    assert place.cpus == reserved


def test_trials_find_free_what_they_held_before() -> None:
    """Three trials held a CPU each, and one does now: the CPUs of the others stay free for the next ones."""
    before = dataclasses.replace(node(8, operators=1), most_operators=3)
    (place,) = placement.place(Need(1, 8), [before]) or []
    assert place.cpus == 5


def test_all_gpus_of_a_node_leave_a_cpu() -> None:
    """Eight GPUs with all 96 CPUs: one CPU stays for the trial that asked for them."""
    (place,) = placement.place(Need(1, 96, gpus=8), [node(96, 8, operators=1)]) or []
    assert place.cpus == 95


def test_two_measurements_share_no_cpu() -> None:
    """On a node whose CPUs both train, no measurement is placed, although Ray has a free CPU."""
    busy = leased(node(2), "g", threads=2, cpus=1)
    assert busy.free["CPU"] == 1
    assert placement.place(Need(1, 1), [busy]) is None
    assert placement.place(Need(1, 2), placement.without([busy], ["g"])) is not None


def test_two_leases_of_a_node_cannot_be_made_at_once() -> None:
    """Two pools that see the same two free CPUs ask for more than all of the node's own resource."""
    (place,) = placement.place(Need(1, 2), [node(2)]) or []
    assert 2 * place.share > 1 > place.share
    two = placement.place(Need(2, 1), [node(2)]) or []
    assert sum(one.share for one in two) <= 0.9


def test_what_others_hold_counts() -> None:
    """Half a CPU that another job holds leaves one CPU for a measurement, not two."""
    shared = node(2, free=1.5)
    assert placement.place(Need(1, 2), [shared]) is None
    (place,) = placement.place(Need(1, 1), [shared]) or []
    assert place.cpus == 0.5


def test_hosts_without_gpus_are_spread() -> None:
    """Two nodes get one host each; the third host shares one of them; a node without CPUs gets none."""
    nodes = [node(0, identifier="head"), node(2, identifier="a"), node(2, identifier="b")]
    assert [place.node.id for place in placement.place(Need(2, 1), nodes) or []] == ["a", "b"]
    assert sorted(place.node.id for place in placement.place(Need(3, 1), nodes) or []) == ["a", "a", "b"]


def test_hosts_with_gpus_are_on_different_nodes() -> None:
    """Two hosts do not share a node that has GPUs for both; one goes where fewest GPUs are free."""
    large, small = node(8, 8, identifier="large"), node(8, 2, identifier="small")
    assert placement.place(Need(2, 1, gpus=2), [large]) is None
    (place,) = placement.place(Need(1, 1, gpus=2), [large, small]) or []
    assert place.node.id == "small"


def test_a_node_without_the_resources_and_labels_does_not_fit() -> None:
    """Only a node with all of them is taken."""
    marked = dataclasses.replace(node(2, 1), total={"CPU": 2, "GPU": 1, "RoCE": 1}, labels={"kind": "A"})
    assert placement.place(Need(1, 1, 1, ("RoCE",), (("kind", "A"),)), [marked]) is not None
    assert placement.place(Need(1, 1, 1, ("RoCE",), (("kind", "B"),)), [marked]) is None
    assert placement.place(Need(1, 1, 1, ("RoCE",)), [node(2, 1)]) is None


def test_the_fewest_idle_leases_give_way() -> None:
    """Two idle leases hold one CPU each: a request for one CPU ends the older, one for two ends both, one for three ends none."""
    full = leased(leased(node(2), "old", 1, 1), "new", 1, 0)
    idle = ["old", "new"]
    assert placement.leases_to_end(idle, Need(1, 1), [full]) == ["old"]
    assert placement.leases_to_end(idle, Need(1, 2), [full]) == ["old", "new"]
    assert placement.leases_to_end(idle, Need(1, 3), [full]) == []


def test_only_a_foreign_group_that_is_served_makes_leases_give_way() -> None:
    """A group that would not fit anyway, or that fits already, ends no lease; a group that fits afterwards does."""
    full = leased(node(2), "mine", 2, 1)
    assert placement.leases_to_end(["mine"], [{"CPU": 100.0}], [full]) == []
    assert placement.leases_to_end(["mine"], [{"CPU": 2.0}], [full]) == ["mine"]
    # one CPU is free
    assert placement.leases_to_end(["mine"], [{"CPU": 1.0}], [full]) == []
    others = leased(node(2, free=1), "mine", 1, 0)
    assert placement.leases_to_end(["mine"], [{"CPU": 2.0}], [others]) == []


def test_a_lease_helps_with_what_is_lacking_only() -> None:
    """A lease of CPUs does not help a request that lacks only GPUs; it helps one that lacks CPUs."""
    gpus_held = leased(dataclasses.replace(node(8, 1), free={"CPU": 8, "GPU": 0}), "cpu", 4, 4)
    assert not placement.helps("cpu", Need(1, 1, gpus=1), [gpus_held])
    gpus_leased = leased(leased(node(8, 1), "gpu", 1, 1, 1), "cpu", 4, 4)
    assert not placement.helps("cpu", Need(1, 1, gpus=1), [gpus_leased])
    assert placement.helps("gpu", Need(1, 1, gpus=1), [gpus_leased])
    cpus_leased = leased(node(8, 1), "cpu", 8, 7)
    assert placement.helps("cpu", Need(1, 1, gpus=1), [cpus_leased])


def test_only_gpus_of_operators_can_keep_a_measurement_out_for_good() -> None:
    """CPUs of trials can be used for a measurement, the GPU of a trial cannot."""
    trials = node(2, 1, operators=2)
    assert placement.place(Need(1, 2, gpus=1), [trials.emptied()]) is not None
    with_gpu = dataclasses.replace(trials, operator_gpus=1)
    assert placement.place(Need(1, 2, gpus=1), [with_gpu.emptied()]) is None
