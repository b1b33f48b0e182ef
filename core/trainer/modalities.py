"""Models with a vision part, and what text trains of them. Imports torch and transformers.

Such a model is trained as the library publishes it, with its vision part, also on text alone. Text does not pass through that part: its
parameters take memory, but get no gradient and no optimizer state.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto


def sees(config: Any) -> bool:
    """Return whether a configuration has a vision part."""
    return getattr(config, "vision_config", None) is not None


def loader(config: Any) -> Any:
    """Return the class of transformers that builds the whole model of a configuration."""
    whole = sees(config) and config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM


def of_text(model: Any) -> set[torch.nn.Module]:
    """Return the modules that text passes through: all of a model without a vision part.

    Args:
        model: a model, with or without adapters.
    """
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not sees(getattr(network, "config", None)):
        return set(model.modules())
    parts = (network.get_decoder(), network.get_output_embeddings())
    return {module for part in parts if part is not None for module in part.modules()}


def notes(model: Any, *, images: bool) -> list[str]:
    """Return a remark for the user about the vision part of a model that was trained on text."""
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    if images or not sees(network.config):
        return []
    inside = {id(parameter) for module in of_text(model) for parameter in module.parameters()}
    idle = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    return [f"The vision part had no images: {idle:,} parameters were in memory, and took no part in the training."]
