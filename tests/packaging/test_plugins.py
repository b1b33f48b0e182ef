"""What both plugins share, and the time that importing them takes."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import DISTRIBUTIONS, ROOT

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tuning", "matplotlib")
# every ado command imports the modules of the first line before any plugin
TIMED = """
import sys, time
import ado.modules.actuators.registry, ado.modules.actuators.standard, ado.schema.experiment
begin = time.perf_counter()
import ado_actuators.{}.actuator
print(time.perf_counter() - begin)
print(*[name for name in {} if name in sys.modules])
"""


def test_the_list_of_plugins_is_complete() -> None:
    """A directory with a setup.py is a plugin, and these tests cover it."""
    assert {path.parent.name for path in ROOT.glob("*/setup.py")} == set(DISTRIBUTIONS)


def test_all_plugins_are_built_by_the_same_file() -> None:
    """Both plugins use the same plugin_build.py and equal copies of setup.py."""
    assert {(ROOT / name / "plugin_build.py").resolve() for name in DISTRIBUTIONS} == {
        ROOT / "sfttrainer/plugin_build.py"
    }
    assert len({(ROOT / name / "setup.py").read_bytes() for name in DISTRIBUTIONS}) == 1


def test_all_plugins_link_to_the_same_core() -> None:
    """Both plugins link the same core."""
    cores = {(ROOT / name / "src" / "ado_actuators" / name / "core").resolve() for name in DISTRIBUTIONS}
    assert cores == {ROOT / "core"}


def test_both_plugins_have_the_same_base(plugin: str) -> None:
    """Common dependencies are equal, and neither has [project.scripts], which would remove the entry point."""
    projects = [
        tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (plugin, "sfttrainer")
    ]
    assert projects[0]["dependencies"] == projects[1]["dependencies"]
    assert projects[0]["requires-python"] == projects[1]["requires-python"]
    assert "scripts" not in projects[0]


@pytest.mark.ray
def test_the_installed_entry_point_is_the_actuator(plugin: str) -> None:
    """ado finds the plugin under its identifier."""
    (point,) = importlib.metadata.entry_points(group="ado.actuators", name=plugin)
    assert point.load().identifier == plugin


@pytest.mark.ray
def test_the_installed_command_is_the_plugins(plugin: str) -> None:
    """``ado-NAME`` runs the commands of the plugin with this name."""
    name = f"ado-{plugin.replace('_', '-')}"
    (point,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    assert point.value == f"ado_actuators.{plugin}.__main__:main"
    done = subprocess.run(
        [Path(sys.executable).with_name(name), "doctor", "--address", ""],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "--address is empty; leave it out to examine this machine.\n")


@pytest.mark.ray
def test_importing_a_plugin_is_cheap(plugin: str) -> None:
    """Importing a plugin takes under 0.15 s beyond ado, and imports no training stack."""
    code = TIMED.format(plugin, HEAVY)
    seconds = []
    for _ in range(5):
        printed = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120, cwd="/").splitlines()
        seconds.append(float(printed[0]))
        assert printed[1] == ""
    assert min(seconds) < 0.15
