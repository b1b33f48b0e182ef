"""Makes TRL's loss, which is computed in chunks, allocate what it does on CUDA. Imports TRL inside its function.

With CUDA, Triton kernels process a tile of logits in place, and a matrix product adds half-precision numbers to a float32 sum. Elsewhere
TRL computes the same with operations of torch, which allocate several float32 copies of the tile.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

MODULE = "trl.kernels.chunked_logprob"
# functions of the module that allocate nothing with CUDA; each changes its arguments and returns None
IN_PLACE = ("_forward_tile", "_backward_tile", "_addmm_fp32")


@contextlib.contextmanager
def loss_of_cuda() -> Iterator[None]:
    """Replace TRL's operations on tiles inside the block by ones that allocate nothing; without effect on releases that lack them."""
    try:
        # TRL imports it only when a trainer is made, which is too late for the first trace of a process
        module = importlib.import_module(MODULE)
    except ImportError:
        module = None
    kept = {name: getattr(module, name) for name in IN_PLACE if hasattr(module, name)}
    for name in kept:
        setattr(module, name, _in_place)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


def _in_place(*args: Any, **kwargs: Any) -> None:
    """Do what a kernel without allocations does to storages that have no data: nothing."""
