"""Real ado operations, with real Ray, ado's SQLite store and TRL."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.reporting import read
from ado_actuators.sfttrainer.core.workload.outputs import OUTPUTS

from ..processes import run

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]


def ado(*arguments: str, cwd: Path, must_end: Sequence[str] = ()) -> str:
    """Run ado and return its output; ``must_end`` as in ``run``."""
    done = run(
        [ADO, *arguments],
        cwd=cwd,
        timeout_s=400,
        env={**os.environ, "COLUMNS": "200"},
        must_end=must_end,
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


QUESTIONS = sorted(
    str(path.parent.relative_to(ROOT)) for path in (ROOT / "examples" / "questions").glob("*/space.yaml")
)
# the import of ado takes longer than a dry run: each command has a process of its own, in which ado is imported already
COMMANDS = """
import json, os, sys
from ado.cli.core.cli import app
codes = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        output = os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["ado", *arguments]
        sys.exit(app())
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def refusals(commands: dict[str, list[str]], cwd: Path) -> dict[str, str]:
    """Run ado's commands; return what those printed that failed, or are dry runs and did not say that the configuration is valid."""
    command = [sys.executable, "-c", COMMANDS, json.dumps([*commands.values()])]
    done = run(command, cwd=cwd, timeout_s=400, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [(cwd / f"{number}.txt").read_text() for number in range(len(commands))]
    codes = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        name: text
        for (name, words), code, text in zip(commands.items(), codes, printed, strict=True)
        if code or ("--dry-run" in words and "The configuration passed is valid!" not in text)
    }


def of_example(directory: str) -> dict[str, list[str]]:
    """Return the commands that make an example's space, the operation on it with its configuration, and that configuration."""
    here = ROOT / directory
    space, operation, configuration = (
        here / f"{name}.yaml" for name in ("space", "operation", "actuatorconfiguration")
    )
    with_all = ["--with", f"space={space}"]
    commands = {f"{directory} space": ["create", "space", "-f", str(space), "--dry-run"]}
    if configuration.exists():
        commands[f"{directory} configuration"] = [
            "create",
            "actuatorconfiguration",
            "-f",
            str(configuration),
            "--dry-run",
        ]
        with_all += ["--with", f"actuatorconfiguration={configuration}"] if "questions" in directory else []
    return commands | {f"{directory} operation": ["create", "operation", "-f", str(operation), *with_all, "--dry-run"]}


TEMPLATES = ("sfttrainer.finetune_full_stability", "fms_hf_tuning.finetune_lora_benchmark")


def of_template(experiment: str) -> dict[str, list[str]]:
    """Return the commands that write an experiment's template and make a dry run of it."""
    make = ["template", "space", "--from-experiment", experiment, "--output-file", f"{experiment}.yaml"]
    return {f"template {experiment}": make, experiment: ["create", "space", "-f", f"{experiment}.yaml", "--dry-run"]}


def test_examples_and_templates_pass_ados_dry_run(tmp_path: Path) -> None:
    """ado accepts the space, the operation on it, and the configuration of each example, and what it writes for an experiment itself.

    It refuses what is no space.
    """
    (tmp_path / "broken.yaml").write_text("experiments: 5\n")
    made = [*map(of_example, (*DIRECTORIES, *QUESTIONS)), *map(of_template, TEMPLATES)]
    commands = {name: words for group in made for name, words in group.items()}
    assert len(commands) >= 2 * (len(DIRECTORIES) + len(QUESTIONS) + len(TEMPLATES))
    commands["broken"] = ["create", "space", "-f", "broken.yaml", "--dry-run"]
    refused = refusals(commands, tmp_path)
    assert refused.pop("broken")
    assert refused == {}


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


def operate(tmp_path: Path, space: dict[str, Any], *settings: str, in_flight: int) -> str:
    """Measure a space with the example's operation; its trainers and hosts end with it. Return the operation's identifier."""
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    given = [word for file in settings for word in ("--with", f"actuatorconfiguration={file}")]
    printed = ado(
        "create", "operation", "-f", str(EXAMPLES / "operation.yaml"), "--with", f"space={path}", *given,
        "--set", f"operation.parameters.batchSize={in_flight}",
        cwd=tmp_path, must_end=("core/trainer", "HostActor"),
    )  # fmt: skip
    return re.findall(r"random_walk@[\w.]+-[0-9a-f]+", printed)[-1]


def experiment(actuator: str, name: str, **parameters: Any) -> dict[str, Any]:
    """Return an experiment of a space."""
    return {
        "actuatorIdentifier": actuator,
        "experimentIdentifier": name,
        "experimentVersion": "1.0.0",
        "parameterization": [{"property": {"identifier": key}, "value": value} for key, value in parameters.items()],
    }


def dimension(name: str, *values: Any) -> dict[str, Any]:
    """Return a dimension of a space."""
    kind = {"variableType": "CATEGORICAL_VARIABLE_TYPE"} if isinstance(values[0], str) else {}
    return {"identifier": name, "propertyDomain": {"values": list(values), **kind}}


# outputs that need a GPU, its driver, a known peak or a price
NOT_HERE = ("gpu_", "torch_peak_", "energy_", "usd_", "tflops_", "mfu_", "limit_")
GOOD_DATA = '{"text": "what a model learns from"}\n'


def test_an_operation_goes_on_after_entities_that_fail(tmp_path: Path) -> None:
    """Twelve entities, four in flight: an unknown model, data that are missing, malformed or empty get a message, the rest numbers."""
    data = {"good": GOOD_DATA, "malformed": GOOD_DATA + "{no json\n", "empty": "", "missing": None}
    for name, text in data.items():
        if text is not None:
            (tmp_path / f"{name}.jsonl").write_text(text)
    files = [str(tmp_path / f"{name}.jsonl") for name in data]
    space = {
        "sampleStoreIdentifier": "default",
        "experiments": [
            experiment("sfttrainer", "finetune_full_benchmark", max_steps=4, cpus_per_process=1, num_train_epochs=1)
        ],
        "entitySpace": [
            dimension("model_name", "tiny-llama-5m", "tiny-lama-5m"),
            dimension("model_max_length", 16),
            dimension("batch_size", 1),
            dimension("number_gpus", 0),
            dimension("dataset_id", "synthetic-fixed", "synthetic-uniform", *files),
        ],
    }
    operation = operate(tmp_path, space, str(EXAMPLES / "actuatorconfiguration.yaml"), in_flight=4)
    ado("show", "measurements", "operation", operation, "-o", "csv", "--output-file", "out.csv", cwd=tmp_path)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    measured = [row for row in rows if row["is_valid"] == "1.0" or row["is_valid"] == "1"]
    assert {Path(row["dataset_id"]).stem for row in measured} == {"synthetic-fixed", "synthetic-uniform", "good"}
    assert {row["model_name"] for row in measured} == {"tiny-llama-5m"}
    missing = {name for name in OUTPUTS if any(row.get(name) in (None, "", "not_measured") for row in measured)}
    # so few short steps may have no spread and no sample of the CPU
    too_short = {"step_time_cv", "throughput_ci95_percent", "cpu_compute_utilization", "cpu_share_percent"}
    too_short |= {"dataset_tokens_per_cpu_second"}
    assert {name for name in missing if not name.startswith(NOT_HERE)} <= too_short
    reasons = {Path(row["dataset_id"]).stem: row["reason"] for row in rows if row["model_name"] == "tiny-llama-5m"}
    assert "does not exist" in reasons["missing"]
    assert "Line 2 of data set" in reasons["malformed"]
    assert "is empty" in reasons["empty"]
    unknown = {row["reason"] for row in rows if row["model_name"] == "tiny-lama-5m"}
    assert len(unknown) == 1
    assert "tiny-llama-5m" in unknown.pop()
    # the store has what was exported, and the step times as well
    stored, exported = read.rows(operation), read.rows(str(tmp_path / "out.csv"))
    assert [(row.key, row.outputs) for row in stored] == [(row.key, row.outputs) for row in exported]
    steps = [
        (len(row.metadata["step_s"]), row.outputs["warmup_steps"] + row.outputs["measured_steps"])
        for row in stored
        if row.state == "measured"
    ]
    assert len(steps) == 3
    assert all(raw == counted for raw, counted in steps)
    assert {row.source for row in read.rows("latest")} == {operation}


EXPERIMENTS = {
    "sfttrainer": ("full_benchmark", "lora_benchmark", "qlora_benchmark", "prompt_tuning_benchmark"),
    "fms_hf_tuning": (
        "full_benchmark",
        "lora_benchmark",
        "prompt_tuning_benchmark",
        "qlora_benchmark",
        "gptq_lora_benchmark",
    ),
}


def test_one_study_with_every_experiment_of_both_actuators(tmp_path: Path) -> None:
    """One workload, thirteen experiments, two actuators that share two CPUs: each gives its numbers, or says what this hardware lacks."""
    asked = [
        experiment(actuator, f"finetune_{name}", max_steps=4) for actuator in EXPERIMENTS for name in EXPERIMENTS[actuator]
    ] + [
        experiment(actuator, f"finetune_{name}")
        for actuator in EXPERIMENTS
        for name in ("full_stability", "memory_estimate")
    ]  # fmt: skip
    sizes = {"model_name": "tiny-llama-5m", "model_max_length": 16, "batch_size": 2, "number_gpus": 0}
    space = {
        "sampleStoreIdentifier": "default",
        "experiments": asked,
        "entitySpace": [dimension(name, value) for name, value in sizes.items()],
    }
    operation = operate(tmp_path, space, in_flight=4)
    rows = {(row.actuator, row.experiment.removeprefix("finetune_")): row for row in read.rows(operation)}
    assert {key: row.message for key, row in rows.items() if row.state == "failed"} == {}
    assert len(rows) == 13
    for key, row in rows.items():
        if key[1].endswith("_benchmark") and row.state == "measured":
            assert row.outputs["warmup_steps"] + row.outputs["measured_steps"] == 4, key
            assert row.outputs["dataset_tokens_per_second"] > 0, key
        elif key[1] == "full_stability":
            assert (row.outputs["f_no_error"], row.outputs["f_gpu_oom"]) == (1, 0), key
        elif key[1] == "memory_estimate":
            assert 0.01 < row.outputs["memory_estimate_gib"] < 1, key
    refused = {key: row.message for key, row in rows.items() if row.state == "cannot run"}
    assert refused.pop(("fms_hf_tuning", "prompt_tuning_benchmark")).startswith(
        "Prompt tuning fails in fms-hf-tuning 3.2.2"
    )
    assert refused == {
        ("fms_hf_tuning", "qlora_benchmark"): (
            "method qlora needs mixed_precision bf16 or fp16 in fms-hf-tuning; with no use the sfttrainer actuator."
        ),
        ("fms_hf_tuning", "gptq_lora_benchmark"): "method gptq_lora needs a CUDA device, but this trainer has none.",
    }
    full = [rows[actuator, "full_benchmark"].outputs for actuator in EXPERIMENTS]
    assert full[0]["model_parameters"] == full[1]["model_parameters"] == 4_999_424
