"""The load of experts of tiny mixture-of-experts models, against what their routers chose. Uses torch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import model, router_load  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

WORKLOAD = {"model_name": "tiny-llama-5m", "model_max_length": 64, "batch_size": 1, "number_gpus": 0}
SMALL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
EXPERTS = {**SMALL, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


def job(architecture: dict[str, Any], **change: Any) -> Job:
    """Return a job with a model."""
    workload = JobWorkload(**Workload.model_validate({**WORKLOAD, **change}).model_dump())
    return Job(id="test", workload=workload, architecture=architecture, source=None)


@pytest.mark.parametrize("model_type", ["mixtral", "granitemoe", "qwen3_moe"])
def test_router_load_of_experts(model_type: str) -> None:
    """The ratio is between 1 (balance) and 2 (all tokens use the same two of four experts); the model is in training mode afterwards."""
    architecture = {**EXPERTS, "model_type": model_type}
    if model_type == "qwen3_moe":
        architecture |= {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8}
        del architecture["num_local_experts"]
    network, _ = model.build(job(architecture))
    network.train()
    ratio = router_load.max_over_mean(
        network, torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    )
    assert ratio is not None
    assert 1.0 <= ratio <= 2.0
    assert network.training


def test_router_load_of_equal_tokens_is_the_worst() -> None:
    """Equal tokens in one layer use the same experts: the ratio is experts ÷ experts per token."""
    network, _ = model.build(job({**EXPERTS, "num_hidden_layers": 1}))
    assert router_load.max_over_mean(network, torch.zeros(1, 8, dtype=torch.long)) == 2.0


def test_router_load_of_groups_is_what_the_router_chose() -> None:
    """With groups of experts the largest logits are not always chosen."""
    groups = {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    }
    sizes = {
        "moe_intermediate_size": 16,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
    }
    network, _ = model.build(job({**SMALL, "model_type": "deepseek_v3", "v_head_dim": 8, **groups, **sizes}))
    chosen: list[Any] = []
    network.model.layers[0].mlp.gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
    ids = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    ratio = router_load.max_over_mean(network, ids)
    load = torch.bincount(chosen[0].flatten(), minlength=8).double()
    assert ratio == pytest.approx(float(load.max() / load.mean()))


def test_router_load_is_a_fact_where_the_model_is_whole() -> None:
    """With DDP each rank runs its own copy; a sharded model has no router load. The output layer and the routers' loss are not run."""
    network, _ = model.build(job({**EXPERTS, "num_hidden_layers": 1}))
    network.lm_head.forward = None
    for whole in ("none", "DistributedDataParallel"):
        assert router_load.facts(network, whole, [0] * 8) == {"router_load_max_over_mean": 2.0}
    for sharded in ("FullyShardedDataParallel", "FSDP2"):
        assert router_load.facts(network, sharded, [0] * 8) == {}
    # what a model's code cannot tell does not fail the measurement
    network.model.layers = None
    assert router_load.facts(network, "none", [0] * 8) == {}


def test_dense_models_have_no_router_load() -> None:
    """The router load of a model without experts is None."""
    network, _ = model.build(job(SMALL))
    assert router_load.max_over_mean(network, torch.zeros(1, 4, dtype=torch.long)) is None
    assert router_load.facts(network, "none", [0] * 4) == {}


def test_quantised_weights_are_not_converted() -> None:
    """On CPUs bitsandbytes converts the weights of layers in evaluation mode, which it can only for some shapes."""
    pytest.importorskip("bitsandbytes")
    network, _ = model.build(job(EXPERTS, method="qlora"), quantised=True)
    layer = network.get_submodule("model.layers.0.self_attn.q_proj")
    modes = []
    layer.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    assert router_load.max_over_mean(network.train(), torch.zeros(1, 8, dtype=torch.long)) == 2.0
    assert modes == [True]
