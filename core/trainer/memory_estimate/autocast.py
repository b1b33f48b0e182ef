"""Makes autocast on the CPU convert the operations that it converts to float32 on CUDA, for traces on a machine without CUDA.

Imports torch. Under autocast an operation of a list runs in float32. CUDA's list has norms, softmax, powers and sums, which the CPU's
lacks; both have the losses. The lists are those of ``ATen/autocast_mode.h`` (``AT_FORALL_FP32``, ``AT_FORALL_FP32_SET_OPT_DTYPE``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...protocol.releases import release_of

# operations of CUDA's lists that models use and that the CPU's list lacks
FLOAT32 = (
    "exp",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "reciprocal",
    "rsqrt",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "group_norm",
    "cosine_similarity",
    "logsumexp",
    "softmax.int",
    "log_softmax.int",
    "norm.Scalar",
    "norm.ScalarOpt_dim",
)
# these get float32 as the type of their result, and make no copy of their input
FLOAT32_RESULT = ("cumprod", "cumsum", "linalg_vector_norm", "sum", "sum.dim_IntList")
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
# part of the list since this release
SINCE = {"rms_norm": (2, 9)}


@contextlib.contextmanager
def lists_of_cuda() -> Iterator[None]:
    """Inside the block, autocast on the CPU converts what it converts on CUDA, and is what libraries find enabled that ask about CUDA."""
    library, asked = torch.library.Library("aten", "IMPL"), torch.is_autocast_enabled

    def enabled(device_type: str = "cpu") -> bool:
        return bool(asked(device_type))

    # without an argument the function is about CUDA
    torch.is_autocast_enabled = enabled
    try:
        for name in _operations():
            library.impl(name, _in_float32(_operation(name)), "AutocastCPU")
        for name in FLOAT32_RESULT:
            library.impl(name, _to_float32(_operation(name)), "AutocastCPU")
        yield
    finally:
        torch.is_autocast_enabled = asked
        library._destroy()


def _operations() -> list[str]:
    return [*FLOAT32, *(name for name, first in SINCE.items() if release_of(torch.__version__) >= first)]


def _operation(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return found


def _in_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    def converted(*args: Any, **kwargs: Any) -> Any:
        # converted outside the guard, so that autocast's own rules hold for the conversion
        values = [_float32(value) for value in args]
        named = {name: _float32(value) for name, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return operation(*values, **named)

    return converted


def _to_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    def with_type(given: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if given.is_floating_point() and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return operation(given, *args, **kwargs)

    return with_type


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
