"""Models with a table of positions: random weights get a table for the workload, pretrained ones are refused if it is too short."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import model, positions  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import Refused  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

SIZES = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
FEW = {"max_position_embeddings": 16}
WITH_TABLE: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "gpt_bigcode": {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "gptj": {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "rotary_dim": 4},
    "codegen": {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 16, "rotary_dim": 4},
    "gpt_neo": {**SIZES, **FEW, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "opt": {**SIZES, **FEW, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "biogpt": {**SIZES, **FEW, "intermediate_size": 16},
    "roberta": {**SIZES, **FEW, "intermediate_size": 16, "is_decoder": True, "architectures": ["RobertaForCausalLM"]},
    "mpt": {"vocab_size": 100, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 16},
}
WITHOUT_TABLE: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, **FEW, "intermediate_size": 16},
    # a hidden size that equals the number of positions
    "gpt_neox": {**SIZES, **FEW, "intermediate_size": 16},
    "bloom": {"vocab_size": 100, "hidden_size": 16, "n_layer": 1, "n_head": 2},
}


def job(kind: str, length: int, **change: Any) -> Job:
    """Return a job with random weights."""
    values = {"model_name": "m", "number_gpus": 0, "model_max_length": length, "batch_size": 1, **change}
    workload = JobWorkload(**Workload.model_validate(values).model_dump())
    return Job(id="test", workload=workload, architecture={"model_type": kind, **(WITH_TABLE | WITHOUT_TABLE)[kind]})


@pytest.mark.parametrize("kind", WITH_TABLE)
def test_a_table_is_found_and_grows_with_random_weights(kind: str) -> None:
    """16 positions become 40, and virtual tokens have positions, too; the model runs with as many."""
    assert positions.limit(model.build(job(kind, 8))[0]) == (14 if kind == "roberta" else 16)
    made, _ = model.build(job(kind, 40, method="prompt_tuning", num_virtual_tokens=5))
    assert positions.limit(made) == 45
    made(input_ids=torch.full((1, 45), 7))


@pytest.mark.parametrize("kind", WITHOUT_TABLE)
def test_models_that_compute_positions_have_no_limit(kind: str) -> None:
    """RoPE and ALiBi have no table."""
    assert positions.limit(model.build(job(kind, 8))[0]) is None


def test_a_sample_longer_than_the_table_is_refused() -> None:
    """Pretrained weights have a table of fixed size."""
    made, _ = model.build(job("gpt2", 8))
    with pytest.raises(
        Refused, match=r"^model_max_length 17 is more than the model's 16 positions; use model_max_length 16"
    ):
        positions.check(made, job("gpt2", 17).workload)
    positions.check(made, job("gpt2", 16).workload)
    tuned = job("gpt2", 12, method="prompt_tuning", num_virtual_tokens=5).workload
    with pytest.raises(
        Refused, match="model_max_length 12 plus 5 virtual tokens is more than the model's 16 positions"
    ):
        positions.check(made, tuned)
