"""Each property is implemented by the stacks that its field names, or by both where it names none: nothing is accepted and ignored.

What a stack reads is found in the source: attributes of workloads in its own modules, and in those of the core that it uses.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.workload.experiments import extra
from ado_actuators.sfttrainer.core.workload.fields import Workload

ROOT = Path(__file__).parents[3]
PLUGINS = ("sfttrainer", "fms_hf_tuning")
# how the modules call a workload
NAMES = ("workload", "w", "needs")
# these folders read a workload before a trainer does, for both actuators alike
BEFORE = ("measurement", "host", "cluster")
# properties of these tasks only are read by modules that no stack imports
ENTRY = ("serve", "timing")


def package(plugin: str) -> Path:
    """Return the directory of a plugin's package."""
    return ROOT / plugin / "src" / "ado_actuators" / plugin


def imported(module: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the modules of the same plugin that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = module.parent
        for _ in range(node.level - 1):
            base = base.parent
        base = base.joinpath(*(node.module or "").split("."))
        for path in (base.with_suffix(".py"), *(base / f"{one.name}.py" for one in node.names)):
            if path.is_file():
                yield path


def read_in(tree: ast.Module) -> set[str]:
    """Return the properties of a workload that a module reads: ``workload.NAME``, ``job.workload.NAME`` or ``self.workload.NAME``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in Workload.model_fields:
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in NAMES:
                found.add(node.attr)
    return found


@functools.cache
def read_by(plugin: str) -> set[str]:
    """Return the properties that a plugin's trainers read, and those that are read before a trainer starts."""
    core = package(plugin) / "core"
    waiting = [package(plugin) / "stack.py", *(core / "trainer" / f"{name}.py" for name in ENTRY)]
    waiting += [path for folder in BEFORE for path in (core / folder).glob("*.py")]
    seen: set[Path] = set()
    found: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen or "memory_estimate" in module.parts:
            continue
        seen.add(module)
        tree = ast.parse(module.read_text(encoding="utf-8"))
        found |= read_in(tree)
        # what is imported from the workload's own folder checks values, which is no use of them
        waiting += [path for path in imported(module, tree) if path.parent.name not in ("workload", "metrics")]
    return found


def declared_by(plugin: str) -> set[str]:
    """Return the properties that an actuator accepts."""
    fields = Workload.model_fields.items()
    return {name for name, field in fields if plugin in (extra(field).get("stacks") or PLUGINS)}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_stack_reads_every_property_that_it_declares(plugin: str) -> None:
    """A new property that only the other stack reads needs ``_where(stacks=...)`` in its field."""
    assert declared_by(plugin) - read_by(plugin) == set()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_stack_reads_a_property_of_the_other(plugin: str) -> None:
    """Its own modules would read a value that its actuator does not accept."""
    own = set(package(plugin).glob("*.py"))
    read = set().union(*(read_in(ast.parse(path.read_text(encoding="utf-8"))) for path in own))
    assert read - declared_by(plugin) == set()


def test_reads_are_found() -> None:
    """In the three forms that the modules have; other objects do not count."""
    source = "workload.packing\njob.workload.seed\nself.workload.r\nargs.max_steps\nw.optim"
    assert read_in(ast.parse(source)) == {"packing", "seed", "r", "optim"}
