"""FLOPs against hand-computed numbers and against torch's own counter; peaks against data sheets."""

import pytest

from ado_actuators.sfttrainer.core.metrics import accelerators, flops
from ado_actuators.sfttrainer.core.workload import models

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 20,
    "vocab_size": 100,
}
# per layer q, k, v, o of 8·8 and gate, up, down of 8·20: 4·64 + 3·160 = 736 weights; lm_head 800
LLAMA_WEIGHTS = 3 * 736 + 800


def per_token(architecture, length=0, method="full", **options):
    """Return the FLOP per token of sequences of one length."""
    return flops.per_token(architecture, method=method, token_slots=length or 1, squared_lengths=length**2, **options)


def test_full_fine_tuning_costs_six_flop_per_weight():
    """2 forward, 4 backward; the embedding is a look-up."""
    assert per_token(LLAMA) == 6 * LLAMA_WEIGHTS


def test_attention_counts_causal_pairs():
    """4 · heads · head_dim · S/2 per layer, times 3: 4·8·5·3·3."""
    assert per_token(LLAMA, 10) - per_token(LLAMA) == 1440


def test_packed_documents_attend_to_themselves_only():
    """Two documents of 3 and one of 4 tokens in 10 slots: Σ len² = 34 in place of 100."""
    packed = flops.per_token(LLAMA, method="full", token_slots=10, squared_lengths=34)
    assert packed - per_token(LLAMA) == pytest.approx(1440 * 0.34)


def test_tied_embeddings_count_the_head_once():
    """The product is the same whether the weight is shared or not."""
    assert per_token({**LLAMA, "tie_word_embeddings": True}) == per_token({**LLAMA, "tie_word_embeddings": False})


def test_grouped_query_attention_shrinks_keys_and_values_only():
    """One key-value head of four: k and v of 8·2; attention products as before."""
    grouped = {**LLAMA, "num_key_value_heads": 1}
    assert per_token(LLAMA) - per_token(grouped) == 6 * 3 * 2 * (64 - 16)
    assert per_token(grouped, 10) - per_token(grouped) == 1440


def test_head_dimension_need_not_divide_the_hidden_size():
    """Four heads of 5: q and o of 8·20, k and v with two heads of 8·10, attention 4·20·S/2."""
    odd = {**LLAMA, "head_dim": 5, "num_key_value_heads": 2}
    assert per_token(odd) == 6 * (3 * (2 * 160 + 2 * 80 + 480) + 800)
    assert per_token(odd, 10) - per_token(odd) == 3 * 3 * 4 * 20 * 5


def test_sliding_window_bounds_what_a_token_sees():
    """Of length 10 with a window of 4: 4 - 16/20 = 3.2 positions on average in place of 5."""
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 4}
    assert per_token(mistral, 10) - per_token(mistral) == pytest.approx(1440 * 3.2 / 5)
    assert per_token(mistral, 4) == per_token(LLAMA, 4)


def test_mixture_of_experts_counts_active_experts_and_the_router():
    """Two of eight experts of 480 weights, and a router of 8·8."""
    mixtral = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert per_token(mixtral) == 6 * (3 * (256 + 64 + 2 * 480) + 800)


def test_dense_layers_of_a_sparse_model_count_as_dense():
    """One of three layers with an MLP of 480 weights, two with 3 of 6 experts of 3·8·5 weights and a router of 8·6."""
    sparse = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 5, "mlp_only_layers": [1]}
    qwen = {**LLAMA, "model_type": "qwen3_moe", **sparse}
    assert per_token(qwen) == 6 * (3 * 256 + 480 + 2 * (48 + 3 * 120) + 800)


def test_lora_costs_four_flop_per_frozen_weight_and_six_per_adapter_weight():
    """All-linear adapts q, k, v, o and the MLP, not lm_head: rank 2 times (16·4 + 28·3) in three layers."""
    assert per_token(LLAMA, method="lora", r=2) == 4 * LLAMA_WEIGHTS + 6 * 2 * 3 * (4 * 16 + 3 * 28)


def test_lora_adapts_the_modules_that_are_named():
    """Two of q_proj and v_proj, spaces allowed."""
    named = per_token(LLAMA, method="lora", r=2, target_modules="q_proj, v_proj")
    assert named == 4 * LLAMA_WEIGHTS + 6 * 2 * 3 * 2 * 16


def test_attention_costs_the_same_whatever_is_frozen():
    """Both factors of its products are activations that need gradients."""
    for method in ("lora", "prompt_tuning"):
        assert per_token(LLAMA, 10, method) - per_token(LLAMA, 0, method) == 1440


def test_prompt_tuning_costs_four_flop_per_weight():
    """Gradients pass through every product; no weight is trained."""
    assert per_token(LLAMA, method="prompt_tuning") == 4 * LLAMA_WEIGHTS


def test_virtual_tokens_are_computed_though_they_are_no_slots():
    """Two samples of 5 slots and 3 virtual tokens: 16 positions in sequences of 8, shared out over 10 slots."""
    got = flops.per_token(
        LLAMA, method="prompt_tuning", token_slots=10, squared_lengths=50, samples=2, num_virtual_tokens=3
    )
    assert got == pytest.approx(1.6 * (4 * LLAMA_WEIGHTS + 1440 * 8 / 10))
    assert per_token(LLAMA, method="lora", r=1, samples=2, num_virtual_tokens=3) == per_token(LLAMA, method="lora", r=1)


def test_fused_projections_have_their_published_shapes():
    """GPT-NeoX: query, key and value of 8·24, two of the MLP; GPT BigCode: all four heads share a key and a value of 2."""
    neox = {**LLAMA, "model_type": "gpt_neox"}
    assert per_token(neox) == 6 * (3 * (8 * 24 + 64 + 2 * 160) + 800)
    bigcode = {"model_type": "gpt_bigcode", "n_embd": 8, "n_head": 4, "n_layer": 3, "n_inner": 20, "vocab_size": 100}
    assert per_token(bigcode) == 6 * (3 * (8 * 12 + 64 + 2 * 160) + 800)
    assert per_token({**bigcode, "multi_query": False}) == 6 * (3 * (8 * 24 + 64 + 2 * 160) + 800)
    assert per_token(bigcode, 10) - per_token(bigcode) == 1440


def test_every_language_model_of_the_catalogue_has_a_count():
    """Vision towers without a language model have none; the message says so."""
    unknown = set()
    for name in models.names():
        architecture = models.resolve(name).architecture
        try:
            assert per_token(architecture) > 0
        except flops.UnknownArchitecture:
            unknown.add(name)
            assert "vision_config" in (architecture or {})
    assert unknown
    assert len(unknown) < len(models.names()) / 4


def test_hybrid_layers_count_projections_and_recurrence():
    """One attention and two state-space layers, by the names of either version of transformers."""
    hybrid = {
        **LLAMA,
        "model_type": "granitemoehybrid",
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "mamba_n_heads": 4,
        "shared_intermediate_size": 10,
    }
    # in_proj 8·(2·16 + 2·4 + 4), out_proj 16·8, shared MLP 8·20 + 10·8; scan 4·16·4
    expected = 6 * (256 + 2 * (8 * 44 + 128) + 3 * 240 + 800) + 3 * 2 * 256
    for names in (["mamba", "attention", "mamba"], ["linear_attention", "full_attention", "linear_attention"]):
        assert per_token({**hybrid, "layer_types": names}) == expected


def test_unknown_architecture_is_refused_by_name():
    """No guess for a model type without a count."""
    with pytest.raises(flops.UnknownArchitecture, match="'mllama'"):
        per_token({"model_type": "mllama"})


def test_configuration_without_a_number_is_refused():
    """The key that is missing is named."""
    with pytest.raises(flops.UnknownArchitecture, match="intermediate_size"):
        per_token({key: value for key, value in LLAMA.items() if key != "intermediate_size"})


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-PCIE-40GB", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "float16", 989.5),
        ("NVIDIA H200 NVL", "float16", 835.5),
        ("NVIDIA L40S", "bfloat16", 362.05),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA A10", "bfloat16", 125.0),
        ("Tesla V100-PCIE-16GB", "float16", 112.0),
        ("Tesla V100-SXM2-32GB", "float16", 125.0),
        ("Tesla T4", "float16", 65.0),
        ("NVIDIA B200", "bfloat16", 2250.0),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("NVIDIA A40", "bfloat16", 149.7),
        ("NVIDIA A30", "bfloat16", 165.0),
        ("NVIDIA A30", "tf32", 82.5),
        ("NVIDIA A100 80GB PCIe", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "float32", 67.0),
        ("Tesla V100S-PCIE-32GB", "float16", 130.0),
        ("AMD Instinct MI300X", "bfloat16", 1307.4),
    ],
)
def test_known_devices_have_their_dense_peak(device, dtype, peak):
    """By the name the driver gives and the type of number."""
    assert accelerators.peak_tflops(device, dtype) == (peak, "")


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "float32"),
        ("NVIDIA A10M", "bfloat16"),
        ("NVIDIA A1000", "bfloat16"),
        ("NVIDIA H100", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16"),
        ("NVIDIA A100-1-5C", "bfloat16"),
        ("NVIDIA A40-8Q", "bfloat16"),
        ("GRID A100-10C", "bfloat16"),
        ("GRID T4-8Q", "float16"),
        ("AMD Instinct MI300X VF", "bfloat16"),
        ("Tesla T4", "bfloat16"),
        ("Tesla T4", "tf32"),
    ],
)
def test_unknown_devices_have_no_peak_but_a_reason(device, dtype):
    """A name that resembles a known one is unknown, and so is a type that the data sheet lacks."""
    peak, reason = accelerators.peak_tflops(device, dtype)
    assert peak is None
    assert device in reason
