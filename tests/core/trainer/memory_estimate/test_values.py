"""Shapes that depend on data in a trace: experts in balance, whatever way a model divides tokens among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch._subclasses import fake_tensor  # noqa: E402

from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import Ledger  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.tracing import Watch  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.values import AssumedValues, experts_of  # noqa: E402

pytestmark = pytest.mark.torch

TOKENS, EXPERTS, CHOSEN = 64, 8, 2


@pytest.fixture(params=[2**20, 0], ids=["known values", "too large to know"])
def trace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A trace that keeps values up to a size."""
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", request.param or 1)
    mode = fake_tensor.FakeTensorMode()
    with mode, Watch(Ledger(), AssumedValues(mode, EXPERTS, request.param)):
        yield


def chosen() -> Any:
    """Return the experts that a router chooses for each token, shape (tokens, chosen)."""
    return torch.rand(TOKENS, EXPERTS).topk(CHOSEN, dim=-1).indices


@pytest.mark.usefixtures("trace")
def test_one_expert_after_the_other() -> None:
    """As transformers 4.55 does in Mixtral and Qwen3: masks, and the tokens of each expert by ``where``."""
    mask = torch.nn.functional.one_hot(chosen(), num_classes=EXPERTS).permute(2, 1, 0)
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    assert hit.shape == (EXPERTS, 1)
    states = torch.rand(TOKENS, 16)
    assert [states[torch.where(mask[number])[1]].shape for number in range(EXPERTS)] == [(16, 16)] * EXPERTS


@pytest.mark.usefixtures("trace")
def test_a_mask_as_an_index() -> None:
    """A share of the tokens is taken, as by ``where``."""
    mask = (chosen() == 0).any(-1)
    taken = torch.rand(TOKENS, 16)[mask]
    assert taken.shape[0] in (TOKENS // EXPERTS, CHOSEN * TOKENS // EXPERTS)


def test_pieces_of_known_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Granite's experts: how many tokens each has is read back, and the tokens are split by it."""
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 2**20)
    mode = fake_tensor.FakeTensorMode()
    with mode, Watch(Ledger(), AssumedValues(mode, EXPERTS, 2**20)):
        gates = torch.zeros(TOKENS, EXPERTS).scatter(1, chosen(), 1)
        sizes = gates.long().sum(0).tolist()
        pieces = torch.rand(TOKENS * CHOSEN, 16).split(sizes)
    assert sizes == [TOKENS * CHOSEN // EXPERTS] * EXPERTS
    assert [piece.shape[0] for piece in pieces] == sizes


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ({"num_local_experts": 8}, 8),
        ({"text_config": {"num_experts": 128}}, 128),
        ({"n_routed_experts": 256}, 256),
        ({"hidden_size": 64}, 0),
        (None, 0),
    ],
)
def test_how_many_experts_a_model_has(architecture: dict[str, Any] | None, expected: int) -> None:
    """By the name its configuration has for them."""
    assert experts_of(architecture) == expected
