"""What a model's config.json may say: nothing of it chooses code, and only decoder-only causal models are trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol import model_config  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import model  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import BadInput, Refused  # noqa: E402
from ado_actuators.sfttrainer.core.workload import models  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
BERT = {**LLAMA, "model_type": "bert"}


def directory(tmp_path: Path, config: dict[str, Any]) -> Job:
    """Return the job of a model directory with a configuration."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    values = {"model_name": str(tmp_path), "model_max_length": 16, "batch_size": 1, "number_gpus": 0}
    return Job(id="test", workload=JobWorkload(**Workload.model_validate(values).model_dump()), source=str(tmp_path))


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_a_configuration_chooses_no_kernel(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would load and run the code of the named repository of the hub."""
    import huggingface_hub

    def download(*_: object, **__: object) -> None:
        pytest.fail("something was asked of the hub")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, download)
    built, facts = model.build(directory(tmp_path, {**LLAMA, key: "org/kernel"}))
    assert facts["attn_implementation"] == "sdpa"
    assert "org/kernel" not in str(built.config.to_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "num_hidden_layers": -3}, "has num_hidden_layers -3"),
        ({**LLAMA, "num_hidden_layers": 10**6}, "has num_hidden_layers 1000000"),
        ({**LLAMA, "num_hidden_layers": "two"}, "has num_hidden_layers 'two'"),
        ({**LLAMA, "hidden_size": True}, "has hidden_size True"),
        ({**LLAMA, "vocab_size": 10**12}, "has vocab_size 1000000000000"),
        ({"model_type": "gpt2", "n_layer": 0}, "has n_layer 0"),
        ({"model_type": "gemma3", "text_config": {**LLAMA, "hidden_size": 0}}, "has text_config.hidden_size 0"),
    ],
)
def test_numbers_that_cannot_be_meant(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Found while planning, without building anything, and by the trainer, whose file may be another."""
    job = directory(tmp_path, config)
    with pytest.raises(models.NotAModelDirectory, match=message):
        models.resolve(str(tmp_path))
    with pytest.raises(BadInput, match=message):
        model.build(job)
    with pytest.raises(Refused, match=message):
        model.build(dataclasses.replace(job, architecture=config, source=None))


def test_what_transformers_builds_by_default_can_be_meant() -> None:
    """The configuration of each type of causal and of vision models."""
    from transformers.models.auto import configuration_auto, modeling_auto

    checked = 0
    types = {
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    for name in types:
        try:
            config = configuration_auto.CONFIG_MAPPING[name]()
        except Exception:  # some types have no defaults
            continue
        assert model_config.implausible(name, config.to_dict()) is None
        checked += 1
    assert checked > 0.9 * len(types)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """100 MB of JSON took 100 s."""
    job = directory(tmp_path, {**LLAMA, "filler": "x" * model_config.LARGEST_CONFIGURATION_BYTES})
    with pytest.raises(models.NotAModelDirectory, match="expected at most 4194304"):
        models.resolve(str(tmp_path))
    with pytest.raises(BadInput, match="expected at most 4194304"):
        model.build(job)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bart", "d_model": 16, "vocab_size": 300}, r"is an encoder-decoder \(bart\)"),
        ({"model_type": "t5", "d_model": 16, "vocab_size": 300}, r"is an encoder-decoder \(t5\)"),
        ({**BERT, "architectures": ["BertForSequenceClassification"]}, "is a BertForSequenceClassification"),
        ({**BERT, "architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM"),
        ({**BERT, "architectures": ["BertModel"]}, r"is an encoder \(bert\)"),
        (BERT, r"is an encoder \(bert\)"),
        ({**BERT, "model_type": "bert-generation"}, r"is an encoder \(bert-generation\)"),
        ({"model_type": "xlnet", "d_model": 16, "n_head": 2, "n_layer": 1}, r"is an encoder \(xlnet\)"),
        ({"model_type": "cpmant", "hidden_size": 16}, r"is an encoder \(cpmant\)"),
        ({"model_type": "whisper", "d_model": 16}, r"is an encoder-decoder \(whisper\)"),
        *(
            ({"model_type": name}, f"is of type {name}, which transformers does not list as causal")
            for name in ("clip", "vit", "siglip", "wav2vec2", "sam", "dpr")
        ),
        ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassification"),
        ({**LLAMA, "quantization_config": {"quant_method": "awq", "bits": 4}}, r"has quantised weights \(awq\)"),
        ({**LLAMA, "quantization_config": {"quant_method": "fp8"}}, r"has quantised weights \(fp8\)"),
    ],
)
def test_only_decoder_only_models_in_the_asked_form(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Half a model, a classifier, a model that sees later tokens, and quantised weights would give numbers of something else."""
    with pytest.raises(Refused, match=message):
        model.build(directory(tmp_path, config))


def test_a_bert_that_is_a_decoder_and_a_bare_decoder_are_trained(tmp_path: Path) -> None:
    """What matters is that no token sees later ones, not the head's name."""
    assert model.build(directory(tmp_path, {**BERT, "is_decoder": True, "architectures": ["BertLMHeadModel"]}))
    assert model.build(directory(tmp_path, {**LLAMA, "architectures": ["LlamaModel"]}))


def test_a_null_is_no_quantisation(tmp_path: Path) -> None:
    """The configuration has no such attribute, for which transformers 4.55 calls a method."""
    built, _ = model.build(directory(tmp_path, {**LLAMA, "quantization_config": None}))
    assert "quantization_config" not in vars(built.config)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    """transformers would load the adapter, and leave nothing to train."""
    job = directory(tmp_path, LLAMA)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="holds an adapter"):
        model.build(job)
