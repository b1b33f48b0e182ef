"""How a pinned list is made and chosen. No package index is used: the tests provide the output of uv."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning import environments
from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.fms_hf_tuning.core.failures import BadInput
from ado_actuators.fms_hf_tuning.core.host.uv import EnvironmentProblem
from ado_actuators.fms_hf_tuning.core.workload.fields import Workload
from ado_actuators.fms_hf_tuning.environments import __main__ as lists

pytestmark = pytest.mark.ray

# the output of uv for each Python
RESOLVED = {
    "3.11": "fms-hf-tuning==9.9\nnumpy==1.26.4\ntorch==2.6.0\ntorchvision==0.21.0\nnvidia-cudnn-cu12==9.1\n",
    "3.12": "fms-hf-tuning==9.9\nnumpy==2.0.0\ntorch==2.6.0\ntorchvision==0.21.0\nnvidia-cudnn-cu12==9.1\n",
}


def hashed(pin: str) -> str:
    """Return a pin with two hashes as uv writes them."""
    return f"{pin} \\\n    --hash=sha256:{pin}-source \\\n    --hash=sha256:{pin}-wheel"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace uv. The index has no hash of packages whose name begins with ``bare``. Return the list of requests."""
    requests = []

    def compile_(wanted: list[str], python: str, *options: str) -> str:
        requests.append(wanted)
        if not options:
            return f"# comment\n{RESOLVED[python]}"
        return "".join(f"{pin if pin.startswith('bare') else hashed(pin)}\n" for pin in wanted)

    monkeypatch.setattr(lists, "_compile", compile_)
    return requests


def test_lines_that_differ_between_pythons_get_a_marker() -> None:
    """A line that is equal for all Pythons appears once; another gets a marker for its Python."""
    merged = lists._merge({"3.11": ["a==1", "b==1"], "3.12": ["a==1", "b==2", "c==1"]})
    assert sorted(merged) == [
        "a==1",
        "b==1 ; python_version == '3.11'",
        "b==2 ; python_version == '3.12'",
        "c==1 ; python_version == '3.12'",
    ]


def test_each_line_gets_its_hashes(asked: list[list[str]]) -> None:
    """Markers are kept, hashes are requested for each Python, and none for the CPU build of torch."""
    lines = ["a==1", "b==1 ; python_version == '3.11'", "b==2 ; python_version == '3.12'", "torch==2.13.0+cpu"]
    lines_with_hashes = lists.with_hashes(lines)
    assert asked == [["a==1", "b==1"], ["a==1", "b==2"]]
    assert lines_with_hashes == [
        hashed("a==1"),
        hashed("b==1").replace("b==1 \\", "b==1 ; python_version == '3.11' \\"),
        hashed("b==2").replace("b==2 \\", "b==2 ; python_version == '3.12' \\"),
        "torch==2.13.0+cpu",
    ]


def test_a_package_without_a_hash_is_rejected(asked: list[list[str]]) -> None:
    """Without a hash, a mirror could provide any file."""
    with pytest.raises(EnvironmentProblem, match=r"The index has no hash of bare==1, "):
        lists.with_hashes(["a==1", "bare==1"])


def test_the_list_for_cuda(asked: list[list[str]]) -> None:
    """The list has all resolved packages, with those of the accelerations, and a head with the versions of Python."""
    text = lists.pin("9.9", "cuda")
    assert asked[0] == ["fms-hf-tuning==9.9", lists.ACCELERATION, *lists.UNDECLARED, *lists.PLUGINS]
    assert text.splitlines()[2] == "# python: 3.11 3.12"
    assert [line.split(" \\")[0] for line in text.splitlines() if "==" in line and line[0] not in "# "] == [
        "fms-hf-tuning==9.9",
        "numpy==1.26.4 ; python_version == '3.11'",
        "numpy==2.0.0 ; python_version == '3.12'",
        "nvidia-cudnn-cu12==9.1",
        "torch==2.6.0",
        "torchvision==0.21.0",
    ]


def test_the_list_for_cpus(asked: list[list[str]]) -> None:
    """Packages that need CUDA are left out; torch is the CPU build on Linux, and the head names its index."""
    text = lists.pin("9.9", "cpu")
    assert asked[0] == ["fms-hf-tuning==9.9", lists.ACCELERATION, *lists.UNDECLARED, "fms-acceleration-peft"]
    assert text.splitlines()[3] == f"# index: {lists.CPU_INDEX}"
    assert [line.split(" \\")[0] for line in text.splitlines() if "==" in line and line[0] not in "# "] == [
        "fms-hf-tuning==9.9",
        "numpy==1.26.4 ; python_version == '3.11'",
        "numpy==2.0.0 ; python_version == '3.12'",
        f"torch=={lists.CPU_TORCH} ; sys_platform != 'linux'",
        f"torch=={lists.CPU_TORCH}+cpu ; sys_platform == 'linux'",
    ]


def test_a_wrong_output_is_rejected_before_resolving(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing directory, a file and a directory that cannot be written to give one message, and nothing is resolved."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "absent", tmp_path / "file", Path("/proc/self")):
        monkeypatch.setattr(sys, "argv", ["environments", "9.9", "--output", str(place)])
        with pytest.raises(SystemExit, match=rf"^Cannot write to {place} \(.+\); give another --output\.$"):
            lists.main()
    assert asked == []


def test_both_lists_are_written(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is one file for each variant, and its path is printed."""
    monkeypatch.setattr(sys, "argv", ["environments", "9.9", "--output", str(tmp_path)])
    lists.main()
    paths = [str(tmp_path / f"fms-hf-tuning-9.9-{variant}.txt") for variant in environments.VARIANTS]
    assert capsys.readouterr().out.splitlines() == paths
    assert sorted(map(str, tmp_path.iterdir())) == sorted(paths)


def test_a_version_without_a_list_is_rejected() -> None:
    """The message names the versions that have one, oldest first."""
    plugin = FMSHFTuning.plugin()
    values = {
        "model_name": "m",
        "model_max_length": 16,
        "batch_size": 1,
        "number_gpus": 0,
        "fms_hf_tuning_version": "3.2.2",
    }
    workload = Workload.model_validate(values)
    assert plugin.requirements_of(workload) == "fms-hf-tuning-3.2.2-cpu.txt"
    assert plugin.versions("cpu") == plugin.versions("cuda") == ["3.1.0", "3.2.2"]
    with pytest.raises(
        BadInput, match=r"^fms_hf_tuning_version '3\.9\.9' has no managed environment; use one of 3\.1\.0, 3\.2\.2\.$"
    ):
        plugin.requirements_of(workload.model_copy(update={"fms_hf_tuning_version": "3.9.9"}))
