"""The run command: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.run import main
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
WORDS = ["model_name=tiny-llama-5m", "model_max_length=32", "batch_size=2", "number_gpus=0"]

pytestmark = pytest.mark.timeout(200)


def run(*words: str) -> int:
    """Run the command in this process; its trainers are processes of their own."""
    return main(SFTTrainer.plugin(), SFTTrainerParameters, list(words))


def test_a_workload_file_gives_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The example is measured; a property on the command line comes after the file's."""
    assert run(str(EXAMPLES / "workload.yaml"), "max_steps=5", "model_max_length=32") == 0
    printed = capsys.readouterr().out
    assert "step_time_median_s" in printed
    assert "Not measured:" in printed


def test_json_has_properties_and_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    """For other programs."""
    assert run(*WORDS, "max_steps=4", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["properties"]["is_valid"] == 1
    assert printed["metadata"]["command"].startswith("python -m ado_actuators.sfttrainer.run")


def test_gpus_that_are_not_here_are_refused_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a trainer starts or an environment is built."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run(*WORDS[:-1], "number_gpus=1") == 2
    printed = capsys.readouterr().err.strip()
    assert printed == "number_gpus 1, but this machine shows 0 NVIDIA GPUs; number_gpus 0 measures on the CPU."


def test_a_property_of_the_other_stack_is_not_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    """What would change nothing is refused."""
    assert run(*WORDS, "fast_moe=1") == 1
    assert "fast_moe is not a property of finetune_full_benchmark in sfttrainer." in capsys.readouterr().out


def test_an_impossible_workload_is_a_finished_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """is_valid 0 with the rule, exit status 1."""
    assert run(*WORDS, "batch_size=3", "number_nodes=2") == 1
    assert "batch_size 3 is not divisible by 2 processes." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.yaml"], "nowhere.yaml: No such file or directory."),
        ([*WORDS, "--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory."),
        (["model_name=nothing-like-it", *WORDS[1:]], "nothing-like-it"),
        (["broken.yaml"], "broken.yaml: no valid YAML at line 2."),
        (["list.yaml"], "list.yaml: expected properties and their values."),
        ([*WORDS, "--config", "misspelled.yaml"], "run_timeout"),
        (["other.yaml"], "experiment 'finetune_everything' does not exist"),
    ],
)
def test_bad_use_ends_in_a_sentence(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one line on standard error, no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("model_name: x\n  batch_size: : 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "misspelled.yaml").write_text("run_timeout: 3\n")
    (tmp_path / "other.yaml").write_text("experiment: finetune_everything\n")
    assert run(*words) == 2
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert "\n" not in printed
