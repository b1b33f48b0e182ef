"""The examples for ado's other operators: spaces that ado knows, and an experiment that derives from ours."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ado.modules.actuators.catalog import ActuatorCatalogExtension
from ado.schema.experiment import Experiment
from ado.schema.observed_property import ObservedPropertyValue
from ado.schema.point import SpacePoint
from ado.schema.result import ValidMeasurementResult

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.workload.outputs import OUTPUTS

EXAMPLES = Path(__file__).parents[2] / "examples" / "operators"
COST = EXAMPLES / "cost_per_epoch"
SPACES = sorted(path.parent.name for path in EXAMPLES.glob("*/space.yaml"))

pytestmark = pytest.mark.ray


def content(path: Path) -> Any:
    """Return a YAML file."""
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("example", SPACES)
def test_every_value_of_an_example_can_be_measured(example: str) -> None:
    """Each dimension's values, one after the other, with what the experiment fixes; none equals a default."""
    space = content(EXAMPLES / example / "space.yaml")
    (ours,) = [one for one in space["experiments"] if one["actuatorIdentifier"] == "sfttrainer"]
    fixed = {item["property"]["identifier"]: item["value"] for item in ours["parameterization"]}
    experiment = next(one for one in SFTTrainer.catalog().experiments if one.identifier == ours["experimentIdentifier"])
    defaults = {one.property.identifier: one.value for one in experiment.defaultParameterization}
    assert not [name for name, value in fixed.items() if defaults[name] == value]
    dimensions = {one["identifier"]: one["propertyDomain"]["values"] for one in space["entitySpace"]}
    first = {name: values[0] for name, values in dimensions.items()}
    for name, values in dimensions.items():
        for value in values:
            make_plan("sfttrainer", ours["experimentIdentifier"], fixed | first | {name: value})


def test_operators_look_at_properties_that_exist() -> None:
    """The metric of the optimizer, and what the predictive model learns."""
    tune = content(EXAMPLES / "ray_tune" / "operation.yaml")["operation"]["parameters"]["tuneConfig"]
    trim = content(EXAMPLES / "trim" / "operation.yaml")["operation"]["parameters"]
    assert {tune["metric"], trim["targetOutput"]} <= OUTPUTS.keys()


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the module of the derived experiment, which is not installed."""
    monkeypatch.syspath_prepend(str(COST / "src" / "ado_actuators"))
    yield importlib.import_module("cost_per_epoch.cost")
    for name in [name for name in sys.modules if name.startswith("cost_per_epoch")]:
        del sys.modules[name]


@pytest.fixture
def derived() -> Experiment:
    """Return the experiment, as ado reads it."""
    path = COST / "src" / "ado_actuators" / "cost_per_epoch" / "custom_experiments.yaml"
    return ActuatorCatalogExtension.model_validate(content(path)).experiments[0]


def test_the_cost_of_an_epoch_is_derived_from_a_measurement(cost: ModuleType, derived: Experiment) -> None:
    """A billion tokens at a million a second and 2 USD a device-hour, on four devices."""
    needed = next(one for one in derived.requiredProperties if hasattr(one, "targetProperty"))
    entity = SpacePoint(entity={"number_gpus": 4}).to_entity()
    throughput = ObservedPropertyValue(property=needed, value=1e6)
    entity.add_measurement_result(ValidMeasurementResult(entityIdentifier=entity.identifier, measurements=[throughput]))
    found = {one.property.targetProperty.identifier: one.value for one in cost.measure(entity, derived)}
    hours = 1e9 / 1e6 / 3600
    assert found == {"hours_per_epoch": pytest.approx(hours), "usd_per_epoch": pytest.approx(hours * 4 * 2)}


def test_the_derived_experiment_asks_for_what_the_space_measures(derived: Experiment) -> None:
    """ado finds a result only under the same experiment, version and parameterization."""
    needed = next(one for one in derived.requiredProperties if hasattr(one, "targetProperty"))
    measured = content(COST / "space.yaml")["experiments"][0]
    asked = needed.experimentReference
    assert (asked.actuatorIdentifier, asked.experimentIdentifier) == (
        measured["actuatorIdentifier"],
        measured["experimentIdentifier"],
    )
    assert [(one.property.identifier, one.value) for one in asked.parameterization] == [
        (item["property"]["identifier"], item["value"]) for item in measured["parameterization"]
    ]
