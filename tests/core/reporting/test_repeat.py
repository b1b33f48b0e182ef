"""The command that a report offers to measure a workload again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.commands.arguments import read_workload
from ado_actuators.sfttrainer.core.reporting import page, repeat
from ado_actuators.sfttrainer.core.reporting.rows import Row
from ado_actuators.sfttrainer.description import PLUGIN

Make = Callable[..., Row]


def test_the_command_has_the_workload(row: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``run`` reads the same values from it: numbers, truth values, lists, and texts that look like something else."""
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {
        "model_name": "a b", "gradient_checkpointing": True, "target_ci_percent": 0.5, "dataset_id": "1e1",
        "gpu_model": "no", "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    one = row(1.0, experiment="finetune_lora_benchmark", **given)
    program, command, *words = shlex.split(repeat.command(one))
    assert (program, command) == ("ado-sfttrainer", "run")
    assert words[:2] == ["--experiment", "finetune_lora_benchmark"]
    assert read_workload(words[2:], words[1], PLUGIN) == (one.workload, "finetune_lora_benchmark")


def test_unknown_workloads_have_no_command(row: Make) -> None:
    """Of IBM's actuator, of an experiment of another version, or with a property that is unknown here."""
    assert repeat.command(row(1.0, actuator="SFTTrainer")) == ""
    assert repeat.command(row(1.0, experiment="finetune_other")) == ""
    assert repeat.command(row(1.0, unknown=1)) == ""
    assert "<button" not in page.html([row(1.0, unknown=1), row(2.0, unknown=2)], [], [], "")


def test_failures_are_listed_once(row: Make) -> None:
    """A failed workload is in the table of failures with all its workloads, and not among the measurements."""
    rows = [row(float(size), batch_size=size) for size in (1, 2)]
    rows += [row(failed="the disk is full.", batch_size=size) for size in range(100, 120)]
    text = page.html(rows, [], [], "")
    for size in range(100, 120):
        assert len([part for part in text.split("batch ") if part.startswith(str(size))]) == 1
    measured = text.partition('id="measurements-section"')[2].partition("</section>")[0]
    assert measured.count("<tr>") == 3
