"""Accounts of deep models and of large batches from accounts of shallow ones and of small batches."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ado_actuators.sfttrainer.core.trainer.memory_estimate.extrapolation import (
    Grown,
    Irregular,
    batches,
    deeper,
    grown_like,
)
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES, UPDATE, Ledger, Sharing

pytestmark = pytest.mark.torch


def step(layers: int, *, batch: int = 1, piece: int = 40, odd: int = 0) -> Ledger:
    """Return the account of a step: layers that keep activations, a loss in pieces, gradients, and an update of all at once."""
    ledger = Ledger()
    for _ in range(layers):
        ledger.name(ledger.allocate(100, "weight"), "parameters")
    kept = []
    for layer in range(layers):
        scratch = ledger.allocate(70 * batch, "scratch")
        kept.append(ledger.allocate(30 * batch + (odd if layer == 1 else 0), "matmul"))
        ledger.free(scratch)
    tokens = 25 * batch
    for begin in range(0, tokens, piece):
        size = min(piece, tokens - begin)
        logits = ledger.allocate(11 * size, "logits")
        ledger.allocate(3 * size, "softmax")
        ledger.free(logits)
        ledger.free(logits + 1)
    ledger.end_forward()
    gradients = []
    while kept:
        gradients.append(ledger.allocate(100, "gradient"))
        ledger.name(gradients[-1], "gradients")
        ledger.free(kept.pop())
    ledger.begin(UPDATE)
    # one number a layer, in one list
    norms = ledger.allocate(4 * layers, "norms")
    for number in [ledger.allocate(100, "foreach") for _ in range(layers)]:
        ledger.free(number)
    ledger.free(norms)
    ledger.begin(PASSES)
    for number in gradients:
        ledger.free(number)
    return ledger


def fixed(ledger: Ledger) -> Grown:
    """Return an account at one batch."""
    account = ledger.account()
    return Grown(account, account.sizes, account.sizes)


def test_a_deep_account_is_that_of_the_deep_model() -> None:
    """Every moment of it, lists with one entry a layer included."""
    made = deeper(fixed(step(2)), fixed(step(3)), 10 - 2).at(Fraction(1))
    expected = step(10)
    assert list(made.changes(Sharing())) == list(expected.changes(Sharing()))
    assert made.peaks(Sharing()) == expected.peaks(Sharing())


@pytest.mark.parametrize("batch", [8, 9, 20, 333])
def test_any_batch_follows_from_two(batch: int) -> None:
    """Also with more pieces of the loss than were seen."""
    grown = batches(step(3, batch=8), step(3, batch=16))
    assert grown.at(Fraction(batch, 8)).peaks(Sharing()) == step(3, batch=batch).peaks(Sharing())


def test_depth_and_batch_together() -> None:
    """Two depths at two batches give the account of a deep model at any batch."""
    shallow, deep = (batches(step(layers, batch=8), step(layers, batch=16)) for layers in (2, 3))
    made = deeper(shallow, deep, 32 - 2)
    assert made.at(Fraction(100, 8)).peaks(Sharing()) == step(32, batch=100).peaks(Sharing())


@pytest.mark.parametrize("layers", [3, 4])
def test_one_batch_of_a_deeper_model_is_enough(layers: int) -> None:
    """Its storages grow as those of the shallow model: the same account as from two batches."""
    shallow = batches(step(2, batch=8), step(2, batch=16))
    got = grown_like(shallow, step(layers, batch=8))
    expected = batches(step(layers, batch=8), step(layers, batch=16))
    assert (got.account.events, got.sizes, got.more) == (expected.account.events, expected.sizes, expected.more)


def test_what_grows_with_batch_and_layers_is_refused() -> None:
    """The storage of the deeper model at another batch would have to be guessed."""

    def listed(layers: int, batch: int) -> Ledger:
        ledger = step(layers, batch=batch)
        ledger.allocate(4 * layers * batch, "list")
        return ledger

    with pytest.raises(Irregular, match="list grows with the batch and the number of layers"):
        grown_like(batches(listed(2, 8), listed(2, 16)), listed(3, 8))


def test_layers_that_differ_are_refused() -> None:
    """An account with something that does not repeat is not guessed at."""
    with pytest.raises(Irregular, match="no counterpart"):
        deeper(fixed(step(2)), fixed(step(3, odd=1)), 8)


def test_memory_that_grows_with_the_square_is_refused() -> None:
    """Twice the batch takes more than twice the memory."""
    small, large = Ledger(), Ledger()
    small.allocate(16, "mask")
    large.allocate(64, "mask")
    with pytest.raises(Irregular, match="mask grows from 16 to 64 bytes"):
        batches(small, large)
