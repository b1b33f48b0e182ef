"""What ``doctor`` finds on a real machine, on one with replayed GPUs, on a real cluster, and where something is missing."""

from __future__ import annotations

import importlib.metadata
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
from ado_actuators.sfttrainer.core.commands import doctor
from ado_actuators.sfttrainer.core.commands.doctor import Finding, Subject
from ado_actuators.sfttrainer.core.host.state_dir import state_dir

from ..host.test_sampler import Replay

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """The plugin of this environment, with an empty state directory."""
    return Subject("sfttrainer", "current", str(tmp_path))


def found(findings: list[Finding], what: str) -> list[tuple[str, str]]:
    """Return state and text of what bears this name."""
    return [(one.state, one.text) for one in findings if one.what == what]


def test_what_is_installed_is_found(subject: Subject) -> None:
    """The training stack with its versions, and ado's entry point."""
    findings = doctor.examine(subject)
    ((state, text),) = found(findings, "training stack")
    assert state == "ok"
    assert f"trl {importlib.metadata.version('trl')}" in text.split(", ")
    assert found(findings, "actuator") == [("ok", "ado finds sfttrainer")]
    assert found(findings, "disk")[0][1].endswith(f"GiB free for {subject.state_dir}")


def test_gpus_are_listed_as_the_driver_gives_them(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four replayed H100."""
    monkeypatch.setitem(sys.modules, "pynvml", Replay("h100-four"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = found(doctor.examine(subject), "GPU")
    assert gpus == [("ok", "NVIDIA H100 80GB HBM3, 79.6 GiB, limit 700 W, driver 570.86.15")] * 4


def test_a_gpu_in_parts_is_refused_with_the_sentence_of_a_measurement(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replayed A100 in MIG mode."""
    monkeypatch.setitem(sys.modules, "pynvml", Replay("a100-mig"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ((state, text),) = found(doctor.examine(subject), "GPU")
    assert (state, "MIG mode" in text) == ("missing", True)
    assert pynvml is not sys.modules["pynvml"]


@pytest.mark.parametrize("given", [[], ["--state-dir", "~/state"], ["--state-dir", ""]])
def test_each_node_has_its_own_home(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller asks for is resolved where it is looked at, and to the directory that measurements use."""
    shipped: list[Subject] = []

    def look(address: str, subject: Subject) -> list[Finding]:
        shipped.append(subject)
        return [Finding(address, "ok", "")]

    monkeypatch.setattr(doctor, "examine_cluster", look)
    assert main(["doctor", "--address", "head:6379", *given]) == 0
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = state_dir(given[-1] if given else "")
    assert shipped[0].state_dir == place
    assert found(doctor.examine(shipped[0]), "disk")[0][1].endswith(f"GiB free for {place}")


def test_a_home_that_does_not_exist_is_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A message, not a traceback."""
    assert main(["doctor", "--state-dir", "~nobody-of-this-name/state"]) == 2
    assert "~nobody-of-this-name/state: Could not determine home directory." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("psutil>=5", ""),
        ("no-such-package>=1", "no-such-package is not installed"),
        ("psutil<1", f"psutil {importlib.metadata.version('psutil')} is not <1"),
    ],
)
def test_a_package_is_compared_with_what_the_plugin_asks_for(requirement: str, problem: str) -> None:
    """Absent, too old or too new, or right."""
    assert doctor.problem(Requirement(requirement)) == problem


def test_what_qlora_needs_besides_is_noted(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its experiment needs it, so nothing is missing without it; the command that mends it is there."""
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "bitsandbytes" else installed(name))
    notes = [one for one in doctor.examine(subject) if one.what == "qlora"]
    assert notes == [Finding("qlora", "note", "bitsandbytes is not installed", "pip install './sfttrainer[qlora]'")]


def test_what_is_missing_comes_with_the_command_that_mends_it(tmp_path: Path) -> None:
    """A plugin that is not installed, and the conclusion at the end."""
    findings = doctor.examine(Subject("other", "current", str(tmp_path)))
    missing = [one for one in findings if one.what == "ado-other"]
    assert missing == [Finding("ado-other", "missing", "the plugin is not installed", "pip install ./other")]
    lines = doctor.text(missing).splitlines()
    assert lines[:2] == [
        "missing ado-other  the plugin is not installed",
        "                   $ pip install ./other",
    ]
    assert lines[-1] == "1 missing: run the command below each, then doctor again."


@pytest.mark.parametrize("plugin", ["sfttrainer", "fms_hf_tuning"])
def test_the_command_needs_neither_torch_nor_ray_running(plugin: str, own_home: Path) -> None:
    """It ends with 0 where nothing is missing, and torch is not loaded on the way."""
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
    assert conclusion.startswith("Nothing is missing: it can measure on the CPU")
    assert loaded == "False"
    assert ("fms-hf-tuning-3.2.2-cpu" in done.stdout) == (plugin == "fms_hf_tuning")


def test_where_ado_is_broken_the_command_says_so() -> None:
    """It does not need what it looks at: the other findings are there as well."""
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


def test_every_node_of_a_cluster_is_looked_at_from_inside(
    cluster: Cluster, subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Ray knows of it, and what the node itself finds."""
    status = main(["doctor", "--address", cluster.address, "--state-dir", str(subject.state_dir)])
    printed = capsys.readouterr().out
    assert status == 0
    assert printed.startswith(f"sfttrainer on the Ray cluster at {cluster.address}\n")
    assert [printed.count(f"offers {cpus} CPUs") for cpus in (1, 3)] == [1, 1]
    assert printed.count("ado finds sfttrainer") == 2


def test_an_address_where_nothing_answers_is_said_at_once(subject: Subject) -> None:
    """No waiting for Ray's own time-out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (finding,) = doctor.examine_cluster(f"127.0.0.1:{port}", subject)
    assert finding.text == f"nothing answers at 127.0.0.1:{port}: Connection refused"


def test_the_dashboards_address_is_told_from_the_clusters(subject: Subject) -> None:
    """Jobs go there, and RAY_ADDRESS may hold it; the message and the command say what to give instead."""
    (finding,) = doctor.examine_cluster("http://127.0.0.1:8265", subject)
    assert finding == Finding(
        "cluster", "missing",
        "http://127.0.0.1:8265 is the dashboard's address, which takes jobs; "
        "from outside the cluster give ray://127.0.0.1:10001",
        "ado-sfttrainer doctor --address 127.0.0.1:6379",
    )  # fmt: skip


def test_an_empty_address_is_not_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable of a shell is no wish to look here."""
    assert main(["doctor", "--address", ""]) == 2
    assert "--address is empty" in capsys.readouterr().err
