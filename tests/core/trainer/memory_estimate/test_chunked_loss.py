"""The loss in chunks as it allocates with CUDA."""

from __future__ import annotations

import contextlib
import importlib
import sys

import pytest

torch = pytest.importorskip("torch")
fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
chunked = pytest.importorskip("trl.kernels.chunked_logprob")

from ado_actuators.sfttrainer.core.trainer.memory_estimate import chunked_loss, tracing  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.chunked_loss import IN_PLACE, MODULE, loss_of_cuda  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import Ledger  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.values import AssumedValues  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS, HIDDEN, VOCABULARY, CHUNK = 8192, 16, 1000, 400


def largest_storage(*, cuda: bool) -> int:
    """Return the bytes of the largest storage of a loss and its gradients, in bfloat16."""
    ledger = Ledger()
    mode = fake_tensor.FakeTensorMode()
    with mode, tracing.Watch(ledger, AssumedValues(mode, 0, 0)):
        hidden = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.zeros(TOKENS, dtype=torch.int64)
        with loss_of_cuda() if cuda else contextlib.nullcontext():
            made = chunked.ChunkedLogProbFunction.apply(
                hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ("entropy",)
            )
            made[0].sum().backward()
    return max(ledger.account().sizes)


def test_tiles_are_processed_in_place() -> None:
    """The largest storage is the buffer of a tile in the type of the weights; without CUDA's kernels it is a float32 copy."""
    tile = chunked.TOKEN_CHUNK_SIZE * CHUNK
    assert largest_storage(cuda=True) == 2 * tile
    assert largest_storage(cuda=False) == 4 * tile


def test_the_functions_are_replaced_before_trl_imports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trace of a process allocates as the following ones do."""
    monkeypatch.delitem(sys.modules, MODULE)
    with loss_of_cuda():
        module = importlib.import_module(MODULE)
        assert {getattr(module, name) for name in IN_PLACE} == {chunked_loss._in_place}


def test_the_functions_are_replaced_for_a_trace_only() -> None:
    """All of them exist in the installed release."""
    before = [getattr(chunked, name) for name in IN_PLACE]
    with loss_of_cuda():
        assert not any(getattr(chunked, name) is one for name, one in zip(IN_PLACE, before, strict=True))
    assert [getattr(chunked, name) for name in IN_PLACE] == before
