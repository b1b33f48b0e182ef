"""The run command: its output and its exit status."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.commands.arguments import BadUse, read_workload
from ado_actuators.sfttrainer.core.commands.progress import Bar, Changes
from ado_actuators.sfttrainer.core.protocol.messages import Progress, progress

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
WORDS = ["model_name=tiny-llama-5m", "model_max_length=32", "batch_size=2", "number_gpus=0"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]


def run(*words: str) -> int:
    """Run the command in this process; trainers are separate processes."""
    return main(["run", *words])


def test_a_workload_file_gives_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """The example is measured; properties on the command line override those of the file. The first line has what matters."""
    assert run(str(EXAMPLES / "workload.yaml"), "max_steps=5", "model_max_length=32", "price=2.5") == 0
    first, note, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"[\d.,]+ tokens/s ± [\d.e+]+ %, 2 steps, not steady, [\d.]+ GiB, [\d.e-]+ USD per million tokens", first
    )
    assert note == "2 steps were measured, after 3 of warm-up; a reliable rate needs 10. Raise max_steps."
    printed = "\n".join(rest)
    assert "step_time_median_s" in printed
    assert "Not measured:" in printed
    # without GPUs the rates of a GPU are those of all devices
    assert "per_gpu" not in printed


def test_json_has_properties_and_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the output is one JSON object."""
    assert run(*WORDS, "max_steps=4", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["properties"]["is_valid"] == 1
    assert printed["metadata"]["command"].startswith("ado-sfttrainer run --experiment finetune_full_benchmark ")


def test_a_relative_data_set_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers run in another directory, so the path is relative to the working directory of the command."""
    (tmp_path / "mine.jsonl").write_text('{"text": "what a model learns from"}\n')
    monkeypatch.chdir(tmp_path)
    assert run(*WORDS, "max_steps=3", "dataset_id=mine.jsonl") == 0


def test_missing_gpus_are_rejected_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command fails before a trainer starts or an environment is built."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run(*WORDS[:-1], "number_gpus=1") == 2
    printed = capsys.readouterr().err.strip()
    assert (
        printed
        == "number_gpus 1 is not possible: this machine has 0 visible NVIDIA GPUs; number_gpus 0 measures on the CPU."
    )


@pytest.mark.parametrize("plugin", ["sfttrainer", "fms_hf_tuning"])
def test_neither_ado_nor_ray_is_imported(plugin: str) -> None:
    """The command gets as far as looking for GPUs, with everything imported that measures."""
    words = [*WORDS[:-1], "number_gpus=1"]
    code = f"""
import sys
from ado_actuators.{plugin}.__main__ import main
print(main(["run", *{words}]), *sorted({{"ado", "ray", "torch"}} & set(sys.modules)))
"""
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "2\n", done.stderr
    assert done.stderr.startswith("number_gpus 1 is not possible: ")


def test_what_is_missing_is_reported_before_a_trainer_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data file that does not exist, and chats for a tokenizer without a chat template."""
    monkeypatch.setattr("ado_actuators.sfttrainer.core.host.host.TrainerProcess", None)
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    for name, expected in (("nowhere.jsonl", "does not exist; use synthetic-fixed"), (str(chats), "no chat template")):
        assert run(*WORDS, f"dataset_id={name}") == 1
        assert expected in capsys.readouterr().err


def test_a_property_of_the_other_stack_is_not_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    """A property that would have no effect is rejected."""
    assert run(*WORDS, "fast_moe=1") == 1
    assert "fast_moe is not a property of finetune_full_benchmark in sfttrainer." in capsys.readouterr().out


def test_an_impossible_workload_is_a_complete_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """The report has is_valid 0 and the reason; the exit status is 1."""
    assert run(*WORDS, "batch_size=3", "number_nodes=2") == 1
    assert "batch_size 3 is not divisible by 2 processes." in capsys.readouterr().out


def test_the_method_chooses_the_experiment() -> None:
    """Where none is named; a memory estimate has the method as a property, and an unknown one is left for the message."""
    plugin = SFTTrainer.plugin()
    assert read_workload(["method=lora", "batch_size=2"], None, plugin) == (
        {"batch_size": 2},
        "finetune_lora_benchmark",
    )
    assert read_workload(["method=full"], None, plugin) == ({}, "finetune_full_benchmark")
    for words, experiment in (
        (["method=lora"], "finetune_memory_estimate"),
        (["method=gptq_lora"], None),
        (["method=lora", "experiment=finetune_full_benchmark"], None),
    ):
        values, chosen = read_workload(words, experiment, plugin)
        assert values == {"method": words[0].partition("=")[2]}
        assert chosen == (experiment or "finetune_full_benchmark")


def test_a_point_of_ado_brings_its_experiment(tmp_path: Path) -> None:
    """The experiment that the file names is measured, and only by its own actuator."""
    entity = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 1, "number_gpus": 0}
    point = {
        "entity": entity,
        "experiments": [{"actuatorIdentifier": "sfttrainer", "experimentIdentifier": "finetune_lora_benchmark"}],
    }
    path = tmp_path / "point.yaml"
    path.write_text(json.dumps(point))
    plugin = SFTTrainer.plugin()
    assert read_workload([str(path)], None, plugin) == (entity, "finetune_lora_benchmark")
    assert read_workload([str(path)], "finetune_full_stability", plugin)[1] == "finetune_full_stability"
    point["experiments"][0]["actuatorIdentifier"] = "fms_hf_tuning"  # type: ignore[index]
    path.write_text(json.dumps(point))
    with pytest.raises(BadUse, match="is for the actuator 'fms_hf_tuning'; expected sfttrainer"):
        read_workload([str(path)], None, plugin)
    path.write_text(json.dumps({**point, "experiments": [{}, {}]}))
    with pytest.raises(BadUse, match="has 2 experiments"):
        read_workload([str(path)], None, plugin)


TRAINING: Progress = {"event": "progress", "state": "training", "step": 7, "of": 100, "tokens_per_second": 1234.5}


def test_a_terminal_has_one_bar_that_is_erased() -> None:
    """State, step, rate and time are on one line, which is erased before the report."""
    shown = io.StringIO()
    with Bar(Console(file=shown, force_terminal=True, width=120)) as bar:
        bar(progress("starting"))
        bar(TRAINING)
        bar._bars.refresh()
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert re.search(r"training, step 7 of at most 100 \S+ 1234 tok/s 0:00:0\d ", printed)
    assert "\n" not in printed.rstrip()
    assert shown.getvalue().rstrip().endswith("\x1b[2K")


def test_a_log_has_a_line_for_each_state_and_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unchanged state is printed again after half a minute."""
    now = [100.0]
    monkeypatch.setattr("ado_actuators.sfttrainer.core.commands.progress.time.monotonic", lambda: now[0])
    with Changes() as changes:
        for now[0] in (100.0, 101.0, 131.0):
            changes(TRAINING)
        changes(progress("reporting"))
    assert capsys.readouterr().err.splitlines() == [
        "training, step 7 of at most 100, 1234 tok/s",
        "training, step 7 of at most 100, 1234 tok/s",
        "reporting",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["nowhere.yaml"],
            "nowhere.yaml cannot be read: no such file or directory. Give a YAML file, or property=value.",
        ),
        (
            [*WORDS, "--config", "nowhere.yaml"],
            "nowhere.yaml cannot be read: no such file or directory. Give a YAML file of parameters.",
        ),
        (["model_name=nothing-like-it", *WORDS[1:]], "nothing-like-it"),
        (["broken.yaml"], "broken.yaml: not valid YAML at line 2."),
        (["list.yaml"], "list.yaml: expected a YAML mapping of properties to values."),
        ([*WORDS, "--config", "misspelled.yaml"], "run_timeout"),
        (
            ["twice.yaml"],
            "twice.yaml: batch_size is given twice in the mapping that begins in line 1. Remove one of them.",
        ),
        ([*WORDS, "price=-1"], "price -1 is impossible: expected a number from 0 to 1000000."),
        ([*WORDS, "=5"], "'=5' has no property before the equals sign"),
        (
            [*WORDS, "target_modules=*_proj"],
            "target_modules '*_proj' is not valid YAML; a text with special characters needs quotes inside",
        ),
        (["other.yaml"], "Experiment 'finetune_everything' does not exist"),
    ],
)
def test_bad_use_ends_in_a_message(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 2, and standard error has one line without a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("model_name: x\n  batch_size: : 2\n")
    (tmp_path / "twice.yaml").write_text("batch_size: 4\nmodel_name: m\nbatch_size: 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "misspelled.yaml").write_text("run_timeout: 3\n")
    (tmp_path / "other.yaml").write_text("experiment: finetune_everything\n")
    assert run(*words) == 2
    printed = capsys.readouterr().err.strip()
    assert expected in printed
    assert "\n" not in printed


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_its_trainers(sent: signal.Signals, status: int) -> None:
    """After SIGINT or SIGTERM there is one message, the signal's exit status, no traceback and no remaining process."""
    command = [sys.executable, "-m", "ado_actuators.sfttrainer", "run", *WORDS, "stop_after_seconds=100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        # printed once the trainer has been started
        assert running.stderr.readline()
        trainers = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(sent)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (status, "")
    assert err.splitlines()[-1] == "Interrupted. Nothing of this measurement is kept."
    assert "Traceback" not in err
    assert not psutil.wait_procs(trainers, timeout=30)[1]
