"""The command line that both plugins share."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.reporting.comparison import Tolerance

COMMANDS = ("run", "report", "compare", "doctor", "dataset", "convert", "plan")
LOADED = """
import sys
from ado_actuators.{plugin}.__main__ import main
for command in {commands}:
    words = [command, "text", "--help"] if command == "dataset" else [command, "--help"]
    print("status", main(words))
print("loaded:", *[name for name in ("ado", "ray", "torch", "pydantic", "matplotlib") if name in sys.modules])
"""


@pytest.mark.parametrize("plugin", ["sfttrainer", "fms_hf_tuning"])
def test_help_is_fast_and_has_an_example(plugin: str) -> None:
    """Help imports neither ado, Ray nor torch, and shows each command as a user types it."""
    code = LOADED.format(plugin=plugin, commands=COMMANDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"ado-{plugin.replace('_', '-')} {command} " in done.stdout
    assert done.stdout.count("status 0") == len(COMMANDS)
    assert done.stdout.splitlines()[-1] == "loaded:"
    # a line that the terminal breaks would be two commands when it is pasted
    for shown in re.findall(r"^ Examples?: *\n(.*?)^╭", done.stdout, re.MULTILINE | re.DOTALL):
        assert [line for line in shown.splitlines() if line.strip() and not line.startswith(("   ado-", "     "))] == []


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of the plugin names every command."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in COMMANDS)


def test_help_shows_the_tolerances_of_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    """The command's defaults are those of the comparison."""
    assert main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"[default: {Tolerance.throughput}]" in shown
    assert f"[default: {Tolerance.memory}]" in shown


@pytest.mark.parametrize(
    "words", [["run"], ["run", "a=1", "--colour"], ["report", "a", "--format", "pdf"], ["measure"]]
)
def test_a_usage_error_has_its_own_status(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A missing argument, an unknown option, value or command: status 2, the usage and no traceback."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: " in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.ray
def test_options_may_stand_between_properties(capsys: pytest.CaptureFixture[str]) -> None:
    """Properties after an option are read as well."""
    experiment = ["--experiment", "finetune_lora_benchmark"]
    words = ["model_name=tiny-llama-5m", *experiment, "model_max_length=8", "--json", "batch_size=3", "number_nodes=2"]
    assert main(["run", *words, "number_gpus=0"]) == 1
    assert '"reason": "batch_size 3 is not divisible by 2 processes."' in capsys.readouterr().out


@pytest.mark.ray
def test_a_closed_pipe_is_not_an_error() -> None:
    """The exit status is that of the measurement, and nothing is printed about the pipe."""
    words = "run model_name=tiny-llama-5m model_max_length=8 batch_size=3 number_gpus=0 number_nodes=2 --json"
    command = f"{sys.executable} -m ado_actuators.sfttrainer {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.ray
def test_shells_complete_names() -> None:
    """Names of experiments after the option, else names of properties."""
    for words, expected in (
        ("ado-sfttrainer run --experiment finetune_l", "finetune_lora_benchmark"),
        ("ado-sfttrainer run batch_s", "batch_size="),
    ):
        code = "import sys; sys.argv[0] = 'ado-sfttrainer'; from ado_actuators.sfttrainer.__main__ import main; main()"
        environ = {
            "_ADO_SFTTRAINER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.split() == [expected]


def shell(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the shell whose ``$0`` is Python."""
    command = ["/bin/sh", "-c", script, sys.executable, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_run_with_closed_streams(tmp_path: Path) -> None:
    """The exit status is that of the same command with open streams, and nothing is written to the wrong one."""
    words = ["model_name=tiny-llama-5m", "model_max_length=8", "batch_size=512", "number_gpus=512"]
    done = shell('exec "$0" -m ado_actuators.sfttrainer run "$@" <&- 2>&-', *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_command_in_a_directory_that_was_removed(tmp_path: Path) -> None:
    """One sentence and the status of a usage error."""
    (tmp_path / "gone").mkdir()
    done = shell('cd gone && rmdir ../gone && exec "$0" -m ado_actuators.sfttrainer report x.csv', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "The current directory does not exist any more; change to another one.\n"
