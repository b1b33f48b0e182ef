"""Assumes the values on which shapes depend, since tensors of a trace have none: the experts of tokens, numbers read back. Imports torch.

Experts are assumed to be balanced. ``topk`` returns them in turn, as a constant tensor, from which PyTorch computes further values itself.
If that tensor would be too large, only the number of tokens per expert is computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

_ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default, torch.ops.aten.zeros_like.default)


class AssumedValues:
    """Computes the results of operations that depend on data."""

    def __init__(self, mode: FakeTensorMode, experts: int, most: int) -> None:
        self._mode = mode
        self._experts = experts
        self._most = most

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Return whether this class computes the result of ``func``, and the result."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].constant is None:
            return True, _any_number(args[0])
        if not self._experts:
            return False, None
        if func is torch.ops.aten.nonzero.default and args[0].constant is None:
            return True, self._places(args[0])
        if func is torch.ops.aten.index.Tensor and any(_unknown_mask(index) for index in args[1]):
            return True, func(args[0], self._without_masks(args[1]))
        return False, None

    def complete(self, func: Any, args: tuple[Any, ...], made: Any) -> Any:
        """Return the result of ``func``, as a constant tensor where its values are assumed or known."""
        if not self._experts:
            return made
        if func is torch.ops.aten.topk.default and self._known_size(made[1]) and made[0].constant is None:
            return made[0], self._in_turn(made[1], args[0].shape[-1])
        if func in _ZEROS and self._known_size(made):
            return self.known(torch.zeros, tuple(made.shape), made.dtype)
        return made

    def known(self, make: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor that ``make`` returns as a fake tensor that keeps its values."""
        with _disable_current_modes():
            real = make(shape, dtype=dtype)
        return self._mode.fake_tensor_converter.from_real_tensor(self._mode, real, make_constant=True)

    def _known_size(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() <= self._most and not tensor.requires_grad

    def _in_turn(self, indices: torch.Tensor, of: int) -> torch.Tensor:
        def make(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return (torch.arange(math.prod(shape), dtype=dtype) % of).view(shape)

        return self.known(make, tuple(indices.shape), indices.dtype)

    def _places(self, mask: torch.Tensor) -> torch.Tensor:
        """Return indices like ``nonzero``: all for a mask over experts, one expert's share for a mask over tokens."""
        size = mask.numel()
        count = size if size <= self._experts else -(-size // self._experts)
        return mask.new_empty((count, mask.dim()), dtype=torch.int64)

    def _without_masks(self, indices: Any) -> list[Any]:
        places: list[Any] = []
        for index in indices:
            places += self._places(index).unbind(1) if _unknown_mask(index) else [index]
        return places


def _unknown_mask(index: Any) -> bool:
    return isinstance(index, FakeTensor) and index.dtype == torch.bool and index.constant is None


def _any_number(tensor: torch.Tensor) -> Any:
    """Return a value for a number that is not known: finite for losses; counts are not used."""
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.is_floating_point() else 0


def experts_of(architecture: dict[str, Any] | None) -> int:
    """Return the number of experts of a layer; 0 without experts."""
    for config in (architecture or {}, (architecture or {}).get("text_config") or {}):
        for name in ("num_local_experts", "num_experts", "n_routed_experts"):
            if isinstance(config.get(name), int) and config[name] > 1:
                return int(config[name])
    return 0
