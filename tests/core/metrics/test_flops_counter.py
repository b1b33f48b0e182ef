"""FLOPs per token against ``torch.utils.flop_counter`` on the meta device, which runs the real model without memory."""

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
    return counter.get_total_flops()


def computed(config, squared_lengths, **options):
    """Return our count for the same sequence."""
    architecture = config.to_dict()
    return LENGTH * flops.per_token(architecture, token_slots=LENGTH, squared_lengths=squared_lengths, **options)


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
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
