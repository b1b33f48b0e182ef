"""Properties that CPUs can run are trained with TRL, in the tests' own process."""

from __future__ import annotations

import importlib.metadata
import math
import types
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
    (note,) = facts["notes"]
    # releases of transformers differ in the order of the packages
    names = " and ".join(sorted(("mamba-ssm", "causal-conv1d"), key=note.find))
    assert note == f"The recurrent layers ran in PyTorch: the kernels of {names} need a GPU."
    assert "recurrent_layers" not in train().facts


@pytest.mark.parametrize(
    "change",
    [
        {"use_rslora": True},
        {"use_dora": True},
        *({"init_lora_weights": name} for name in ("gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16")),
    ],
    ids=str,
)
def test_variants_of_lora_are_trained(train: Train, change: dict[str, Any]) -> None:
    """PEFT's configuration has the value, and only adapters are trained; DoRA adds the magnitude of each output."""
    trained = train(method="lora", r=4, **change)
    config = trained.model.peft_config["default"]
    for name, value in change.items():
        assert getattr(config, name) == value
    adapters = trained.facts["adapters"]
    plain = sum(one["layers"] * one["rank"] * (one["inputs"] + one["outputs"]) for one in adapters)
    magnitudes = sum(one["layers"] * one["outputs"] for one in adapters) if "use_dora" in change else 0
    assert trained.record["trainable_parameters"] == plain + magnitudes


EXPERTS = {
    "model_type": "mixtral", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def fuses_experts() -> bool:
    """Return whether the installed transformers keeps the weights of all experts in one parameter: from release 5 on."""
    return int(importlib.metadata.version("transformers").split(".")[0]) >= 5


@pytest.mark.skipif(not fuses_experts(), reason="needs transformers 5, whose experts are parameters")
def test_adapters_of_experts_are_trained(train: Train) -> None:
    """target_parameters adapts the fused weights of all experts, in addition to the modules."""
    names = "experts.gate_up_proj,experts.down_proj"
    trained = train(EXPERTS, method="lora", r=2, target_modules="q_proj", target_parameters=names)
    found = {one["module"]: (one["experts"], one["layers"]) for one in trained.facts["adapters"]}
    assert found == {"q_proj": (1, 2), "gate_up_proj": (4, 2), "down_proj": (4, 2)}


def test_a_parameter_that_the_model_lacks_is_refused(train: Train) -> None:
    """The message names the parameters of experts, or says that there is none of this name."""
    from ado_actuators.sfttrainer.core.trainer.errors import Refused

    has = "experts" if fuses_experts() else r"model\.layers\.0\.block_sparse_moe\.experts\.0\.w1"
    message = rf"^target_parameters experts\.up names no parameter of this model; it has {has}"
    with pytest.raises(Refused, match=message):
        train(EXPERTS, method="lora", target_parameters="experts.up")
    with pytest.raises(Refused, match=r"^target_parameters experts\.up names no parameter of this model\.$"):
        train(method="lora", target_parameters="experts.up")


def test_the_loss_of_dynamic_fine_tuning_is_trained(train: Train) -> None:
    """The gradients are others than those of cross-entropy; the loss of the result is the model's own, cross-entropy in both."""
    torch = pytest.importorskip("torch")
    weighted, plain = train(loss_type="dft", optim="sgd"), train(optim="sgd")
    pairs = zip(weighted.model.parameters(), plain.model.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)
    # TRL before 1.16 asks the model for no loss here
    if weighted.record["losses"]:
        assert weighted.loss_per_token == pytest.approx(plain.loss_per_token)


def test_published_chat_templates_get_marks_at_the_answers() -> None:
    """TRL's copy of the template has them; a template with marks, or one that TRL does not know, stays as it is."""
    templates = pytest.importorskip("trl.chat_template_utils")
    from ado_actuators.sfttrainer import stack
    from ado_actuators.sfttrainer.core.trainer import byte_tokenizer

    tokenizer = byte_tokenizer.build(16)
    for given, expected in (
        (templates.qwen3_chat_template, templates.qwen3_training_chat_template),
        (templates.qwen3_training_chat_template, templates.qwen3_training_chat_template),
        ("{% if add_generation_prompt %}a{% endif %}", "{% if add_generation_prompt %}a{% endif %}"),
    ):
        tokenizer.chat_template = given
        stack._mark_answers(tokenizer)
        assert tokenizer.chat_template == expected


@pytest.mark.parametrize(
    ("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("int8", None)]
)
def test_quantised_weights_are_trained(train: Train, kind: str, double: bool | None) -> None:
    """bitsandbytes has kernels for CPUs. What is stored is read back from the layers, seven in each of two."""
    pytest.importorskip("bitsandbytes")
    trained = train(
        method="qlora", r=4, quantisation=kind, **({} if double is None else {"double_quantisation": double})
    )
    facts = trained.facts
    assert (facts["quantised_layers"], facts["quantisation"], facts.get("double_quantisation")) == (14, kind, double)
    weight = trained.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer").weight
    # of 64·32 numbers
    assert (weight.nbytes, str(weight.dtype)) == ((2048, "torch.int8") if kind == "int8" else (1024, "torch.uint8"))
    assert trained.record["trainable_parameters"] < trained.record["model_parameters"] == 39_840
    assert trained.loss_per_token == pytest.approx(math.log(300), abs=0.5)
    assert {one["layers"] for one in facts["adapters"]} == {2}


@pytest.mark.parametrize("packing", [False, True])
def test_prompts_of_synthetic_data_carry_no_loss(train: Train, packing: bool) -> None:
    """12 of 16 tokens are the prompt, so 4 carry loss; with 0.03 it has half a token, and the first one is never predicted."""
    trained = train(synthetic_prompt_share=0.75, packing=packing)
    assert trained.record["trained_tokens"] == [4 * 4] * 3
    assert trained.record["real_tokens"] == [4 * 16] * 3
    assert trained.loss_per_token == pytest.approx(math.log(300), abs=0.5)
    if not packing:
        assert train(synthetic_prompt_share=0.03).record["trained_tokens"] == [4 * 15] * 3


@pytest.mark.parametrize(
    ("change", "recomputed"),
    [
        ({}, 2),
        ({"gradient_checkpointing_every_n_layers": 2}, 1),
        ({"gradient_checkpointing_every_n_layers": 2, "method": "lora"}, 1),
        ({"gradient_checkpointing_selective": True}, 2),
    ],
    ids=str,
)
def test_a_part_of_the_layers_is_recomputed(train: Train, change: dict[str, Any], recomputed: int) -> None:
    """The number of layers is read back, and losses are those without recomputation."""
    trained = train(gradient_checkpointing=True, **change)
    assert trained.facts["recomputed_layers"] == recomputed
    assert trained.record["losses"] == pytest.approx(train(method=change.get("method", "full")).record["losses"])


def test_selective_checkpointing_without_effect_is_refused(train: Train) -> None:
    """TRL 1.16 does not hand its choice through PEFT: everything would be recomputed."""
    from ado_actuators.sfttrainer.core.trainer.errors import Refused

    asked = {"gradient_checkpointing": True, "gradient_checkpointing_selective": True}
    with pytest.raises(
        Refused, match=r"^gradient_checkpointing_selective has no effect with method lora in trl [0-9.]+: all"
    ):
        train(method="lora", unchecked=asked)


def test_checkpointing_that_a_release_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the property and the release; eager attention has no outputs that TRL could keep."""
    trl, transformers = pytest.importorskip("trl"), pytest.importorskip("transformers")
    from ado_actuators.sfttrainer import checkpointing
    from ado_actuators.sfttrainer.core.trainer.errors import BadInput, Refused
    from ado_actuators.sfttrainer.core.workload.fields import Workload

    values = {
        "model_name": "m",
        "model_max_length": 8,
        "batch_size": 1,
        "number_gpus": 0,
        "gradient_checkpointing": True,
    }
    asked: Any = Workload.model_validate({**values, "gradient_checkpointing_selective": True})
    with pytest.raises(Refused, match=r"^gradient_checkpointing_selective needs attn_implementation sdpa or a flash"):
        checkpointing.options(asked, "eager")
    monkeypatch.setattr(trl, "models", types.SimpleNamespace())
    with pytest.raises(BadInput, match=r"^gradient_checkpointing_selective does not exist in trl "):
        checkpointing.options(asked, None)
    monkeypatch.setattr(transformers.PreTrainedModel, "_set_gradient_checkpointing", lambda self, enable=True: None)
    asked = Workload.model_validate({**values, "gradient_checkpointing_every_n_layers": 3})
    with pytest.raises(BadInput, match=r"^gradient_checkpointing_every_n_layers 3 does not exist in transformers "):
        checkpointing.options(asked, None)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_backends_of_torch_compile_are_trained(train: Train, backend: str) -> None:
    """The trainer has the backend; inductor is the default and compiles for half a minute."""
    torch = pytest.importorskip("torch")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert train(torch_compile=True, torch_compile_backend=backend).record["samples"] == [4, 4, 4]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    torch._dynamo.reset()


def test_settings_for_gpus_reach_trl() -> None:
    """They are constructed here, since CPUs cannot run them."""
    transformers = pytest.importorskip("transformers")
    from ado_actuators.sfttrainer import stack
    from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
    from ado_actuators.sfttrainer.core.workload.fields import Workload

    given = {"torch_compile": True, "torch_compile_mode": "max-autotune"}
    values = {"model_name": "m", "model_max_length": 8, "batch_size": 1, "number_gpus": 0, **given}
    workload = JobWorkload(**Workload.model_validate({**values, "activation_offloading": True}).model_dump())
    arguments = stack._arguments(Job(id="test", workload=workload, run_dir="/tmp"), transformers.LlamaConfig())
    assert (arguments.torch_compile_backend, arguments.torch_compile_mode) == ("inductor", "max-autotune")
    assert arguments.activation_offloading
