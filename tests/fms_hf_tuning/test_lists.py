"""How a pinned list is made, without an index: what uv would answer is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning.core.host.environment import EnvironmentProblem
from ado_actuators.fms_hf_tuning.environments import __main__ as lists

pytestmark = pytest.mark.ray

# for each Python what a resolution gives
RESOLVED = {
    "3.11": "fms-hf-tuning==9.9\nnumpy==1.26.4\ntorch==2.6.0\ntorchvision==0.21.0\nnvidia-cudnn-cu12==9.1\n",
    "3.12": "fms-hf-tuning==9.9\nnumpy==2.0.0\ntorch==2.6.0\ntorchvision==0.21.0\nnvidia-cudnn-cu12==9.1\n",
}


def hashed(pin: str) -> str:
    """Return a pin with two hashes as uv writes them."""
    return f"{pin} \\\n    --hash=sha256:{pin}-source \\\n    --hash=sha256:{pin}-wheel"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Answer as uv with an index would, which has no hash of a package called ``bare``; return what was to be resolved."""
    wishes = []

    def compile_(wanted: list[str], python: str, *options: str) -> str:
        wishes.append(wanted)
        if not options:
            return f"# comment\n{RESOLVED[python]}"
        return "".join(f"{pin if pin.startswith('bare') else hashed(pin)}\n" for pin in wanted)

    monkeypatch.setattr(lists, "_compile", compile_)
    return wishes


def test_merging_marks_what_not_all_pythons_have() -> None:
    """A line of every Python stands once; another says which Python it is for."""
    merged = lists._merge({"3.11": ["a==1", "b==1"], "3.12": ["a==1", "b==2", "c==1"]})
    assert sorted(merged) == [
        "a==1",
        "b==1 ; python_version == '3.11'",
        "b==2 ; python_version == '3.12'",
        "c==1 ; python_version == '3.12'",
    ]


def test_each_line_gets_its_hashes(asked: list[list[str]]) -> None:
    """A marker stays, the index is asked per Python, and torch's CPU build, which has none, is not asked for."""
    lines = ["a==1", "b==1 ; python_version == '3.11'", "b==2 ; python_version == '3.12'", "torch==2.13.0+cpu"]
    made = lists.with_hashes(lines)
    assert asked == [["a==1", "b==1"], ["a==1", "b==2"]]
    assert made == [
        hashed("a==1"),
        hashed("b==1").replace("b==1 \\", "b==1 ; python_version == '3.11' \\"),
        hashed("b==2").replace("b==2 \\", "b==2 ; python_version == '3.12' \\"),
        "torch==2.13.0+cpu",
    ]


def test_a_package_without_a_hash_is_refused(asked: list[list[str]]) -> None:
    """It would be installed whatever a mirror hands out."""
    with pytest.raises(EnvironmentProblem, match=r"The index gives no hash of bare==1, "):
        lists.with_hashes(["a==1", "bare==1"])


def test_the_list_for_cuda(asked: list[list[str]]) -> None:
    """All that was resolved, accelerations asked for, under a head that says what it is for."""
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
    """What needs CUDA is left out, torch is the CPU build on Linux, and its index is named."""
    text = lists.pin("9.9", "cpu")
    assert asked[0] == ["fms-hf-tuning==9.9", lists.ACCELERATION, *lists.UNDECLARED]
    assert text.splitlines()[3] == f"# index: {lists.CPU_INDEX}"
    assert [line.split(" \\")[0] for line in text.splitlines() if "==" in line and line[0] not in "# "] == [
        "fms-hf-tuning==9.9",
        "numpy==1.26.4 ; python_version == '3.11'",
        "numpy==2.0.0 ; python_version == '3.12'",
        f"torch=={lists.CPU_TORCH} ; sys_platform != 'linux'",
        f"torch=={lists.CPU_TORCH}+cpu ; sys_platform == 'linux'",
    ]


def test_a_wrong_output_is_said_before_resolving(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent, a file, or not to be written to: one message, and nothing is resolved."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "absent", tmp_path / "file", Path("/proc/self")):
        monkeypatch.setattr(sys, "argv", ["environments", "9.9", "--output", str(place)])
        with pytest.raises(SystemExit, match=rf"^Nothing can be written to {place} \(.+\); give another --output\.$"):
            lists.main()
    assert asked == []


def test_both_lists_are_written(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file for each variant, whose path is printed."""
    monkeypatch.setattr(sys, "argv", ["environments", "9.9", "--output", str(tmp_path)])
    lists.main()
    made = [str(tmp_path / f"fms-hf-tuning-9.9-{variant}.txt") for variant in lists.VARIANTS]
    assert capsys.readouterr().out.splitlines() == made
    assert sorted(map(str, tmp_path.iterdir())) == sorted(made)
