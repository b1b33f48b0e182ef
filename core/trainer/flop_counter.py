"""FLOP of models without a formula, counted by PyTorch on the meta device. Imports torch and transformers.

A forward pass over two lengths tells what grows with the number of tokens and what with its square. Convolutions are left out, as in the
formulas.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto import modeling_auto

from ..protocol import supported
from . import modalities

LENGTHS = (64, 128)


def facts(config: Any, *, images: bool = False) -> dict[str, Any]:
    """Return the fact ``counted_flops`` of a model whose type has no formula; empty for other types, or if it cannot be counted.

    The fact has the FLOP of a token's forward pass (``token``), and those of attention for each pair of positions (``pair``), without a
    mask. Images are not counted; a model with a vision part is counted for text. If a stack trains a model that does not come from
    transformers, nothing is counted.
    """
    if not isinstance(config, transformers.PretrainedConfig):
        return {}
    text = config.get_text_config()
    if images or {config.model_type, text.model_type if modalities.sees(config) else ""} & supported.FLOPS_KNOWN:
        return {}
    # text parts that have no class of their own are counted in the whole model, through whose vision part text does not pass
    whole = modalities.sees(config) and text.model_type not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    counted = config if whole else text
    found = next((both for masked in (False, True) if (both := _both(counted, masked=masked))), None)
    if found is None:
        return {}
    (short, long), (first, second) = found, LENGTHS
    # F(L) = token·L + pair·L²
    pair = (long / second - short / first) / (second - first)
    return {"counted_flops": {"token": short / first - pair * first, "pair": pair}}


def _both(config: transformers.PretrainedConfig, *, masked: bool) -> tuple[float, float] | None:
    try:
        first, second = (_forward(config, length, masked=masked) for length in LENGTHS)
    except Exception:  # code of any model can fail without values; the result says that the FLOPs are not known
        return None
    return first, second


def note(config: transformers.PretrainedConfig) -> str:
    """Return the remark for the user that belongs to ``facts``."""
    return f"FLOPs of model type {config.model_type} were counted by PyTorch on the meta device, sliding windows as full attention."


def _forward(config: transformers.PretrainedConfig, length: int, *, masked: bool) -> float:
    config = copy.deepcopy(config)
    config.use_cache = True
    # the other implementations need values
    config._experts_implementation = "batched_mm"
    with torch.device("meta"):
        model = modalities.loader(config).from_config(config, attn_implementation="eager")
        ids = torch.zeros(1, length, dtype=torch.long)
    # without a cache and a mask transformers looks into the positions for packed documents, which have no values here
    everything = torch.ones(1, length, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, **({"attention_mask": everything} if masked else {}))
    counts = counter.get_flop_counts()["Global"]
    return float(sum(number for name, number in counts.items() if "convolution" not in str(name)))
