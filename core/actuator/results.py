"""Turns a verdict into ado's measurement result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ado.schema.observed_property import ObservedPropertyValue
from ado.schema.result import InvalidMeasurementResult, ValidMeasurementResult
from ado.utilities.support import compute_measurement_status

from ..measurement.verdict import Verdict

if TYPE_CHECKING:
    from ado.schema.entity import Entity
    from ado.schema.experiment import Experiment, ParameterizedExperiment
    from ado.schema.request import MeasurementRequest


def inputs(experiment: Experiment | ParameterizedExperiment, entity: Entity) -> dict[str, Any]:
    """Return the values of the experiment's properties for an entity; missing properties have the experiment's default."""
    return dict(experiment.propertyValuesFromEntity(entity))


def result(
    entity: Entity, request: MeasurementRequest, experiment: Experiment | ParameterizedExperiment, verdict: Verdict
) -> Any:
    """Return ado's result for an entity: valid with properties, or invalid with a reason."""
    if not verdict.properties:
        return InvalidMeasurementResult(
            entityIdentifier=entity.identifier,
            experimentReference=request.experimentReference,
            reason=verdict.message,
            metadata=verdict.metadata,
        )
    return ValidMeasurementResult(
        entityIdentifier=entity.identifier,
        # ado's own helper stores -1 for a property that was not measured; here the property is omitted
        measurements=[
            ObservedPropertyValue(value=verdict.properties[observed.targetProperty.identifier], property=observed)
            for observed in experiment.observedProperties
            if observed.targetProperty.identifier in verdict.properties
        ],
        metadata=verdict.metadata,
    )


def complete(request: MeasurementRequest, results: list[Any]) -> MeasurementRequest:
    """Return ``request`` with its results and status."""
    request.measurements = results
    request.status = compute_measurement_status(results)
    return request
