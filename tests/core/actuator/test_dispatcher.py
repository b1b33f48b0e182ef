"""How the dispatcher handles hosts that do not answer."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ado_actuators.sfttrainer.core.actuator import dispatcher
from ado_actuators.sfttrainer.core.cluster import hosts, snapshot

pytestmark = pytest.mark.ray


def test_a_host_that_rays_memory_monitor_ends_ran_out_of_memory() -> None:
    """A host that Ray's memory monitor ended is out of memory; any other loss of a host is transient."""
    ended = dispatcher._lost(ray.exceptions.OutOfMemoryError("node memory 95 % used")).cause
    assert ended is not None
    assert (ended.group, ended.what) == ("cannot run", "host_oom")
    other = dispatcher._lost(RuntimeError("gone")).cause
    assert other is not None
    assert other.group == "transient"


def test_actors_are_recognised_by_their_modules() -> None:
    """A snapshot of the cluster finds dispatchers and hosts, also those of other plugins, by the ends of their modules' names."""
    actors: list[tuple[Any, str]] = [(dispatcher.Dispatcher, snapshot.DISPATCHER), (hosts.HostActor, snapshot.HOST)]
    for actor, end in actors:
        module = actor.__ray_metadata__.modified_class.__module__
        assert module == f"ado_actuators.sfttrainer{end}"
