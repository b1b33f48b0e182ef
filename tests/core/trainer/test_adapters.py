"""The forms of ``target_modules``: what PEFT adapts is read back and counted in FLOPs, what it cannot adapt is refused."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from ado_actuators.sfttrainer.core.metrics import flops  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import adapters  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import Refused  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402
from ado_actuators.sfttrainer.core.workload.validation import parse  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 264}
HEADS = {**SMALL, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
LENGTH = 32
CONFIGURATIONS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**HEADS),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8
    ),
    "mamba": transformers.MambaConfig(**SMALL),
}


def workload(target_modules: Any = "all-linear", **change: Any) -> JobWorkload:
    """Return a LoRA workload."""
    values = {"model_name": "m", "number_gpus": 0, "model_max_length": LENGTH, "batch_size": 1, "method": "lora"}
    return JobWorkload(**parse({**values, "target_modules": target_modules, **change}).model_dump())


def adapt(kind: str, target_modules: str, **change: Any) -> Any:
    """Return a model with adapters, and the notes."""
    network = transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS[kind], attn_implementation="eager")
    wanted = workload(target_modules, **change)
    with adapters.explained(wanted):
        found, notes = adapters.resolved(network, wanted)
        config = peft.LoraConfig(**adapters.options(wanted), target_modules=found, task_type="CAUSAL_LM")
        return peft.get_peft_model(network, config), notes


def shapes(model: Any) -> set[tuple[str, int, int, int, int, int]]:
    """Return the adapters read back as module, inputs, outputs, rank, experts, layers."""
    names = ("module", "inputs", "outputs", "rank", "experts", "layers")
    return {tuple(one[name] for name in names) for one in adapters.adapted(model)}


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("q_proj, v_proj", {("q_proj", 32, 32, 8, 1, 2), ("v_proj", 32, 16, 8, 1, 2)}),
        ("self_attn.q_proj", {("q_proj", 32, 32, 8, 1, 2)}),
        ("model.layers.1.mlp.up_proj,k_proj", {("up_proj", 32, 64, 8, 1, 1), ("k_proj", 32, 16, 8, 1, 2)}),
        (r".*\.layers\.0\..*(q|o)_proj", {("q_proj", 32, 32, 8, 1, 1), ("o_proj", 32, 32, 8, 1, 1)}),
        ("embed_tokens", {("embed_tokens", 0, 32, 8, 1, 1)}),
    ],
)
def test_every_form_of_names_is_adapted_and_counted(target_modules: str, expected: set[Any]) -> None:
    """Names, ends of paths, paths, regular expressions; the FLOPs agree with PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    model, notes = adapt("llama", target_modules)
    assert shapes(model) == expected
    assert notes == []
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    with torch.no_grad(), FlopCounterMode(display=False) as without, model.disable_adapter():
        model(input_ids=ids)
    counted = (counter.get_total_flops() - without.get_total_flops()) / LENGTH
    architecture = CONFIGURATIONS["llama"].to_dict()
    assert sum(flops._adapter_flops(one, architecture) for one in adapters.adapted(model)) == counted


@pytest.mark.parametrize("how", ["pissa", "olora", "orthogonal"])
def test_a_decomposition_has_no_more_factors_than_the_matrix(how: str) -> None:
    """k_proj has 16 outputs: two initialisations give it 16 factors of the 24 asked for, as the parameters show."""
    model, _ = adapt("llama", "k_proj", r=24, init_lora_weights=how)
    (adapter,) = adapters.adapted(model)
    assert adapter["rank"] == (24 if how == "orthogonal" else 16)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trainable == adapter["layers"] * adapter["rank"] * (adapter["inputs"] + adapter["outputs"])


def test_fused_experts_and_routers_are_counted() -> None:
    """PEFT adapts gate and up as one parameter with twice the rank, and the router; a token passes two of four experts."""
    model, _ = adapt("qwen3_moe", "all-linear")
    experts = {("gate_up_proj", 32, 64, 16, 4, 2), ("down_proj", 32, 32, 8, 4, 2), ("gate", 32, 4, 8, 1, 2)}
    assert experts < shapes(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == sum(rank * (i + o) * experts * layers for _, i, o, rank, experts, layers in shapes(model))
    found = flops.per_token(
        CONFIGURATIONS["qwen3_moe"].to_dict(),
        method="lora",
        token_slots=LENGTH,
        squared_lengths=LENGTH**2,
        adapters=adapters.adapted(model),
    )
    assert found == 194_944


class Expert(torch.nn.Module):
    """An expert with linear layers of its own, as transformers 4 builds them."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(32, 48, bias=False)
        self.down_proj = torch.nn.Linear(48, 32, bias=False)


class Layer(torch.nn.Module):
    """A router that sends each token to two of four experts, and an expert for all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(32, 4, bias=False)
        self.experts = torch.nn.ModuleList(Expert() for _ in range(4))
        self.shared_expert = Expert()

    def forward(self, tokens: Any) -> Any:
        """Return the sum of the chosen experts and the shared one."""
        total = self.shared_expert.down_proj(self.shared_expert.up_proj(tokens))
        chosen = self.gate(tokens).topk(2).indices
        for number, expert in enumerate(self.experts):
            sent = (chosen == number).any(-1)
            total[sent] = total[sent] + expert.down_proj(expert.up_proj(tokens[sent]))
        return total


@pytest.mark.parametrize(
    "target_modules", ["all", ["up_proj", "gate"], ["experts.1.down_proj", "shared_expert.down_proj"]]
)
def test_experts_with_modules_of_their_own_count_for_the_tokens_sent_to_them(target_modules: Any) -> None:
    """Averaged over experts; the FLOPs agree with PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    linear = ["gate", "up_proj", "down_proj"] if target_modules == "all" else target_modules
    torch.manual_seed(0)
    model = peft.get_peft_model(Layer(), peft.LoraConfig(r=8, target_modules=linear))
    tokens = torch.randn(LENGTH, 32)
    counts = []
    for disabled in (contextlib.nullcontext(), model.disable_adapter()):
        with torch.no_grad(), disabled, FlopCounterMode(display=False) as counter:
            balanced(model, tokens)
        counts.append(counter.get_total_flops())
    architecture = {"num_experts": 4, "num_experts_per_tok": 2}
    found = sum(flops._adapter_flops(one, architecture) for one in adapters.adapted(model))
    assert found == (counts[0] - counts[1]) / LENGTH


def balanced(model: Any, tokens: Any) -> None:
    """Run a layer with a router that sends as many tokens to each expert."""
    gate = model.base_model.model.gate
    choice = torch.nn.functional.one_hot(torch.arange(len(tokens)) % 4, 4) + torch.nn.functional.one_hot(
        (torch.arange(len(tokens)) + 1) % 4, 4
    )
    handle = gate.register_forward_hook(lambda module, inputs, output: choice.float())
    try:
        model(tokens)
    finally:
        handle.remove()


@pytest.mark.parametrize("names", ["gate_proj,up_proj", "gate", "q_proj,down_proj"])
def test_names_of_fused_experts_match(names: str) -> None:
    """PEFT translates the names of older releases; nothing is reported as missing."""
    model, notes = adapt("qwen3_moe", names)
    assert notes == []
    assert len(shapes(model)) in (1, 2)


def test_names_that_match_nothing_are_noted() -> None:
    """If others match; else the workload is refused with the names that the model has."""
    assert adapt("llama", "q_proj,c_attn")[1] == ["target_modules: no module of this model is named c_attn."]
    with pytest.raises(
        Refused, match="target_modules c_attn names no module of this model; it has down_proj, gate_proj"
    ):
        adapt("llama", "c_attn")


@pytest.mark.parametrize(
    ("kind", "target_modules", "expected"),
    [
        ("llama", "mlp", "names model.layers.0.mlp, a LlamaMLP, which is not a linear layer; name down_proj, gate_proj, up_proj"),
        ("llama", "self_attn", "which is not a linear layer; name k_proj"),
        ("llama", "input_layernorm", "a LlamaRMSNorm, which is not a linear layer; name linear layers"),
        ("llama", "(q_proj", "is not a valid regular expression"),
        ("llama", "a{99999999999}", "is not a valid regular expression: the repetition number is too large"),
        ("llama", ".*mlp", "names model.layers.0.mlp, a LlamaMLP"),
        ("llama", "layers.1", "a LlamaDecoderLayer, which is not a linear layer; name down_proj, gate_proj, k_proj"),
        ("qwen3_moe", "experts", "a Qwen3MoeExperts, which is not a linear layer"),
        ("mamba", "out_proj", "which PEFT cannot adapt in this model; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused(kind: str, target_modules: str, expected: str) -> None:
    """One message in terms of target_modules, of at most 200 characters."""
    with pytest.raises(Refused, match=re.escape(expected)) as raised:
        adapt(kind, target_modules)
    assert len(str(raised.value)) <= 200


def test_all_linear_of_mamba_leaves_out_what_peft_refuses() -> None:
    """The default works, and the result says what it leaves out."""
    model, notes = adapt("mamba", "all-linear")
    assert {module for module, *_ in shapes(model)} == {"in_proj", "x_proj", "dt_proj"}
    assert notes == ["all-linear leaves out out_proj, which PEFT cannot adapt in this model."]


def test_impossible_adapters_of_peft_and_trl() -> None:
    """Exceptions with known causes become refusals; others pass."""
    with pytest.raises(Refused, match="lora_dropout must be 0"):
        adapt("qwen3_moe", "all-linear", lora_dropout=0.1)
    with pytest.raises(Refused, match="use_dora must be false for this model: PEFT adapts its experts"):
        adapt("qwen3_moe", "all-linear", use_dora=True)
    network = transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS["llama"])
    asked = workload("q_proj", target_parameters="input_layernorm.weight")
    with pytest.raises(Refused, match="names a parameter of 1 dimensions; name matrices or fused experts"):
        adapters.check_parameters(network, asked)
    tuning = workload(method="prompt_tuning")
    network = transformers.AutoModelForCausalLM.from_config(CONFIGURATIONS["mamba"])
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(Refused, match="its configuration has no num_attention_heads"), adapters.explained(tuning):
        peft.get_peft_model(network, config)
    with pytest.raises(ValueError, match="other"), adapters.explained(tuning):
        raise ValueError("other")


def test_a_list_of_names_is_accepted() -> None:
    """As YAML writes it."""
    values = {"model_name": "m", "number_gpus": 0, "model_max_length": 8, "batch_size": 1, "method": "lora"}
    assert isinstance(parsed := parse({**values, "target_modules": ["q_proj", "v_proj"]}), Workload)
    assert parsed.target_modules == "q_proj,v_proj"
