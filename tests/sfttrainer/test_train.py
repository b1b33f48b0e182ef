"""Properties that CPUs can run are trained with TRL, in the tests' own process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

Train = Callable[..., Any]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_without_padding_is_trained(train: Train, attention: str) -> None:
    """Without packing a batch is one row of its samples, cut to model_max_length before: no slot is padding."""
    trained = train(unchecked={"padding_free": True, "attn_implementation": attention}, dataset_id="synthetic-uniform")
    record = trained.record
    assert record["samples"] == [4, 4, 4]
    assert record["token_slots"] == record["real_tokens"]
    assert max(record["token_slots"]) <= 4 * 16
    assert trained.loss_per_token == pytest.approx(math.log(300), abs=0.5)


HYBRID = {
    "model_type": "granitemoehybrid",
    "vocab_size": 300,
    "hidden_size": 32,
    "shared_intermediate_size": 64,
    "num_local_experts": 0,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}


def test_the_result_says_which_code_ran_recurrent_layers(train: Train) -> None:
    """Without a GPU the state-space layers of a hybrid run in PyTorch; a model without such layers says nothing."""
    facts = train(HYBRID).facts
    assert facts["recurrent_layers"] == "pytorch"
    assert facts["notes"] == [
        "The recurrent layers ran in PyTorch: the kernels of causal-conv1d and mamba-ssm need a GPU."
    ]
    assert "recurrent_layers" not in train().facts
