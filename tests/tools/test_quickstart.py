"""The quickstart's last lines, its one repetition, and its progress."""

from __future__ import annotations

import dataclasses
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.commands.arguments import read_workload
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.reporting.rows import Row
from ado_actuators.sfttrainer.description import PLUGIN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quickstart() -> dict[str, Any]:
    """Return the script's functions."""
    return runpy.run_path(str(ROOT / "tools" / "quickstart.py"))


def row(model: str, batch: int, **outputs: float) -> Row:
    """Return a measured row of the example."""
    workload = {"model_name": model, "model_max_length": 64, "batch_size": batch, "number_gpus": 0}
    return Row("s", "sfttrainer", "finetune_full_benchmark", workload, {"is_valid": 1, **outputs})


def test_the_last_lines_are_rates_with_intervals_the_picture_and_two_commands(
    quickstart: dict[str, Any], tmp_path: Path
) -> None:
    """Rates are rounded, and one of too few steps says so; paths are whole."""
    (tmp_path / "throughput-batch-size.png").touch()
    rows = [
        row(
            "tiny-llama-5m",
            2,
            dataset_tokens_per_second=2167.7,
            throughput_ci95_percent=3.21,
            cpu_memory_peak_gib=0.6723,
        ),
        row("smollm2-135m", 4, dataset_tokens_per_second=125.68, measured_steps=1, steady=0, cpu_memory_peak_gib=3.162),
    ]
    commands = [f"  {Path(sys.executable).parent}/ado-sfttrainer {words}" for words in quickstart["NEXT"]]
    assert quickstart["conclusion"](rows, tmp_path) == [
        "tiny-llama-5m, batch 2  2,168 tokens/s ± 3.2 %, 0.672 GiB",
        "smollm2-135m, batch 4   126 tokens/s, 1 step, not steady, 3.16 GiB",
        "",
        f"Picture: {tmp_path}/throughput-batch-size.png",
        f"Report:  {tmp_path}/report.html",
        "",
        "Try next:",
        *commands,
    ]


def test_rates_of_an_earlier_quickstart_or_of_a_busy_machine_are_named(
    quickstart: dict[str, Any], tmp_path: Path
) -> None:
    """A second quickstart shows stored measurements again."""
    one = row("tiny-llama-5m", 2, dataset_tokens_per_second=9.0, cpu_share_percent=21.0)
    lines = quickstart["conclusion"]([dataclasses.replace(one, replayed=True)], tmp_path)
    assert lines[1].startswith("1 of 1 workload is replayed: measured by an earlier operation")
    assert lines[2].startswith("The machine was busy during 1 of 1 workload: ")


def test_the_commands_to_try_next_can_be_planned(quickstart: dict[str, Any]) -> None:
    """Their workloads are complete; `plan` takes several GPUs where `run` takes one."""
    for line in quickstart["NEXT"]:
        command, *words = shlex.split(line)
        assert command in ("run", "plan")
        if command == "plan":
            words = [*(word.partition(",")[0] for word in words), "number_gpus=1", "batch_size=1"]
        values, experiment = read_workload(words, None, PLUGIN)
        make_plan("sfttrainer", experiment, values)


@pytest.mark.parametrize(
    ("fails", "says", "status", "runs"),
    [
        (1, "timed out during startup", 0, 2),
        (2, "timed out during startup", 3, 2),
        (1, "another reason", 3, 1),
        (0, "", 0, 1),
    ],
)
def test_only_a_slow_start_of_ray_is_repeated(
    quickstart: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: int,
    says: str,
    status: int,
    runs: int,
) -> None:
    """Once, and the reason is printed; the output of the command is passed on."""
    script = tmp_path / "ado.py"
    script.write_text(f"""
import pathlib, sys
runs = pathlib.Path({str(tmp_path / "runs")!r})
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
print("measuring")
if len(runs.read_text()) <= {fails}:
    print({says!r}, file=sys.stderr)
    sys.exit(3)
""")
    assert quickstart["run_with_retry"]([sys.executable, str(script)]) == status
    assert (tmp_path / "runs").read_text() == runs * "x"
    printed = capsys.readouterr().out
    assert printed.count("measuring") == runs
    assert printed.count(quickstart["BUSY"]) == runs - 1
