"""Random weights quickly: a model's own initialiser, with its draws spread over the CPU's threads. Trainer room: torch.

PyTorch draws random numbers on the CPU in one thread, and every ``Linear`` draws once at construction and again when
the model initialises itself. The first draw is left out and the others are made in pieces, each by a generator of its
own, so that the result depends on the seed alone and not on the number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

PIECE = 2**17
_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


class ParallelDraws(TorchFunctionMode):
    """Under this mode ``normal_`` and ``uniform_`` fill large CPU tensors in pieces, in parallel."""

    def __init__(self, seed: int, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self._next_seed = seed
        self._pool = pool

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args and func in _DRAWS else None
        if (
            tensor is None
            or tensor.device.type != "cpu"
            or isinstance(tensor, FakeTensor)
            or tensor.numel() <= PIECE
            or not tensor.is_contiguous()
            or "generator" in kwargs
        ):
            return func(*args, **kwargs)
        pieces = tensor.detach().view(-1).split(PIECE)
        first = self._next_seed
        self._next_seed += len(pieces)

        def fill(number: int) -> None:
            func(pieces[number], *args[1:], **kwargs, generator=torch.Generator().manual_seed(first + number))

        list(self._pool.map(fill, range(len(pieces))))
        return tensor


@contextlib.contextmanager
def quickly(seed: int, *, own_initialiser: bool) -> Iterator[None]:
    """Seed PyTorch and make drawing weights quick inside the block.

    Args:
        seed: of every draw.
        own_initialiser: the model initialises each ``Linear`` itself, so that the draw at construction can be left out.
    """
    torch.manual_seed(seed)
    linear = torch.nn.Linear.reset_parameters
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, ParallelDraws(seed, pool):
        if own_initialiser:
            torch.nn.Linear.reset_parameters = lambda self: None
        try:
            yield
        finally:
            torch.nn.Linear.reset_parameters = linear
