"""The main job as a user runs it: a real ado operation with real Ray, ado's SQLite store and TRL."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.reporting import read

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")

pytestmark = pytest.mark.timeout(420)


def ado(*arguments: str, cwd: Path) -> str:
    """Run ado and return what it printed."""
    done = subprocess.run(
        [ADO, *arguments], cwd=cwd, capture_output=True, text=True, timeout=400, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


ROOT = Path(__file__).parents[2]
DIRECTORIES = [
    "sfttrainer/examples",
    "sfttrainer/examples/memory_estimate",
    "fms_hf_tuning/examples",
    "fms_hf_tuning/examples/compare_stacks",
]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_examples_pass_ados_dry_run(directory: str, tmp_path: Path) -> None:
    """ado itself accepts the space, the operation on it, and the configuration."""
    here = ROOT / directory
    ado("create", "space", "-f", str(here / "space.yaml"), "--dry-run", cwd=tmp_path)
    ado(
        "create",
        "operation",
        "-f",
        str(here / "operation.yaml"),
        "--with",
        f"space={here / 'space.yaml'}",
        "--dry-run",
        cwd=tmp_path,
    )
    if (here / "actuatorconfiguration.yaml").exists():
        ado(
            "create", "actuatorconfiguration", "-f", str(here / "actuatorconfiguration.yaml"), "--dry-run", cwd=tmp_path
        )


QUESTIONS = sorted(path.parent.name for path in (ROOT / "examples" / "questions").glob("*/space.yaml"))


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_pass_ados_dry_run(question: str, tmp_path: Path) -> None:
    """ado makes the space and accepts the operation on it."""
    here = ROOT / "examples" / "questions" / question
    arguments = ["-f", str(here / "operation.yaml"), "--with", f"space={here / 'space.yaml'}", "--dry-run"]
    if (here / "actuatorconfiguration.yaml").exists():
        arguments += ["--with", f"actuatorconfiguration={here / 'actuatorconfiguration.yaml'}"]
    printed = ado("create", "operation", *arguments, cwd=tmp_path)
    assert "The configuration passed is valid!" in printed


@pytest.mark.parametrize(("directory", "actuator"), [("sfttrainer", SFTTrainer), ("fms_hf_tuning", FMSHFTuning)])
def test_the_example_point_is_in_the_experiments_domains(directory: str, actuator: Any) -> None:
    """ado has no dry run for points: the experiment exists, and each value lies in its property's domain."""
    point = yaml.safe_load((ROOT / directory / "examples" / "point.yaml").read_text())
    (reference,) = point["experiments"]
    (experiment,) = [
        one for one in actuator.catalog().experiments if one.identifier == reference["experimentIdentifier"]
    ]
    assert (experiment.actuatorIdentifier, experiment.version) == (
        reference["actuatorIdentifier"],
        reference["experimentVersion"],
    )
    assert {one.identifier for one in experiment.requiredProperties} == set(point["entity"])
    assert all(
        one.propertyDomain.valueInDomain(point["entity"][one.identifier]) for one in experiment.requiredProperties
    )


def test_ados_template_makes_a_space_that_works(tmp_path: Path) -> None:
    """What ``ado template`` writes for an experiment passes ado's own dry run."""
    experiment = "sfttrainer.finetune_full_stability"
    ado("template", "space", "--from-experiment", experiment, "--output-file", "space.yaml", cwd=tmp_path)
    ado("create", "space", "-f", "space.yaml", "--dry-run", cwd=tmp_path)


def test_an_operation_measures_every_entity(tmp_path: Path) -> None:
    """Of eight entities four have an unknown model: four are measured, and each of the others gets its answer."""
    space = tmp_path / "space.yaml"
    space.write_text(
        (EXAMPLES / "space.yaml")
        .read_text()
        .replace("[tiny-llama-5m, smollm2-135m]", "[tiny-llama-5m, tiny-lama-5m]")
        .replace("values: [64]", "values: [16, 32]")
        .replace("value: 20", "value: 5")
    )
    printed = ado(
        "create", "operation", "-f", str(EXAMPLES / "operation.yaml"),
        "--with", f"space={space}", "--with", f"actuatorconfiguration={EXAMPLES / 'actuatorconfiguration.yaml'}",
        "--set", "operation.parameters.batchSize=2",
        cwd=tmp_path,
    )  # fmt: skip
    operation = re.findall(r"random_walk@[\w.]+-[0-9a-f]+", printed)[-1]
    ado("show", "measurements", "operation", operation, "-o", "csv", "--output-file", "out.csv", cwd=tmp_path)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    known = [row for row in rows if row["model_name"] == "tiny-llama-5m"]
    unknown = [row for row in rows if row["model_name"] == "tiny-lama-5m"]
    assert [float(row["is_valid"]) for row in known] == [1.0] * 4
    assert all(float(row["dataset_tokens_per_second"]) > 0 for row in known)
    assert all(float(row["loss_finite"]) == 1 for row in known)
    assert len({row["reason"] for row in unknown}) == 1
    assert "tiny-llama-5m" in unknown[0]["reason"]
    # what the store holds is what was exported, and more: the steps themselves
    stored, exported = read.rows(operation), read.rows(str(tmp_path / "out.csv"))
    assert [(row.key, row.outputs) for row in stored] == [(row.key, row.outputs) for row in exported]
    steps = [
        (len(row.metadata["step_s"]), row.outputs["warmup_steps"] + row.outputs["measured_steps"])
        for row in stored
        if row.state == "measured"
    ]
    assert len(steps) == 4
    assert all(raw == counted for raw, counted in steps)
    assert {row.source for row in read.rows("latest")} == {operation}
