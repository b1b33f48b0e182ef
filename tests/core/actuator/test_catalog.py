"""Experiments derived from the workload's fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ado.modules.actuators.errors import UnknownActuatorError
from ado.modules.actuators.registry import ActuatorRegistry
from ado.schema.reference import ExperimentReference

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.metrics.benchmark import OUTPUTS
from ado_actuators.sfttrainer.core.workload.experiments import KINDS
from ado_actuators.sfttrainer.core.workload.fields import Workload

pytestmark = pytest.mark.ray

EXPERIMENTS = SFTTrainer.catalog().experiments


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.identifier)
def test_required_properties(experiment: Any) -> None:
    """Every throughput experiment needs the same four properties."""
    required = [one.identifier for one in experiment.requiredProperties]
    assert required == ["model_name", "model_max_length", "batch_size", "number_gpus"]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.identifier)
def test_defaults_are_the_workloads_and_in_their_domains(experiment: Any) -> None:
    """The default of each optional property comes from Workload and lies in its domain."""
    given = {value.property.identifier: value.value for value in experiment.defaultParameterization}
    for one in experiment.optionalProperties:
        default = Workload.model_fields[one.identifier].default
        assert given[one.identifier] == default
        assert one.propertyDomain.valueInDomain(default), one.identifier


def test_every_output_is_declared() -> None:
    """An experiment returns the outputs of its kind; all benchmarks return the same properties."""
    for experiment in EXPERIMENTS:
        expected = OUTPUTS if experiment.identifier.endswith("_benchmark") else KINDS[experiment.identifier].outputs
        assert [one.identifier for one in experiment.targetProperties] == list(expected)


def test_adapter_properties_belong_to_adapter_experiments() -> None:
    """A full fine-tuning has no LoRA rank."""
    by_name = {one.identifier: {p.identifier for p in one.optionalProperties} for one in EXPERIMENTS}
    assert "r" not in by_name["finetune_full_benchmark"]
    assert "r" in by_name["finetune_lora_benchmark"]


def test_no_domain_is_too_large_to_be_listed() -> None:
    """Discrete domains are small enough, since ado lists all their values."""
    for experiment in EXPERIMENTS:
        for one in [*experiment.requiredProperties, *experiment.optionalProperties]:
            if one.propertyDomain.variableType.value == "DISCRETE_VARIABLE_TYPE":
                low, high = one.propertyDomain.domainRange
                assert high - low <= 2**20, one.identifier


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("target_ci_percent", [0, 2.5, 100], [-0.1, 100.1]),
        ("stop_after_seconds", [0, 604_800], [604_801]),
        ("lora_dropout", [0, 0.999], [1]),
    ],
)
def test_bounds_are_the_workloads(name: str, taken: list[float], refused: list[float]) -> None:
    """A domain has exactly the values that the workload accepts, the upper bound included."""
    (found,) = (
        one.propertyDomain
        for experiment in EXPERIMENTS
        if experiment.identifier == "finetune_lora_benchmark"
        for one in experiment.optionalProperties
        if one.identifier == name
    )
    assert [found.valueInDomain(value) for value in (*taken, *refused)] == [True] * len(taken) + [False] * len(refused)


def test_every_free_string_has_bounds() -> None:
    """Every text property has a limited length."""
    free = {name: field.metadata for name, field in Workload.model_fields.items() if field.annotation is str}
    assert [name for name, rules in free.items() if not any(hasattr(rule, "max_length") for rule in rules)] == []


def test_descriptions_show_in_templates() -> None:
    """No description has square brackets, since ado's templates lose them."""
    assert not [name for name, field in Workload.model_fields.items() if "[" in (field.description or "[")]


def test_every_output_is_documented() -> None:
    """The page on metrics has a row for each property."""
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    assert not [name for name, meaning in OUTPUTS.items() if f"| `{name}` | {meaning} |" not in page]


def test_ados_warning_about_ibms_actuator_names_convert(caplog: pytest.LogCaptureFixture) -> None:
    """A study of IBM's actuator in an environment without it: ado's warning says what to do; other warnings stay as they are."""
    registry = ActuatorRegistry.globalRegistry()
    for name in ("SFTTrainer", "nonsense"):
        with pytest.raises(UnknownActuatorError):
            registry.experimentForReference(
                ExperimentReference(
                    actuatorIdentifier=name, experimentIdentifier="finetune_full_benchmark", experimentVersion="1.0.0"
                )
            )
    messages = [record.getMessage() for record in caplog.records if record.name == "registry"]
    assert messages == [
        (
            "No actuator registered called SFTTrainer, which is IBM's. "
            "ado-fms-hf-tuning convert FILE translates studies of IBM's actuator SFTTrainer."
        ),
        "No actuator registered called nonsense",
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"experimentVersion": "9.0.0"},
            "Cannot find experiment finetune_full_benchmark from actuator sfttrainer in catalog",
        ),
        (
            {"name": "stop_after_second"},
            "parameterized properties not in optionalProperties list. Missing: ['stop_after_second']",
        ),
    ],
)
def test_what_ado_says_about_a_wrong_space_is_in_troubleshooting(change: dict[str, str], sentence: str) -> None:
    """ado's traceback ends in these sentences, which users look for in docs/troubleshooting.md."""
    name = change.pop("name", "stop_after_seconds")
    asked: Any = {
        "actuatorIdentifier": "sfttrainer",
        "experimentIdentifier": "finetune_full_benchmark",
        "experimentVersion": "1.0.0",
        "parameterization": [{"property": {"identifier": name}, "value": 20}],
        **change,
    }
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ExperimentReference.model_validate(asked).validate_parameterization()
    page = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
    assert sentence.split(" finetune")[0].split(": [")[0] in page
