"""Initialises a model's random weights faster: the model's own initialiser draws in several CPU threads. Imports torch.

PyTorch draws random numbers on the CPU in one thread. Moreover, every ``Linear`` draws its weights at construction, and the model
draws them again when it initialises itself. Here the first draw is skipped, and large tensors are drawn in pieces, each with its own
generator, so that the weights depend only on the seed and not on the number of threads.
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
    """Makes ``normal_`` and ``uniform_`` fill large CPU tensors in pieces and in parallel.

    Args:
        seed: of the generator of the first piece; each further piece has the next integer.
        pool: the threads that draw.
    """

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
    """Seed PyTorch, and draw weights in parallel inside the block.

    Args:
        seed: seed of all draws.
        own_initialiser: whether the model initialises every ``Linear`` itself, so that the draw at construction can be skipped.
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
