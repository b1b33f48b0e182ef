"""Simulates weights of four bits in a trace: what bitsandbytes and GPTQ store and allocate, without their kernels. Imports torch.

A frozen linear layer stores two numbers per byte, and scales. NF4 and FP4 of bitsandbytes have one scale per block of 64 numbers: one
byte with double quantisation, else float32. GPTQ has a float16 scale and a zero point per output and group of inputs: 128 inputs, or all
of them in checkpoints that were made without groups. Each matrix product first converts the whole weight to the type of the computation,
in the forward and in the backward pass.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from .. import quantise

NF4_BLOCK, NESTED_BLOCK, GPTQ_GROUP = 64, 256, 128


@contextlib.contextmanager
def kernels_of_four_bits() -> Iterator[None]:
    """Build quantised models with simulated layers inside the block, whose matrix products allocate the same as the kernels."""
    try:
        import bitsandbytes
    except ImportError:
        # without the package the stack rejects the method
        yield
        return
    in_place, product = quantise.in_place, bitsandbytes.matmul_4bit
    quantise.in_place = _quantised
    bitsandbytes.matmul_4bit = _product
    try:
        yield
    finally:
        quantise.in_place = in_place
        bitsandbytes.matmul_4bit = product


def _quantised(model: Any, asked: quantise.Scheme, device: torch.device) -> Any:
    return quantised(model, asked.dtype, kind=asked.kind, double=asked.double)


def quantised(
    model: Any, dtype: torch.dtype, *, kind: str = "nf4", double: bool = True, group: int | None = GPTQ_GROUP
) -> Any:
    """Replace a model's linear layers, except the output layer, by simulated ones; return the model.

    Args:
        model: a model with fake tensors.
        dtype: type of the computation.
        kind: ``nf4``, ``fp4`` or ``gptq``.
        double: whether the scales of NF4 and FP4 are quantised, too.
        group: inputs of a layer that share the scales of GPTQ; None: all of them.
    """
    quantise.replace(model, lambda layer: _layer(layer, dtype, kind, double=double, group=group))
    quantise.mark(model, quantise.Scheme("nf4" if kind == "gptq" else kind, double, dtype))
    return model


def numbers(parameter: torch.Tensor) -> int:
    """Return how many parameters a tensor holds: two in each byte of a quantised weight."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _layer(layer: torch.nn.Linear, dtype: torch.dtype, kind: str, *, double: bool, group: int | None) -> Any:
    import bitsandbytes

    with _disable_current_modes(), torch.device("meta"):
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
    made.bias = layer.bias
    count = layer.weight.numel()
    packed = torch.nn.Parameter(torch.empty((-(-count // 2), 1), dtype=torch.uint8), requires_grad=False)
    scales = 0 if kind == "gptq" else count // NF4_BLOCK
    attributes = {
        "compress_statistics": double,
        "quant_type": "nf4",
        "quant_storage": torch.uint8,
        "bnb_quantized": True,
        "quant_state": types.SimpleNamespace(shape=layer.weight.shape, scales=scales),
    }
    for name, value in attributes.items():
        setattr(packed, name, value)
    # not Params4bit of bitsandbytes, which cannot be created from fake tensors
    made._parameters["weight"] = packed
    for number, (size, type_of) in enumerate(_beside(layer, kind, double=double, group=group)):
        made.register_buffer(f"beside_{number}", torch.empty(size, dtype=type_of), persistent=False)
    return made


def _beside(layer: torch.nn.Linear, kind: str, *, double: bool, group: int | None) -> list[tuple[int, torch.dtype]]:
    """Return the number of elements and the type of each tensor that is stored besides the packed weight."""
    count = layer.weight.numel()
    if kind == "gptq":
        groups = -(-layer.in_features // (group or layer.in_features))
        scales, zeros = groups * layer.out_features, groups * layer.out_features // 8
        return [(scales, torch.float16), (zeros, torch.int32), (layer.in_features, torch.int32)]
    scales = -(-count // NF4_BLOCK)
    values = [(16, torch.float32)]
    if not double:
        return [(scales, torch.float32), *values]
    nested = -(-scales // NESTED_BLOCK)
    return [(scales, torch.uint8), (nested, torch.float32), (256, torch.float32), (1, torch.float32), *values]


def _product(given: Any, weight: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
    made = _Product.apply(given, weight, quant_state)
    return made if bias is None else made + bias


def _whole(like: torch.Tensor, state: Any) -> torch.Tensor:
    """Return the whole weight in the type of ``like``; each product allocates it anew."""
    scales = like.new_empty(state.scales, dtype=torch.float32)
    weight = like.new_empty(state.shape)
    del scales
    return weight


class _Product(torch.autograd.Function):
    """The allocations of a product with a quantised weight, and of its backward pass."""

    @staticmethod
    def forward(ctx: Any, given: Any, weight: Any, state: Any) -> Any:
        ctx.state = state
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(given, _whole(given, state))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.matmul(gradients[0], _whole(gradients[0], ctx.state)), None, None
