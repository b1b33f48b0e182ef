"""Quantises the frozen model of QLoRA with bitsandbytes: weights of linear layers in 4 bits (NF4, FP4) or in 8 (LLM.int8). Imports torch.

transformers quantises pretrained weights while it loads them. This module quantises models with random weights, one layer at a time,
so that a GPU never holds the whole model in its original data type. As in transformers, the output layer is not quantised.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from ..protocol import supported
from ..protocol.messages import JobWorkload
from .errors import BadInput

# activations above it are multiplied in 16 bits; the default of transformers
OUTLIERS_FROM = 6.0


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How linear layers are stored.

    Attributes:
        kind: ``nf4``, ``fp4`` or ``int8``.
        double: whether the scales of 4-bit weights are quantised, too.
        dtype: type of matrix products with 4-bit weights.
    """

    kind: str
    double: bool
    dtype: torch.dtype

    @property
    def is_int8(self) -> bool:
        """Whether weights have 8 bits."""
        return self.kind == "int8"


def scheme(workload: JobWorkload) -> Scheme:
    """Return how a workload's linear layers are stored."""
    return Scheme(workload.quantisation, workload.double_quantisation, getattr(torch, workload.torch_dtype))


def check_installed() -> None:
    """Check that bitsandbytes is installed.

    Raises:
        BadInput: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            supported.lacks_package("method qlora", "bitsandbytes", "install it with pip install bitsandbytes")
        )


def configuration(asked: Scheme) -> Any:
    """Return the configuration with which transformers quantises weights while it loads them."""
    import transformers

    if asked.is_int8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIERS_FROM)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=asked.kind,
        bnb_4bit_use_double_quant=asked.double,
        bnb_4bit_compute_dtype=asked.dtype,
    )


def in_place(model: Any, asked: Scheme, device: torch.device) -> Any:
    """Quantise the linear layers of ``model``, move it to ``device``, and mark it as quantised as transformers does; return it."""
    made = _in_eight_bits if asked.is_int8 else _in_four_bits
    replace(model, lambda layer: made(layer, asked, device))
    model.to(device)
    mark(model, asked)
    return model


def replace(model: Any, made: Callable[[torch.nn.Linear], Any]) -> None:
    """Replace the linear layers of ``model``, except the output layer, by what ``made`` returns for each.

    As in transformers, a ``Conv1D`` of GPT-2 counts as a linear layer with the transposed weight.
    """
    output = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if layer is not output and (type(layer) is torch.nn.Linear or type(layer).__name__ == "Conv1D"):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], made(_as_linear(layer)))


def _as_linear(layer: Any) -> torch.nn.Linear:
    if isinstance(layer, torch.nn.Linear):
        return layer
    with torch.device("meta"):
        linear = torch.nn.Linear(*layer.weight.shape, bias=layer.bias is not None)
    linear.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
    linear.bias = layer.bias
    return linear


def mark(model: Any, asked: Scheme) -> None:
    """Mark a model as quantised, as transformers does."""
    setattr(model, "is_loaded_in_8bit" if asked.is_int8 else "is_loaded_in_4bit", True)
    model.config.quantization_config = configuration(asked)


def facts(model: torch.nn.Module) -> dict[str, Any]:
    """Return how the layers of a model are stored, as read back from them: their number, the kind, and whether scales are quantised."""
    import bitsandbytes

    four = [one for one in model.modules() if isinstance(one, bitsandbytes.nn.Linear4bit)]
    eight = [one for one in model.modules() if isinstance(one, bitsandbytes.nn.Linear8bitLt)]
    found: dict[str, Any] = {"quantised_layers": len(four) + len(eight)}
    if eight:
        found["quantisation"] = "int8"
    if four:
        state = four[0].weight.quant_state
        found |= {"quantisation": state.quant_type, "double_quantisation": bool(state.nested)}
    return found


def notes(model: torch.nn.Module) -> list[str]:
    """Return a remark for the user about the frozen weights of fused experts, which bitsandbytes does not quantise; empty without any."""
    sizes = [
        one.numel()
        for name, one in model.named_parameters()
        if "expert" in name and one.dim() == 3 and one.is_floating_point() and not one.requires_grad
    ]
    if not sizes:
        return []
    return [
        f"The weights of fused experts, {sum(sizes):,} parameters, keep their type: bitsandbytes quantises linear layers only."
    ]


def _in_four_bits(layer: torch.nn.Linear, asked: Scheme, device: torch.device) -> Any:
    import bitsandbytes

    options = {"compress_statistics": asked.double, "quant_type": asked.kind}
    with torch.device("meta"):
        quantised = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=asked.dtype, **options
        )
    quantised.bias = layer.bias
    # bitsandbytes quantises a parameter when it is moved to its device
    weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, **options)
    quantised.weight = weight.to(device)
    return quantised


def _in_eight_bits(layer: torch.nn.Linear, asked: Scheme, device: torch.device) -> Any:
    import bitsandbytes

    with torch.device("meta"):
        quantised = bitsandbytes.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            has_fp16_weights=False,
            threshold=OUTLIERS_FROM,
        )
    quantised.bias = layer.bias
    weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    quantised.weight = weight.to(device)
    return quantised
