"""Lets optimizers of bitsandbytes make their states in a trace, without the kernels of their updates. Imports torch.

bitsandbytes makes the states itself, so their sizes are its own: 8-bit states have one byte per element and a float32 for each block of
256; a parameter of less than 4096 elements, and with transformers also an embedding, has float32 states. The updates allocate nothing.

States of paged optimizers with at least 100,000 elements are in CUDA's unified memory, which torch's allocator does not provide and the
driver moves to the host when the device is full. They do not count here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

# elements from which on bitsandbytes keeps the state of a paged optimizer in unified memory
LEAST_PAGED = 100_000
# numbers of the table of values of an 8-bit state
VALUES = 256


@contextlib.contextmanager
def states_without_updates() -> Iterator[None]:
    """Inside the block, optimizers of bitsandbytes have states and do not change parameters."""
    try:
        from bitsandbytes import functional
        from bitsandbytes.optim import GlobalOptimManager
        from bitsandbytes.optim.optimizer import Optimizer8bit
    except ImportError:
        # without the package the stack rejects its optimizers
        yield
        return
    replaced: dict[tuple[Any, str], Callable[..., Any]] = {
        (functional, "optimizer_update_32bit"): _nothing,
        (functional, "optimizer_update_8bit_blockwise"): _nothing,
        (functional, "create_dynamic_map"): _values,
        (functional, "get_paged"): _paged,
        (functional, "fill"): _nothing,
        (functional, "prefetch_tensor"): _nothing,
        (Optimizer8bit, "get_state_buffer"): _state,
    }
    kept = {place: getattr(*place) for place in replaced}
    # it knows parameters by their addresses, which a later trace may use again
    GlobalOptimManager.get_instance().initialize()
    for (owner, name), function in replaced.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name), function in kept.items():
            setattr(owner, name, function)
        GlobalOptimManager.get_instance().initialize()


def follows_parameters(name: str) -> bool:
    """Return whether the states of an optimizer have the type of the parameters; those of bitsandbytes have types of their own."""
    return not ("8bit" in name or name.startswith(("paged_", "lion_", "rmsprop_bnb", "ademamix")))


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _values(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.empty(VALUES)


def _paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    return torch.empty(0, dtype=dtype)


def _state(optimizer: Any, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if optimizer.is_paged and parameter.numel() >= LEAST_PAGED:
        return _paged(dtype=dtype)
    return torch.zeros_like(parameter, dtype=dtype)
