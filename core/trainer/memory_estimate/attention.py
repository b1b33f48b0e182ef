"""Allocates what PyTorch's attention kernels and dropout allocate on CUDA, for traces on a machine without CUDA. Imports torch.

``scaled_dot_product_attention`` selects its CUDA kernel by types and shapes:

- flash: float16 or bfloat16, no mask, heads of at most 256. Keys and values may have fewer heads than queries.
- memory-efficient: float32, or with a mask; as many heads of keys and values as of queries.
- math: all other cases, such as float32 with fewer heads of keys and values; it allocates the length × length matrix.

The first two save the output and one float32 per row, and never allocate the matrix. ``FLASH`` replaces ``flash_attention_2`` of
transformers, whose package needs CUDA: it is the flash kernel, which gets documents and padding as lengths instead of a mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

# the name must not contain "flash": transformers would look for its own kernels
FLASH = "fa2_of_the_trace"
HALF = (torch.float16, torch.bfloat16)
# the flash kernel's backward pass rounds lengths and head dimensions up to whole tiles
TILE_LENGTH, TILE_HEAD = 128, 32
LONGEST_HEAD = 256


@contextlib.contextmanager
def kernels_of_cuda() -> Iterator[None]:
    """Replace attention and dropout inside the block by functions that allocate like CUDA's kernels, and register ``FLASH``.

    The functions themselves are replaced, because a dispatch mode would not see what checkpointing recomputes in the backward pass.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kept, dropout = functional.scaled_dot_product_attention, functional.dropout
    functional.scaled_dot_product_attention = _attend
    functional.dropout = _dropout
    ALL_ATTENTION_FUNCTIONS[FLASH] = _attend_without_padding
    ALL_MASK_ATTENTION_FUNCTIONS[FLASH] = flash_attention_mask
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = kept
        functional.dropout = dropout
        del ALL_ATTENTION_FUNCTIONS[FLASH], ALL_MASK_ATTENTION_FUNCTIONS[FLASH]


def kernel(dtype: torch.dtype, head: int, *, mask: bool, grouped: bool) -> str:
    """Return the kernel that PyTorch selects on CUDA: ``flash``, ``efficient`` or ``math``.

    Args:
        dtype: type of queries, keys and values.
        head: dimension of a head.
        mask: whether there is a mask.
        grouped: whether keys and values have fewer heads than queries.
    """
    if dtype in HALF and head <= LONGEST_HEAD and not mask:
        return "flash"
    return "math" if grouped else "efficient"


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(half), key.to(half), value.to(half)
    grouped = query.shape[1] != key.shape[1]
    chosen = kernel(query.dtype, query.shape[-1], mask=attn_mask is not None, grouped=grouped)
    if chosen == "math":
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is not None:
        # the kernel adds the mask to the scores, so a Boolean mask is converted to numbers
        attn_mask = attn_mask.to(query.dtype)
    return _Fused.apply(query, key, value, attn_mask, chosen == "flash")


def _attend_without_padding(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **unused: Any
) -> tuple[torch.Tensor, None]:
    """Replace ``flash_attention_2``: inputs (batch, heads, length, head dimension), output (batch, length, heads, head dimension)."""
    if query.dtype not in HALF:
        half = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(half), key.to(half), value.to(half)
    if attention_mask is None:
        return _Fused.apply(query, key, value, None, True).transpose(1, 2), None
    # copies, because padding is removed before the kernel and inserted after it
    query, key, value = query.clone(), key.clone(), value.clone()
    return _Fused.apply(query, key, value, None, True).transpose(1, 2).clone(), None


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Replace dropout by that of CUDA, which saves a mask of one byte per element; the CPU's mask has the type of the input."""
    if not training or p == 0.0:
        return input
    made: torch.Tensor = _Dropout.apply(input)
    return input.copy_(made) if inplace else made


class _Dropout(torch.autograd.Function):
    """The allocations of ``native_dropout`` and of its backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Any) -> Any:
        ctx.save_for_backward(torch.empty_like(input, dtype=torch.bool))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (_,) = ctx.saved_tensors
        return torch.empty_like(gradients[0])


class _Fused(torch.autograd.Function):
    """A kernel's allocations; shapes are (batch, heads, length, head dimension)."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, flash: bool) -> Any:
        batch, heads, length, _ = query.shape
        output = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
        sums = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.flash = flash
        ctx.save_for_backward(query, key, value, mask, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, _, _ = ctx.saved_tensors
        batch, heads, length, head = query.shape
        gradient = gradients[0].contiguous()
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        scratch = [query.new_empty((batch, heads, _up(length, TILE_LENGTH)), dtype=torch.float32)]
        if ctx.flash:
            shape = (batch, heads, _up(length, TILE_LENGTH), _up(head, TILE_HEAD))
            scratch.append(query.new_empty(shape, dtype=torch.float32))
            if heads != key.shape[1]:
                scratch += [query.new_empty((batch, heads, key.shape[2], head)) for _ in range(2)]
        del gradient, scratch
        return of_query, of_key, of_value, None, None


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
