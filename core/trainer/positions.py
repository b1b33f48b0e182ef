"""The positions of a model: how many a workload needs, and models that have a table of them. Imports torch."""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch

from ..protocol.messages import JobWorkload
from .errors import Refused

# names of the number in configurations; many models map max_position_embeddings to their own name
_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
# the first positions of these models' tables belong to padding
_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm")
# the table of these models is not in the model, but is made in each pass with the number in the configuration
_MADE_IN_EACH_PASS = ("mpt",)
# most rows that a table of positions may have in addition to the model's positions
_MOST_EXTRA = 8
_TABLE = re.compile(r"pos_|_pos\b|position|wpe")
_MASK = re.compile(r"(attn|attention)\.(bias|causal_mask|mask)$")


def needed(workload: JobWorkload) -> int:
    """Return the positions of a sample, those of virtual tokens included."""
    return workload.model_max_length + _virtual(workload)


def _virtual(workload: JobWorkload) -> int:
    return workload.num_virtual_tokens if workload.method == "prompt_tuning" else 0


def provide(config: Any, workload: JobWorkload) -> None:
    """Raise the number of positions in the configuration of a model with random weights to what the workload needs.

    With random weights a longer table of positions takes the time and memory of a model published with that length.
    """
    wanted = needed(workload)
    if config.model_type in _AFTER_PADDING:
        wanted += (config.pad_token_id or 0) + 1
    for name in _NAMES:
        stated = getattr(config, name, None)
        if isinstance(stated, int) and 0 < stated < wanted:
            setattr(config, name, wanted)


def check(network: torch.nn.Module, workload: JobWorkload) -> None:
    """Check that a sample is no longer than a model's table of positions.

    Raises:
        Refused: it is longer.
    """
    most = limit(network)
    if most is None or needed(workload) <= most:
        return
    virtual = _virtual(workload)
    sample = f"model_max_length {workload.model_max_length}" + (f" plus {virtual} virtual tokens" if virtual else "")
    raise Refused(
        f"{sample} is more than the model's {most} positions; use model_max_length {max(0, most - virtual)} or less."
    )


def limit(network: torch.nn.Module) -> int | None:
    """Return the number of positions in a model's table, learned or not; None for a model that computes them, as with RoPE."""
    config: Any = network.config.get_text_config()
    stated = next((one for name in _NAMES if isinstance(one := getattr(config, name, None), int) and one > 0), None)
    if stated is None:
        return None
    if config.model_type in _AFTER_PADDING:
        return stated - (config.pad_token_id or 0) - 1
    if config.model_type in _MADE_IN_EACH_PASS:
        return stated
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    return stated if any(_is_table(name, tensor, stated) for name, tensor in tensors if "vision" not in name) else None


def _is_table(name: str, tensor: torch.Tensor, stated: int) -> bool:
    if not tensor.dim():
        return False
    if _MASK.search(name):
        return bool(tensor.dim() > 1 and tensor.shape[-1] == stated)
    return bool(_TABLE.search(name) and tensor.dim() > 1 and stated <= tensor.shape[0] <= stated + _MOST_EXTRA)
