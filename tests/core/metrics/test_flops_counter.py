"""FLOPs per token against ``torch.utils.flop_counter`` on the meta device, which runs the real model without memory."""

import copy
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics import flops

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 128
VIRTUAL = 32
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "vocab_size": 1000}
MOE = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


def counted(config, adapter=None):
    """Return torch's count of forward and backward pass over one sequence."""
    from torch.utils.flop_counter import FlopCounterMode

    config._experts_implementation = "batched_mm"  # the others cannot run without values
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        ids = torch.zeros(1, LENGTH, dtype=torch.long)
        if adapter:
            peft = pytest.importorskip("peft")
            kind = peft.PromptTuningConfig if "num_virtual_tokens" in adapter else peft.LoraConfig
            model = peft.get_peft_model(model, kind(**adapter, task_type="CAUSAL_LM"))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # convolutions over positions are no matrix products, and the counter takes their backward pass for one over all channels
    return sum(number for name, number in counter.get_flop_counts()["Global"].items() if "convolution" not in str(name))


def computed(config, squared_lengths, **options):
    """Return our count for the same sequence."""
    architecture = config.to_dict()
    return LENGTH * flops.per_token(architecture, token_slots=LENGTH, squared_lengths=squared_lengths, **options)


GROUPED = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2}
ROUTED = {
    **GROUPED,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "first_k_dense_replace": 1,
}
# small states: the counter has the products of a scan in chunks, or none where it is computed without products
STATE = {"num_hidden_layers": 4, "mamba_d_state": 2, "mamba_chunk_size": 8}
DELTA = {
    **SMALL, "num_hidden_layers": 4, "hidden_size": 1024, "num_key_value_heads": 2, "head_dim": 64, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
SPARSE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 80,
}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ministral 3": ("Ministral3", {**GROUPED, "head_dim": 128}, "full"),
    "smollm 3": ("SmolLM3", {**GROUPED, "num_hidden_layers": 4, "pad_token_id": 0}, "full"),
    "mistral": ("Mistral", GROUPED, "full"),
    "qwen 2": ("Qwen2", GROUPED, "full"),
    "gemma 3": ("Gemma3Text", {**GROUPED, "num_hidden_layers": 6, "head_dim": 128, "sliding_window": 128}, "full"),
    "olmo 2": ("Olmo2", GROUPED, "full"),
    "olmo 3": ("Olmo3", {**GROUPED, "num_hidden_layers": 4, "sliding_window": 128}, "full"),
    "phi 3": ("Phi3", {**GROUPED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}, "full"),
    "glm 4": ("Glm4", {**GROUPED, "head_dim": 64, "pad_token_id": 0}, "full"),
    "glm 4 with experts": ("Glm4Moe", {**ROUTED, "head_dim": 64, "pad_token_id": 0}, "full"),
    "gpt-oss": ("GptOss", {**MOE, "head_dim": 64}, "full"),
    "latent attention": (
        "DeepseekV3",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "q_lora_rank": 96,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 64,
            "v_head_dim": 48,
            "n_group": 2,
            "topk_group": 1,
        },
        "full",
    ),
    # transformers runs every token through all experts; with as many experts as are active both counts agree
    "llama 4": (
        "Llama4Text",
        {
            **MOE,
            "num_hidden_layers": 4,
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            "head_dim": 64,
            "intermediate_size_mlp": 512,
            "interleave_moe_layer_step": 2,
        },
        "full",
    ),
    "lfm 2": ("Lfm2", {**GROUPED, "num_hidden_layers": 4, "full_attn_idxs": [1]}, "full"),
    "nemotron h": (
        "NemotronH",
        {
            **MOE,
            "hidden_size": 1024,
            "head_dim": 64,
            "layers_block_type": ["mamba", "moe", "attention", "mamba"],
            "n_routed_experts": 4,
            "moe_intermediate_size": 256,
            "moe_shared_expert_intermediate_size": 128,
            "mamba_num_heads": 32,
            "mamba_head_dim": 64,
            "ssm_state_size": 2,
            "n_groups": 1,
            "chunk_size": 8,
        },
        "full",
    ),
    "falcon h1": (
        "FalconH1",
        {
            **GROUPED,
            **STATE,
            "hidden_size": 1024,
            "head_dim": 64,
            "mamba_d_ssm": 1024,
            "mamba_n_heads": 16,
            "mamba_d_head": 64,
        },
        "full",
    ),
    "granite 4 hybrid": (
        "GraniteMoeHybrid",
        {
            **MOE,
            **STATE,
            "hidden_size": 1024,
            "shared_intermediate_size": 256,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "mamba_n_heads": 32,
            "mamba_d_head": 64,
        },
        "full",
    ),
    "qwen 3 next": ("Qwen3Next", {**DELTA, **SPARSE}, "full"),
    "qwen 3.5": ("Qwen3_5Text", DELTA, "full"),
    "qwen 3.5 with experts": ("Qwen3_5MoeText", {**DELTA, **SPARSE}, "full"),
    "dense, tied": ("Llama", {**SMALL, "num_hidden_layers": 2, "tie_word_embeddings": True}, "full"),
    "grouped queries": ("Qwen3", {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 128}, "full"),
    "granite": ("Granite", {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 1}, "full"),
    "experts (mixtral)": ("Mixtral", MOE, "full"),
    "experts (granite)": ("GraniteMoe", MOE, "full"),
    "experts (qwen)": ("Qwen3Moe", {**MOE, "moe_intermediate_size": 96, "mlp_only_layers": [1]}, "full"),
    "gpt2": ("GPT2", {"n_layer": 2, "n_embd": 256, "n_head": 4, "vocab_size": 1000}, "full"),
    "gpt bigcode": ("GPTBigCode", {"n_layer": 2, "n_embd": 256, "n_head": 4, "vocab_size": 1000}, "full"),
    "gpt neox": ("GPTNeoX", {**SMALL, "num_hidden_layers": 2}, "full"),
    "prompt tuning": ("Llama", {**SMALL, "num_hidden_layers": 2}, "prompt_tuning"),
    # in the first layer nothing below the adapters needs a gradient, which the formula leaves aside: a matter of depth
    "lora": ("Llama", {**SMALL, "num_hidden_layers": 16, "num_key_value_heads": 2}, "lora"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_flops_agree_with_the_counter_of_torch_within_one_percent(case, capsys):
    """Eager attention computes all pairs and we count causal ones, half of them: the other half is added for comparison."""
    family, numbers, method = CASES[case]
    config = getattr(transformers, f"{family}Config")(**numbers)
    adapters = {
        "lora": {"r": 16, "target_modules": "all-linear"},
        "prompt_tuning": {"num_virtual_tokens": VIRTUAL},
    }
    options = {"method": method, "r": 16, "samples": 1, "num_virtual_tokens": VIRTUAL}
    torch_flops = counted(config, adapters.get(method))
    ours = computed(config, LENGTH**2, **options)
    virtual = VIRTUAL if method == "prompt_tuning" else 0
    # squared lengths that leave no attention
    causal_half = ours - computed(config, LENGTH**2 - (LENGTH + virtual) ** 2, **options)
    message = f"{case}: ours {ours:.6g} causal, {ours + causal_half:.6g} with all pairs; torch {torch_flops:.6g}"
    with capsys.disabled():
        print(f"\n{message}", end=" ")
    assert ours + causal_half == pytest.approx(torch_flops, rel=0.01), message


# families without a formula: parallel attention and MLP, learned positions, ALiBi, one MLP product fewer
COUNTED: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", {**GROUPED, "pad_token_id": 0}),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 64}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 64}),
    "openai-gpt": ("OpenAIGPT", {"vocab_size": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": ("OPT", {**SMALL, "ffn_dim": 512, "num_hidden_layers": 2, "word_embed_proj_dim": 256}),
    "phi": ("Phi", {**GROUPED, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2", {**GROUPED, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 1}),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", COUNTED)
def test_flops_of_types_without_a_formula_are_those_of_the_counter(family):
    """The trainer's count of two forward passes gives those of forward and backward pass of any length within 1 %."""
    from ado_actuators.sfttrainer.core.trainer import flop_counter

    name, numbers = COUNTED[family]
    config = getattr(transformers, f"{name}Config")(**numbers)
    assert config.model_type not in flops.KNOWN
    trained = copy.deepcopy(config)
    # as the model of a training
    trained.use_cache = False
    found = flop_counter.facts(trained)["counted_flops"]
    options = {"method": "full", "counted": found}
    ours = computed(config, LENGTH**2, **options)
    all_pairs = 2 * ours - computed(config, 0, **options)
    assert all_pairs == pytest.approx(counted(config), rel=0.01)
    assert family in flop_counter.note(config)


def test_types_with_a_formula_are_not_counted():
    """The list that the trainer has is that of the formulas."""
    from ado_actuators.sfttrainer.core.protocol import supported
    from ado_actuators.sfttrainer.core.trainer import flop_counter

    assert set(flops.KNOWN) == supported.FLOPS_KNOWN
    assert flop_counter.facts(transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 1})) == {}


def test_every_type_of_the_catalogue_has_a_formula():
    """Models that take images are left out."""
    from ado_actuators.sfttrainer.core.workload import models

    found = [models.resolve(name).architecture for name in models.names()]
    types = {one["model_type"] for one in found if one and "vision_config" not in one}
    assert types <= set(flops.KNOWN)
    for one in found:
        if one and "vision_config" not in one:
            assert flops.per_token(one, method="full", token_slots=1024, squared_lengths=1024**2) > 0
