"""Properties that CPUs can run are trained with TRL, in the tests' own process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

Train = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_without_padding_is_trained(train: Train, attention: str) -> None:
    """Without packing a batch is one row of its samples, cut to model_max_length before: no slot is padding."""
    record = train(unchecked={"padding_free": True, "attn_implementation": attention}, dataset_id="synthetic-uniform")
    assert record["samples"] == [4, 4, 4]
    assert record["token_slots"] == record["real_tokens"]
    assert max(record["token_slots"]) <= 4 * 16
    assert record["losses"][0] / record["trained_tokens"][0] == pytest.approx(math.log(300), abs=0.5)
