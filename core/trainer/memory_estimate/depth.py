"""Makes two shallow versions of a deep model, from whose traces that of the deep model is computed. Imports torch and transformers.

Layers are compared on the meta device: module by module, with their classes, shapes and settings. The first layers may differ. If the
others repeat with a period (one layer in most models, six in Gemma 3), two models are enough: one with two periods and one with three,
under FSDP2 one with three and one with four.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from ...protocol.messages import Job
from .. import configuration, modalities
from ..errors import BadInput, Refused

# attributes that hold the index of a layer and have no other effect
NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "idx", "block_idx")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# with fewer periods no layer has layers of the same kind on both sides. Under FSDP2 the first layer's backward pass gathers the
# embedding in advance, and the last one's frees the buffer of the output layer: only a third one is like those of a deep model
PERIODS, PERIODS_OF_FSDP2 = 2, 3


@dataclasses.dataclass(frozen=True)
class Depths:
    """Two shallow versions of a deep model.

    Attributes:
        shallow: the configuration with fewer layers.
        deep: the configuration with one period more.
        times: number of periods by which the deep model exceeds ``shallow``.
        architecture: the configuration of the deep model.
    """

    shallow: dict[str, Any]
    deep: dict[str, Any]
    times: int
    architecture: dict[str, Any]


def depths(job: Job) -> Depths | None:
    """Return the shallow versions of a job's model; None if its layers do not repeat, or are too few to save time."""
    # layers that differ only in what is recomputed cannot be told apart in a trace
    if job.trust_remote_code or job.workload.gradient_checkpointing_every_n_layers > 1:
        return None
    try:
        config = configuration.read(job)
        layers = config.get_text_config().num_hidden_layers
        kinds = _kinds(config, layers)
        periods = PERIODS_OF_FSDP2 if job.workload.distributed_backend == "FSDP2" else PERIODS
        found = _period(kinds, periods)
        if found is None:
            return None
        head, period = found
        least = head + periods * period + (layers - head) % period
        if 2 * least + period >= layers:
            return None
        given = job.architecture or config.to_dict()
        cut = [_cut(given, layers, few) for few in (least, least + period)]
        for few, architecture in zip((least, least + period), cut, strict=True):
            if _kinds(transformers.AutoConfig.for_model(**copy.deepcopy(architecture)), few) != kinds[:few]:
                return None
    except (
        LookupError,
        ValueError,
        AttributeError,
        RuntimeError,
        OSError,
        ImportError,
        StrictDataclassError,
        Refused,
        BadInput,
    ):
        # the whole model is traced instead, which raises the error of an invalid configuration
        return None
    return Depths(cut[0], cut[1], (layers - least) // period, config.to_dict())


def _kinds(config: Any, layers: int) -> list[Hashable]:
    """Return for each layer a value that is equal for layers of the same kind.

    Raises:
        LookupError: the model has no ``ModuleList`` of that many layers.
    """
    with torch.device("meta"):
        model = modalities.loader(config).from_config(config)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return [tuple(_settings(layer)) for layer in module]
    raise LookupError(f"The model has no ModuleList of {layers} layers.")


def _settings(layer: torch.nn.Module) -> Iterator[Hashable]:
    for name, module in layer.named_modules():
        shapes = tuple((key, tuple(one.shape), str(one.dtype)) for key, one in module.named_parameters(recurse=False))
        plain = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (int, float, str, bool, type(None))) and key not in NUMBERS
        )
        yield name, type(module).__name__, shapes, plain


def _period(kinds: list[Hashable], periods: int) -> tuple[int, int] | None:
    """Return the number of layers before the repeating ones, and the period of the repetition; None with too few to repeat ``periods``."""
    # numbers instead of the long descriptions, since each is compared many times
    known: dict[Hashable, int] = {}
    same = [known.setdefault(kind, len(known)) for kind in kinds]
    count = len(kinds)
    options = (
        (head, period)
        for period in range(1, count // (periods + 2) + 1)
        for head in range(count - (periods + 2) * period + 1)
        if same[head : count - period] == same[head + period :]
    )
    return min(options, key=lambda one: one[0] + (periods + 1) * one[1], default=None)


def _cut(architecture: dict[str, Any], layers: int, few: int) -> dict[str, Any]:
    """Return a configuration with only the first ``few`` of its ``layers``."""

    def shortened(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _cut(value, layers, few) if key == "text_config" else value
        if key in COUNTS and value == layers:
            return few
        if isinstance(value, list) and len(value) == layers:
            return value[:few]
        if isinstance(value, list) and value and "layer" in key and all(type(one) is int for one in value):
            return [one for one in value if one < few]
        return value

    return {key: shortened(key, value) for key, value in architecture.items()}
