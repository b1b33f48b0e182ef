"""Models of a job: random weights, pretrained weights, tokenizers. Uses torch with tiny models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
flash = pytest.importorskip("transformers.modeling_flash_attention_utils")
transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import attention, byte_tokenizer, initialise, model  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import BadInput, Refused  # noqa: E402
from ado_actuators.sfttrainer.core.workload import models  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

WORKLOAD = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 64,
    "batch_size": 1,
    "number_gpus": 0,
}
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


def job(architecture: dict[str, Any] | None = None, source: str | None = None, **change: Any) -> Job:
    """Return a job with a model."""
    workload = JobWorkload(**Workload.model_validate({**WORKLOAD, **change}).model_dump())
    return Job(id="test", workload=workload, architecture=architecture, source=source)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model directory with weights and tokenizer."""
    network, _ = model.build(job(SMALL))
    network.save_pretrained(tmp_path)
    byte_tokenizer.build(32).save_pretrained(tmp_path)
    return tmp_path


def test_random_weights_come_from_the_models_own_initialiser() -> None:
    """Matrices have the configured standard deviation, norms are one, and no parameter is uninitialised."""
    network, facts = model.build(job(models.resolve("tiny-llama-5m").architecture))
    assert facts == {"model_parameters": 4999424, "dtype": "float32", "attn_implementation": "sdpa"}
    for name, parameter in network.named_parameters():
        weights = parameter.detach()
        if "norm" in name:
            assert torch.equal(weights, torch.ones_like(weights)), name
        else:
            assert float(weights.std()) == pytest.approx(0.02, rel=0.02), name
            assert float(weights.mean()) == pytest.approx(0.0, abs=0.0005), name
    assert network.config.use_cache is False


def test_first_loss_is_that_of_a_guess() -> None:
    """With random weights the loss is within ln(vocabulary size) ± 0.5."""
    network, _ = model.build(job(models.resolve("tiny-llama-5m").architecture))
    ids = torch.randint(3, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    assert float(network(input_ids=ids, labels=ids).loss.detach()) == pytest.approx(8.318, abs=0.5)


def test_equal_seeds_give_equal_weights() -> None:
    """All ranks build the same model; a different seed gives a different one."""
    first, again, other = (model.build(job(SMALL, seed=seed))[0].get_input_embeddings().weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_do_not_depend_on_the_number_of_threads() -> None:
    """Large tensors are drawn in pieces of a fixed size, each with its own generator."""
    drawn = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with initialise.quickly(7, own_initialiser=True):
                drawn.append(torch.empty(3, initialise.PIECE).normal_(0.0, 0.5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert float(drawn[0].std()) == pytest.approx(0.5, rel=0.01)
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_linear_layers_draw_as_before_afterwards() -> None:
    """The draw at construction is skipped only inside the block, also if the block raises an exception."""
    linear = torch.nn.Linear.reset_parameters
    with pytest.raises(ZeroDivisionError), initialise.quickly(7, own_initialiser=True):
        raise ZeroDivisionError
    assert torch.nn.Linear.reset_parameters is linear


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_wanted_type(dtype: str) -> None:
    """Every parameter has the workload's data type."""
    network, facts = model.build(job(SMALL, torch_dtype=dtype))
    assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, dtype)}
    assert facts["dtype"] == dtype


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_that_of_the_workload(attention: str) -> None:
    """The model reports the workload's attention."""
    assert model.build(job(SMALL, attn_implementation=attention))[1]["attn_implementation"] == attention


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_attention_without_its_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what to install: the package of the implementation, or the one that loads kernels of the hub."""
    monkeypatch.setattr(attention, "_has_kernels", lambda: False)
    with pytest.raises(BadInput, match=r"needs .*the package kernels \(>=0\.\d+\.\d+,<0\.\d+\.\d+\)") as refused:
        model.build(job(SMALL, attn_implementation=name))
    assert "flash-attn" in str(refused.value)
    assert len(str(refused.value)) <= 200


def test_attention_takes_the_kernel_of_the_hub_in_place_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package kernels transformers loads flash attention from the hub, so the workload is possible."""
    monkeypatch.setattr(attention, "_has_kernels", lambda: True)
    for name in ("flash_attention_2", "kernels-community/flash-attn2"):
        workload = job(SMALL, attn_implementation=name).workload
        assert attention.argument(workload) == {"attn_implementation": name}


def test_another_attention_than_the_workloads_is_not_measured() -> None:
    """transformers 4 replaces a kernel that it cannot load by sdpa; such a run must not be stored under the kernel's name."""
    network, _ = model.build(job(SMALL))
    workload = job(SMALL, attn_implementation="kernels-community/flash-attn2").workload
    with pytest.raises(BadInput, match=r"could not be loaded: transformers .* would use sdpa"):
        attention.check(workload, network)
    network.config._attn_implementation_internal = flash.FLASH_ATTN_KERNEL_FALLBACK["flash_attention_2"]
    attention.check(job(SMALL, attn_implementation="flash_attention_2").workload, network)


def test_attention_a_model_lacks_is_refused() -> None:
    """An architecture without sdpa cannot run the workload: the measurement is complete, not failed."""
    with (
        pytest.raises(Refused, match="does not support attn_implementation sdpa"),
        model._explained(job(attn_implementation="sdpa")),
    ):
        raise ValueError("X does not support an attention implementation through torch yet.")


VISION_MODEL = {
    "model_type": "llava_next",
    "image_token_index": 299,
    "text_config": SMALL,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "image_size": 28,
    },
}


def test_a_vision_model_is_built_whole() -> None:
    """For text, too, as training libraries do."""
    network, facts = model.build(job(VISION_MODEL))
    assert network.config.vision_config.image_size == 28
    assert facts["model_parameters"] > sum(one.numel() for one in network.get_decoder().parameters())


def test_a_language_model_takes_no_images() -> None:
    """A workload with a column of images needs a vision model."""
    with pytest.raises(Refused, match="takes no images"):
        model.build(job(SMALL, dataset_image_field="image"))


def test_positions_grow_to_the_samples() -> None:
    """With random weights, samples may be longer than those of the published model."""
    network, _ = model.build(job(SMALL, model_max_length=64))
    assert network.config.max_position_embeddings == 64
    assert network(input_ids=torch.zeros(1, 64, dtype=torch.long)).logits.shape == (1, 64, 300)


def test_a_directory_gives_its_architecture(saved: Path) -> None:
    """Random weights for a directory have the shapes of its weights, but other values."""
    loaded, _ = model.build(job(source=str(saved), weights="pretrained"))
    drawn, _ = model.build(job(source=str(saved), seed=7))
    assert drawn.get_input_embeddings().weight.shape == (300, 16)
    assert not torch.equal(loaded.get_input_embeddings().weight, drawn.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_pretrained_weights_are_quantised_as_random_ones_are(saved: Path, kind: str) -> None:
    """transformers quantises the former while it loads them, this project the latter: the same layers hold the same bytes."""
    pytest.importorskip("bitsandbytes")
    from ado_actuators.sfttrainer.core.trainer import quantise

    asked: dict[str, Any] = {"method": "qlora", "quantisation": kind, "double_quantisation": False}
    loaded, facts = model.build(job(source=str(saved), weights="pretrained", **asked), quantised=True)
    drawn, same = model.build(job(SMALL, **asked), quantised=True)
    assert facts == same
    found = quantise.facts(loaded)
    assert found == quantise.facts(drawn)
    assert found["quantisation"] == kind
    pairs = zip(loaded.parameters(), drawn.parameters(), strict=True)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def test_layers_of_gpt2_are_quantised(tmp_path: Path) -> None:
    """Their weights are transposed, and quantised as transformers does while it loads them."""
    pytest.importorskip("bitsandbytes")
    from ado_actuators.sfttrainer.core.trainer import quantise

    sizes = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    network, _ = model.build(job({"model_type": "gpt2", **sizes}))
    network.save_pretrained(tmp_path)
    loaded, _ = model.build(job(source=str(tmp_path), weights="pretrained", method="qlora"), quantised=True)
    drawn, _ = model.build(job({"model_type": "gpt2", **sizes}, method="qlora"), quantised=True)
    assert quantise.facts(drawn) == quantise.facts(loaded)
    assert quantise.facts(drawn)["quantised_layers"] == 4
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(
        *(one.train()(input_ids=ids).logits for one in (_without_dropout(loaded), _without_dropout(drawn)))
    )


def _without_dropout(network: Any) -> Any:
    for one in network.modules():
        if isinstance(one, torch.nn.Dropout):
            one.p = 0.0
    return network


def test_experts_that_are_not_quantised_are_noted() -> None:
    """Fused experts have 4 · 3 · 16 · 32 parameters."""
    pytest.importorskip("bitsandbytes")
    from ado_actuators.sfttrainer.core.trainer import quantise

    network, _ = model.build(job(EXPERTS, method="qlora"), quantised=True)
    network.requires_grad_(False)
    is_fused = any(one.dim() == 3 for one in network.parameters())
    noted = [
        "The weights of fused experts, 6,144 parameters, keep their type: bitsandbytes quantises linear layers only."
    ]
    assert quantise.notes(network) == (noted if is_fused else [])


def test_pretrained_weights_are_the_saved_ones(saved: Path) -> None:
    """Loaded values are equal to the saved ones."""
    built, _ = model.build(job(SMALL))
    loaded, _ = model.build(job(source=str(saved), weights="pretrained"))
    assert torch.equal(built.get_input_embeddings().weight, loaded.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "config.json"),
        ('{"model_type": "no-such-type"}', "its configuration has model_type 'no-such-type', which transformers "),
        ("{}", "has no model_type"),
    ],
)
def test_a_bad_configuration_is_one_message(tmp_path: Path, content: str, expected: str) -> None:
    """A long text of transformers becomes a short message that names the model."""
    directory = tmp_path / ("a-long-name-of-a-directory" * 4)
    directory.mkdir()
    (directory / "config.json").write_text(content)
    with pytest.raises(BadInput) as raised:
        model.build(job(source=str(directory), model_name="mine"))
    message = str(raised.value)
    assert "mine" in message
    assert expected in message
    assert len(message) <= 200
    assert "\n" not in message


def test_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    """A model with its own code needs trust_remote_code; without it the code is not imported."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('executed')")
    with pytest.raises(BadInput, match="trust_remote_code"):
        model.build(job(source=str(tmp_path)))


def test_a_contradictory_configuration_gives_the_reason(tmp_path: Path) -> None:
    """The message has what transformers says in full."""
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 5, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput) as raised:
        model.build(job(source=str(tmp_path)))
    assert re.fullmatch(
        r"Model .* rejects a value of its config.json: \w+Error: .*"
        r"The hidden size \(64\) is not a multiple of the number of attention heads \(5\)\.",
        str(raised.value),
    )
    assert raised.value.quotes


def test_a_model_of_masked_tokens_is_refused(tmp_path: Path) -> None:
    """It is not trained to predict the next token, so its numbers would be meaningless."""
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "num_hidden_layers": 1}))
    with pytest.raises(Refused, match="does not predict the next token; use a causal language model"):
        model.build(job(source=str(tmp_path)))


def test_a_hub_id_out_of_reach_is_one_message() -> None:
    """The message names the remedy."""
    with pytest.raises(BadInput, match="neither in the local cache nor reachable"):
        model.build(job(source="no-such-org/no-such-model", weights="pretrained"))


def test_the_byte_tokenizer_takes_any_text() -> None:
    """It makes one token for each byte of UTF-8; decoding returns the text."""
    tokenizer = byte_tokenizer.build(64)
    text = "héllo\n 語"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 259)


def test_user_data_uses_the_models_tokenizer(saved: Path) -> None:
    """The tokenizer is that of the model's directory."""
    its_job = job(source=str(saved), dataset_id="some.jsonl")
    network, _ = model.build(its_job)
    assert model.tokenizer(its_job, network).eos_token == "<eos>"


def test_user_data_without_a_tokenizer(saved: Path) -> None:
    """A directory without tokenizer files cannot be used with text."""
    for file in saved.glob("*token*"):
        file.unlink()
    its_job = job(source=str(saved), dataset_id="some.jsonl", model_name="mine")
    network, _ = model.build(its_job)
    with pytest.raises(BadInput, match="The tokenizer of model mine cannot be read"):
        model.tokenizer(its_job, network)


def test_a_tokenizer_larger_than_the_model(saved: Path) -> None:
    """Ids beyond the embeddings would crash a kernel on a GPU, so they are rejected."""
    tokenizer = byte_tokenizer.build(32)
    tokenizer.add_tokens([f"<{number}>" for number in range(100)])
    tokenizer.save_pretrained(saved)
    its_job = job(source=str(saved), dataset_id="some.jsonl", model_name="mine")
    network, _ = model.build(its_job)
    with pytest.raises(BadInput, match="has 359 tokens, but the model only 300"):
        model.tokenizer(its_job, network)


def test_a_missing_package_is_named() -> None:
    """Python names it, transformers in some places only in its text."""
    assert model._missing_package(ImportError("No module", name="einops")) == "einops"
    text = "TimmWrapperModel requires the timm library but it was not found in your environment."
    assert model._missing_package(ImportError(text)) == "timm"
    assert model._missing_package(ImportError("odd")) is None
    assert model._missing_package(ValueError(text)) is None
