"""``doctor`` on a real machine, with replayed GPUs, on a real cluster, and where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from packaging.requirements import Requirement
from ray.cluster_utils import Cluster

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.commands import doctor, machine
from ado_actuators.sfttrainer.core.commands.machine import Check, Subject
from ado_actuators.sfttrainer.core.host.state_dir import state_dir

from ..host.test_sampler import Replay

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """The plugin of this environment, with an empty state directory."""
    return Subject("sfttrainer", "current", str(tmp_path))


def found(checks: list[Check], what: str) -> list[tuple[str, str]]:
    """Return state and text of the checks with this name."""
    return [(one.state, one.text) for one in checks if one.what == what]


def test_installed_packages_are_listed(subject: Subject) -> None:
    """The training stack with its versions, and ado's entry point."""
    checks = machine.examine(subject)
    ((state, text),) = found(checks, "training stack")
    assert state == "ok"
    assert f"trl {importlib.metadata.version('trl')}" in text.split(", ")
    assert found(checks, "actuator") == [("ok", "ado finds sfttrainer")]
    assert found(checks, "disk")[0][1].endswith(f"GiB free at {subject.state_dir}")


@pytest.mark.parametrize(("busy", "state"), [(0.1, "ok"), (64.0, "note")])
def test_the_load_is_shown(subject: Subject, monkeypatch: pytest.MonkeyPatch, busy: float, state: str) -> None:
    """A busy machine gives rates that are not steady."""
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    ((shown, text),) = found(machine.examine(subject), "load")
    assert shown == state
    assert text.startswith(f"{busy} of 2 cores busy in the last minute")


def test_a_missing_pip_is_noted(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray needs it on a node for the packages of a job."""
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else known(name))
    ((state, text),) = found(machine.examine(subject), "pip")
    assert (state, text.partition(":")[0]) == ("note", "pip is not installed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known("os") if name == "pip" else known(name))
    assert found(machine.examine(subject), "pip") == []


OURS = "ado_actuators.sfttrainer.actuator:SFTTrainer"


@pytest.mark.parametrize(
    ("plugin", "entries", "states"),
    [
        ("sfttrainer", [OURS], ["ok"]),
        ("sfttrainer", [machine.OF_IBM], ["missing"]),
        ("fms_hf_tuning", [machine.OF_IBM], ["note"]),
        ("fms_hf_tuning", [OURS, machine.OF_IBM], ["missing"]),
        ("fms_hf_tuning", [], []),
    ],
)
def test_ibms_distribution_of_the_same_name_is_recognised(
    tmp_path: Path, plugin: str, entries: list[str], states: list[str]
) -> None:
    """By its entry point. It hides the plugin of the same name, and only that; both at once hide each other's files."""
    for number, entry in enumerate(entries):
        metadata = tmp_path / str(number) / f"ado_sfttrainer-{number}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ado-sfttrainer\nVersion: {number}\n")
        (metadata / "entry_points.txt").write_text(f"[ado.actuators]\nsfttrainer = {entry}\n")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    installed = list(importlib.metadata.distributions(name="ado-sfttrainer", path=paths))
    checks = list(machine._whose(installed, Subject(plugin, "current", "")))
    assert [one.state for one in checks] == states
    assert [bool(one.remedy) for one in checks] == [state == "missing" for state in states]


def test_this_distribution_is_this_projects(subject: Subject) -> None:
    """The one that the tests have installed."""
    ((state, text),) = found(machine.examine(subject), "distribution")
    assert state == "ok"
    assert importlib.metadata.version("ado-sfttrainer") in text


def test_gpus_are_listed_as_the_driver_gives_them(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of four H100."""
    monkeypatch.setitem(sys.modules, "pynvml", Replay("h100-four"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = found(machine.examine(subject), "GPU")
    assert gpus == [("ok", "NVIDIA H100 80GB HBM3, 79.6 GiB, limit 700 W, driver 570.86.15")] * 4


def test_a_gpu_in_mig_mode_is_reported_as_missing(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of an A100 in MIG mode; the text is the message of a measurement on it."""
    monkeypatch.setitem(sys.modules, "pynvml", Replay("a100-mig"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ((state, text),) = found(machine.examine(subject), "GPU")
    assert (state, "MIG mode" in text) == ("missing", True)
    assert pynvml is not sys.modules["pynvml"]


@pytest.mark.parametrize("given", [[], ["--state-dir", "~/state"], ["--state-dir", ""]])
def test_the_state_directory_is_resolved_on_each_node(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Homes differ between nodes; the directory is the one that measurements on that node use."""
    shipped: list[Subject] = []

    def look(address: str, subject: Subject) -> list[Check]:
        shipped.append(subject)
        return [Check(address, "ok", "")]

    monkeypatch.setattr(doctor, "examine_cluster", look)
    assert main(["doctor", "--address", "head:6379", *given]) == 0
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = state_dir(given[-1] if given else "")
    assert shipped[0].state_dir == place
    assert found(machine.examine(shipped[0]), "disk")[0][1].endswith(f"GiB free at {place}")


def test_a_home_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A message, not a traceback."""
    assert main(["doctor", "--state-dir", "~nobody-of-this-name/state"]) == 2
    assert "~nobody-of-this-name/state: Could not determine home directory." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("psutil>=5", ""),
        ("no-such-package>=1", "no-such-package is not installed"),
        ("psutil<1", f"psutil {importlib.metadata.version('psutil')} is installed, <1 is required"),
    ],
)
def test_packages_are_compared_with_the_requirements(requirement: str, problem: str) -> None:
    """Right, absent, and of a wrong version."""
    assert machine.problem(Requirement(requirement)) == problem


def test_missing_packages_of_the_extra_qlora_are_a_note(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one experiment needs them; the command that installs them is shown."""
    installed = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "bitsandbytes" else installed(name))
    notes = [one for one in machine.examine(subject) if one.what == "qlora"]
    assert notes == [Check("qlora", "note", "bitsandbytes is not installed", "pip install './sfttrainer[qlora]'")]


def test_a_missing_package_has_the_command_that_installs_it(tmp_path: Path) -> None:
    """A plugin that is not installed; the last line is a conclusion."""
    checks = machine.examine(Subject("other", "current", str(tmp_path)))
    missing = [one for one in checks if one.what == "ado-other"]
    assert missing == [Check("ado-other", "missing", "the plugin is not installed", "pip install ./other")]
    lines = doctor.text(missing).splitlines()
    assert lines[:2] == [
        "missing ado-other  the plugin is not installed",
        "                   $ pip install ./other",
    ]
    assert lines[-1] == "1 missing: run the command below each, then run doctor again."


@pytest.mark.parametrize("plugin", ["sfttrainer", "fms_hf_tuning"])
def test_the_command_needs_neither_torch_nor_ray_running(plugin: str, own_home: Path) -> None:
    """Status 0 if nothing is missing, and torch is not imported."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['ado', 'doctor']\n"
        "try:\n"
        f"    runpy.run_module('ado_actuators.{plugin}', run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *_, conclusion, loaded = done.stdout.splitlines()
    assert conclusion.startswith("Nothing is missing: measurements can run on the CPU")
    assert loaded == "False"
    assert ("fms-hf-tuning-3.2.2-cpu" in done.stdout) == (plugin == "fms_hf_tuning")


def test_an_ado_that_cannot_be_imported_is_reported() -> None:
    """The command does not need ado itself, so the other checks are shown as well."""
    code = "import sys; sys.modules['ado'] = None; from ado_actuators.sfttrainer.__main__ import main; "
    code += "sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "ado cannot load it: ModuleNotFoundError: " in done.stdout
    assert "$ pip install --force-reinstall --no-deps ./sfttrainer" in done.stdout
    assert "usable cores" in done.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of two nodes on this machine."""
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    two.add_node(num_cpus=3)
    yield two
    two.shutdown()


def test_every_node_of_a_cluster_is_examined(
    cluster: Cluster, subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its resources in Ray, and the checks of a task on the node."""
    status = main(["doctor", "--address", cluster.address, "--state-dir", str(subject.state_dir)])
    printed = capsys.readouterr().out
    assert status == 0
    assert printed.startswith(f"sfttrainer on the Ray cluster at {cluster.address}\n")
    assert [printed.count(f"offers {cpus} CPUs") for cpus in (1, 3)] == [1, 1]
    assert printed.count("ado finds sfttrainer") == 2


def test_an_address_where_nothing_answers_is_reported_at_once(subject: Subject) -> None:
    """Without waiting for Ray's own time-out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (check,) = doctor.examine_cluster(f"127.0.0.1:{port}", subject)
    assert check.text == f"nothing answers at 127.0.0.1:{port}: Connection refused"


def test_the_address_of_a_dashboard_is_rejected(subject: Subject) -> None:
    """RAY_ADDRESS may hold it; message and command say which address to give instead."""
    (check,) = doctor.examine_cluster("http://127.0.0.1:8265", subject)
    assert check == Check(
        "cluster", "missing",
        "http://127.0.0.1:8265 is the address of the dashboard, which accepts jobs only; "
        "from outside the cluster give ray://127.0.0.1:10001",
        "ado-sfttrainer doctor --address 127.0.0.1:6379",
    )  # fmt: skip


def test_an_empty_address_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An unset shell variable must not examine this machine instead of the cluster."""
    assert main(["doctor", "--address", ""]) == 2
    assert "--address is empty" in capsys.readouterr().err
