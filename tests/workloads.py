"""Small workloads that the tests of both stacks measure."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 32,
    "batch_size": 2,
    "number_gpus": 0,
    "max_steps": 6,
}
# the configuration of a model of two layers, which are enough to include what happens between layers
TWO_LAYERS: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
# the configuration of a mixture of experts
EXPERTS: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
