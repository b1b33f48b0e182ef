"""Whether a model and a workload agree about images. Arithmetic room: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 60


def mismatch(workload: Mapping[str, Any], architecture: Mapping[str, Any]) -> str | None:
    """Return the sentence that says why images and model do not go together, or None where they do.

    Args:
        workload: its ``model_name`` and ``dataset_image_field``.
        architecture: the model's Hugging Face configuration as a dict.
    """
    name, field = str(workload["model_name"])[-_SHOWN:], workload.get("dataset_image_field")
    sees = "vision_config" in architecture
    if sees and not field:
        return f"model {name} takes images: only benchmarks of the fms_hf_tuning actuator with dataset_image_field measure it."
    if field and not sees:
        return f"model {name} takes no images: leave dataset_image_field out, or use a vision model."
    return None
