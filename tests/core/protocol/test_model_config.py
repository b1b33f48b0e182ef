"""Values of a config.json that cannot be meant are found before anything is built of them."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core.protocol.model_config import DEEPEST, implausible
from ado_actuators.sfttrainer.core.workload import models


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_labels": 3 * 10**7},
            "num_labels 30000000 in its configuration; expected a whole number from 0 to 100000.",
        ),
        (
            {"vision_config": {"depth": 300_000}},
            "vision_config.depth 300000 in its configuration; expected a whole number from -2000",
        ),
        (
            {"layer_types": ["full_attention"] * 150_000},
            "layer_types with 150000 entries in its configuration; expected at most 2000.",
        ),
        ({"hybrid_override_pattern": "M*" * 100_000}, "expected at most 2000 characters."),
        (
            {"num_hidden_layers": [2, 3]},
            "num_hidden_layers [2, 3] in its configuration; expected a whole number from 1 to 2000.",
        ),
        (
            {"num_attention_heads": "12"},
            "num_attention_heads '12' in its configuration; expected a whole number from 1 to 20000.",
        ),
        (
            {"num_attention_heads": True},
            "num_attention_heads True in its configuration; expected a whole number from 1 to 20000.",
        ),
        ({"head_dim": 2.5}, "head_dim 2.5 in its configuration; expected a whole number from 0 to 100000."),
        ({"hidden_size": {}}, "hidden_size {} in its configuration; expected a whole number from 1 to 2000000."),
        ({"attention_dropout": "abc"}, "attention_dropout 'abc' in its configuration; expected a number from 0 to 1."),
        (
            {"intermediate_size": "x"},
            "intermediate_size 'x' in its configuration; expected a whole number from 0 to 20000000.",
        ),
        (
            {"max_position_embeddings": True},
            "max_position_embeddings True in its configuration; expected a whole number from 1 to",
        ),
        ({"num_experts": [8, "x"]}, "num_experts 'x' in its configuration; expected a whole number from 0 to 20000."),
        (
            {"num_hidden_layers": 2.0},
            "num_hidden_layers 2.0 in its configuration; expected a whole number from 1 to 2000.",
        ),
        ({"rms_norm_eps": -1}, "rms_norm_eps -1 in its configuration; expected a number from 0 to 1."),
        ({"torch_dtype": 5}, "torch_dtype 5 in its configuration; expected a type such as bfloat16."),
        (
            {"num_local_experts": 100_000},
            "num_local_experts 100000 in its configuration; expected a whole number from 0 to 20000.",
        ),
        (
            {"num_hidden_layers": 2.5},
            "num_hidden_layers 2.5 in its configuration; expected a whole number from 1 to 2000.",
        ),
        ({"rope_theta": float("nan")}, "rope_theta nan in its configuration; expected a finite number."),
        (
            {"rope_parameters": {"rope_theta": -1.0}},
            "rope_parameters.rope_theta -1.0 in its configuration; expected a number above 0.",
        ),
        (
            {"n_positions": 9 * 10**9},
            "n_positions 9000000000 in its configuration; expected a whole number from 1 to 1000000.",
        ),
        (
            {"num_experts_per_tok": -2},
            "num_experts_per_tok -2 in its configuration; expected a whole number from 0 to 100000.",
        ),
        ({"attention_dropout": -3.5}, "attention_dropout -3.5 in its configuration; expected a number from 0 to 1."),
        (
            {"initializer_range": 1e300},
            "initializer_range 1e+300 in its configuration; expected a number from 0 to 1000.",
        ),
        ({"layers": [{"head_dim": 10**9}]}, "layers.0.head_dim 1000000000"),
        ({"block_sizes": [[10**15]]}, "block_sizes 1000000000000000"),
        ({"dtype": "load"}, "dtype 'load' in its configuration; expected a type such as bfloat16."),
    ],
)
def test_values_that_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    """Each is named with its place, and with what was expected."""
    found = implausible("mine", values)
    assert found is not None
    assert message in found
    assert len(found) < 250


def test_published_values_can_be_meant() -> None:
    """Those of the whole catalogue, and what other published files hold."""
    for name in models.names():
        assert implausible(name, models.resolve(name).architecture or {}) is None
    published = {
        "time_step_limit": [0.0, float("inf")], "vision_feature_layer": [-2, -5], "pad_token_id": -1, "ignore_index": -100,
        "torch_dtype": "torch.bfloat16", "id2label": {"0": "x" * 5000}, "attention_invalid_logits_value": -1e9, "n_inner": None,
        "attention_mask_value": -3.4e38,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 64}, "quantization_config": {"group_size": -1},
    }  # fmt: skip
    assert implausible("mine", published) is None


def test_levels_are_limited() -> None:
    """A configuration has two or three."""
    nested: dict[str, Any] = {}
    for _ in range(DEEPEST + 2):
        nested = {"part": nested}
    assert "expected at most 20 levels" in (implausible("mine", nested) or "")
