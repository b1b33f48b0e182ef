"""A small model of every type that has a formula for its FLOPs is trained with TRL, in the tests' own process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics import flops

pytest.importorskip("transformers")

from . import tiny

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


# TRL 1.16 takes hidden states from a part of the model that returns logits
UNTRAINABLE = ("llama4_text",)


@pytest.mark.parametrize("model_type", sorted(set(flops.KNOWN) - {*UNTRAINABLE}))
def test_every_family_is_trained(train: Callable[..., Any], model_type: str) -> None:
    """One step is measured; its tokens, its loss and its FLOPs are those of the model."""
    trained = train(tiny.architecture(model_type), max_steps=1, batch_size=2)
    record = trained.record
    assert (record["samples"], record["trained_tokens"]) == ([2], [30])
    assert record["losses"][0] / 30 == pytest.approx(math.log(300), abs=0.8)
    assert flops.per_token(record["architecture"], method="full", token_slots=32, squared_lengths=2 * 16**2) > 0


@pytest.mark.parametrize("model_type", UNTRAINABLE)
def test_a_family_that_trl_cannot_train_is_refused(train: Callable[..., Any], model_type: str) -> None:
    """In one message that names the release and the type."""
    from ado_actuators.sfttrainer.core.trainer.errors import Refused

    with pytest.raises(Refused, match=f"^TRL [0-9.]+ cannot compute its loss for models of type {model_type}: they"):
        train(tiny.architecture(model_type), max_steps=1, batch_size=2)
