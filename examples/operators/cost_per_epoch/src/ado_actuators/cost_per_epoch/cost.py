"""What ado calls for the experiment cost_per_epoch, and the arithmetic."""

from __future__ import annotations

from typing import Any

from ado.schema.observed_property import ObservedPropertyValue


def derive(
    *, dataset_tokens_per_second: float, number_gpus: float, tokens_per_epoch: float, usd_per_device_hour: float
) -> dict[str, float]:
    """Return hours and USD of an epoch.

    Args:
        dataset_tokens_per_second: measured throughput of all devices, tokens without padding per second.
        number_gpus: devices; 0: one machine without GPUs.
        tokens_per_epoch: tokens of the data set without padding.
        usd_per_device_hour: price of a device for an hour.
    """
    hours = tokens_per_epoch / dataset_tokens_per_second / 3600
    return {"hours_per_epoch": hours, "usd_per_epoch": hours * max(1, number_gpus) * usd_per_device_hour}


def measure(entity: Any, experiment: Any) -> list[ObservedPropertyValue]:
    """Derive the properties of an entity that has been measured.

    Raises:
        ValueError: the entity has no throughput: it did not run.
    """
    derived = derive(**experiment.propertyValuesFromEntity(entity, target=True))
    return [
        ObservedPropertyValue(property=experiment.observedPropertyForTargetIdentifier(name), value=value)
        for name, value in derived.items()
    ]
