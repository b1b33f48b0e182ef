"""Builds ado's experiments from the fields of ``Workload``: identifiers, domains, defaults and descriptions."""

from __future__ import annotations

import functools
import logging
import math
import typing
from typing import Any

from ado.modules.actuators.catalog import ExperimentCatalog
from ado.modules.actuators.errors import DeprecatedExperimentError
from ado.schema.experiment import Experiment
from ado.schema.reference import ExperimentReference
from pydantic.fields import FieldInfo

from ..workload import ibm_names, models
from ..workload.experiments import KINDS, Kind, extra, fields

VERSION = "1.0.0"


class RenamedExperimentError(DeprecatedExperimentError, ValueError):
    """An experiment of IBM's actuator. ado keeps the message of the first base class and prints the second in one line."""


class Catalogue(ExperimentCatalog):
    """Experiments of an actuator. Names of IBM's actuator raise an error that says what to do."""

    def experimentForReference(self, reference: ExperimentReference, **options: Any) -> Any:
        """Return the experiment of a reference, as ado's catalogue does.

        Raises:
            RenamedExperimentError: it is one of IBM's actuator.
        """
        name = reference.experimentIdentifier
        if name in ibm_names.EXPERIMENTS:
            raise RenamedExperimentError(
                f"{name} is an experiment of IBM's actuator; its name here is {ibm_names.EXPERIMENTS[name]}.{ibm_names.hint(name)}"
            )
        return super().experimentForReference(reference, **options)


class IbmActuatorHint(logging.Filter):
    """Completes ado's warning that it has no actuator ``SFTTrainer`` with what to do about it.

    ado looks actuators up before it calls any of them, so its log is the only place where a plugin can add to the answer.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the hint to the message of the record, and keep the record."""
        if record.getMessage() == f"No actuator registered called {ibm_names.ACTUATOR}":
            record.msg = f"{record.getMessage()}, which is IBM's.{ibm_names.hint(ibm_names.ACTUATOR)}"
            record.args = ()
        return True


# at import, since ado asks only those actuators for a catalogue that it has found
logging.getLogger("registry").addFilter(IbmActuatorHint())


@functools.cache
def experiments(actuator: str, kinds: tuple[str, ...]) -> ExperimentCatalog:
    """Return the catalogue of ``actuator`` with these kinds of experiment."""
    catalogue = Catalogue(catalogIdentifier=actuator)
    for kind in kinds:
        catalogue.addExperiment(_experiment(actuator, kind))
    return catalogue


def domain(name: str, field: FieldInfo) -> dict[str, Any]:
    """Return ado's domain of a property, derived from its type and bounds."""
    kind = field.annotation
    if kind is bool:
        return {"variableType": "CATEGORICAL_VARIABLE_TYPE", "values": [False, True]}
    if typing.get_origin(kind) is typing.Literal:
        return {"variableType": "CATEGORICAL_VARIABLE_TYPE", "values": list(typing.get_args(kind))}
    bounds = {key: getattr(rule, key) for rule in field.metadata for key in ("ge", "le", "lt") if hasattr(rule, key)}
    # ado's ranges are half-open
    if kind is int:
        return {
            "variableType": "DISCRETE_VARIABLE_TYPE",
            "interval": 1,
            "domainRange": [bounds["ge"], bounds["le"] + 1],
        }
    if kind is float:
        above = math.nextafter(bounds["le"], math.inf) if "le" in bounds else bounds["lt"]
        return {"variableType": "CONTINUOUS_VARIABLE_TYPE", "domainRange": [bounds["ge"], above]}
    values = models.names() if name == "model_name" else extra(field)["values"]
    return {"variableType": "OPEN_CATEGORICAL_VARIABLE_TYPE", "values": list(values)}


def _experiment(actuator: str, identifier: str) -> Experiment:
    kind = KINDS[identifier]
    applicable = fields(actuator, kind)
    required = {name: field for name, field in applicable.items() if field.is_required()}
    optional = {name: field for name, field in applicable.items() if not field.is_required()}
    return Experiment.model_validate(
        {
            "actuatorIdentifier": actuator,
            "identifier": identifier,
            "version": VERSION,
            "metadata": {"description": kind.description},
            "requiredProperties": [_property(name, field, kind, actuator) for name, field in required.items()],
            "optionalProperties": [_property(name, field, kind, actuator) for name, field in optional.items()],
            "defaultParameterization": [
                {"property": {"identifier": name}, "value": kind.defaults.get(name, field.default)}
                for name, field in optional.items()
            ],
            "targetProperties": [{"identifier": name} for name in kind.outputs],
        }
    )


def _property(name: str, field: FieldInfo, kind: Kind, actuator: str) -> dict[str, Any]:
    allowed = domain(name, field)
    if values := kind.allowed(name, actuator):
        allowed["values"] = list(values)
    return {"identifier": name, "metadata": {"description": field.description}, "propertyDomain": allowed}
