"""The published studies of IBM's actuator, converted: ado accepts them, and the one for a laptop is measured."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.commands import convert
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

from ..processes import run

RECORDINGS = Path(__file__).parents[1] / "recordings" / "ibm"
ADO = str(Path(sys.executable).parent / "ado")

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(1200)]


def converted(source: Path, output: Path, actuator: str) -> Path:
    """Convert a file and return the new one."""
    options: dict[str, Any] = {"check": False, "weights": "random", "data": "", "adaptive": False}
    assert convert.main([source], actuator=actuator, output=output, **options) in (0, 1)
    return output / source.name


def dry_run(kind: str, path: Path) -> str:
    """Let ado check a file, and return what it says."""
    words = [ADO, "create", kind, "-f", str(path), "--dry-run"]
    done = run(words, cwd=path.parent, env={**os.environ, "COLUMNS": "400"}, timeout_s=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("study", ["local", "remote", "stability"])
def test_published_spaces_pass_ados_dry_run(study: str, tmp_path: Path) -> None:
    """ado knows the experiments, and no fixed value is outside its domain or equals a default."""
    printed = dry_run("space", converted(RECORDINGS / f"{study}-space.yaml", tmp_path, "fms_hf_tuning"))
    assert "The configuration passed is valid!" in printed, printed


def test_a_space_that_is_not_converted_leads_to_the_command(tmp_path: Path) -> None:
    """With the actuator's name alone changed, ado's error names what converts the rest."""
    path = tmp_path / "space.yaml"
    path.write_text((RECORDINGS / "local-space.yaml").read_text().replace("SFTTrainer", "sfttrainer"))
    assert "ado-fms-hf-tuning convert FILE" in dry_run("space", path)


def workloads(space: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the experiment and the properties of each point of a space."""
    content = yaml.safe_load(space.read_text())
    names = [one["identifier"] for one in content["entitySpace"]]
    values = [one["propertyDomain"]["values"] for one in content["entitySpace"]]
    for experiment, point in itertools.product(content["experiments"], itertools.product(*values)):
        fixed = {item["property"]["identifier"]: item["value"] for item in experiment["parameterization"]}
        yield experiment["experimentIdentifier"], dict(zip(names, point, strict=True)) | fixed


def test_the_local_study_is_measured(tmp_path: Path) -> None:
    """Both batch sizes run on the CPU, with shorter samples of one length and less time."""
    text = (RECORDINGS / "local-space.yaml").read_text()
    source = tmp_path / "space.yaml"
    source.write_text(text.replace("[512, 1024]", "[8]").replace("value: 30", "value: 1"))
    points = list(workloads(converted(source, tmp_path / "out", "sfttrainer")))
    with Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0), tmp_path / "state") as local:
        verdicts = [local.measure(make_plan("sfttrainer", name, values)) for name, values in points]
    assert [verdict.message for verdict in verdicts] == [""] * 2
    for (_, values), verdict in zip(points, verdicts, strict=True):
        assert verdict.properties["is_valid"] == 1
        assert verdict.metadata["facts"]["dtype"] == "bfloat16"
        tokens = values["batch_size"] * values["model_max_length"] * 4
        got = verdict.properties
        assert got["dataset_tokens_per_second"] * got["step_time_mean_s"] == pytest.approx(tokens)
