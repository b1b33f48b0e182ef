"""Autocast on a trace converts what it converts on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional  # noqa: E402

from ado_actuators.sfttrainer.core.trainer.memory_estimate.autocast import lists_of_cuda  # noqa: E402

pytestmark = pytest.mark.torch

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "layer_norm": lambda given: functional.layer_norm(given, (8,)),
    "softmax": lambda given: torch.softmax(given, -1),
    "log_softmax": lambda given: functional.log_softmax(given, dim=-1),
    "sum": lambda given: given.sum(),
    "sum over a dimension": lambda given: given.sum(-1),
    "cumsum": lambda given: given.cumsum(-1),
    "pow": lambda given: given**2,
    "rsqrt": torch.rsqrt,
    "cross_entropy": lambda given: functional.cross_entropy(given, torch.zeros(4, dtype=torch.long)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_the_list_run_in_float32(name: str) -> None:
    """Their results and gradients, too; without the lists of CUDA the CPU keeps bfloat16 for most of them."""
    with FakeTensorMode():
        given = torch.ones(4, 8, dtype=torch.bfloat16, requires_grad=True)
        with lists_of_cuda(), torch.autocast("cpu", dtype=torch.bfloat16):
            made = OPERATIONS[name](given)
        assert made.dtype == torch.float32
        made.sum().backward()
        assert given.grad is not None
        assert given.grad.dtype == torch.bfloat16


def test_products_stay_in_the_type_of_autocast() -> None:
    """The list of lower precision is the same on both devices."""
    with FakeTensorMode(), lists_of_cuda(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.linear(torch.ones(4, 8), torch.ones(3, 8)).dtype == torch.bfloat16


def test_the_lists_end_with_the_block() -> None:
    """Afterwards autocast on the CPU is as it was."""
    with lists_of_cuda():
        pass
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.softmax(torch.ones(4, 8, dtype=torch.bfloat16), -1).dtype == torch.bfloat16


def test_without_autocast_nothing_is_converted() -> None:
    """The lists hold for autocast only."""
    with lists_of_cuda():
        assert torch.softmax(torch.ones(4, 8, dtype=torch.bfloat16), -1).dtype == torch.bfloat16


def test_libraries_that_ask_about_cuda_find_autocast() -> None:
    """PEFT's layers for weights of four bits convert their input to the type of the adapters unless autocast does it."""
    with lists_of_cuda():
        assert not torch.is_autocast_enabled()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.is_autocast_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.is_autocast_enabled()
