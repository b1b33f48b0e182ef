"""Model directories with broken files: one message that names the file, the tensor or the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer import byte_tokenizer, model  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import BadInput  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345678\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model directory with weights and tokenizer."""
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    byte_tokenizer.build(32).save_pretrained(tmp_path)
    return tmp_path


def job(directory: Path, **change: Any) -> Job:
    """Return a job that loads the weights of a directory."""
    values = {"model_name": "m", "number_gpus": 0, "model_max_length": 8, "batch_size": 1, "weights": "pretrained"}
    workload = JobWorkload(**Workload.model_validate({**values, **change}).model_dump())
    return Job(id="test", workload=workload, source=str(directory))


def test_whole_files_are_loaded(saved: Path) -> None:
    """The checks pass for what transformers has saved."""
    assert model.build(job(saved))[1]["model_parameters"] > 0


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer(saved: Path, name: str) -> None:
    """The file, and the command that gets its content."""
    (saved / name).write_bytes(POINTER)
    with pytest.raises(BadInput, match=f"{name} is a git-lfs pointer without the content; run git lfs pull"):
        model.build(job(saved))


def test_a_tokenizer_that_is_a_pointer(saved: Path) -> None:
    """With random weights only the tokenizer is read, so that pointers of weights do not matter."""
    (saved / "model.safetensors").write_bytes(POINTER)
    random = job(saved, weights="random", dataset_id="d.jsonl")
    network, _ = model.build(random)
    (saved / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(BadInput, match=r"tokenizer\.json is a git-lfs pointer"):
        model.tokenizer(random, network)


@pytest.mark.parametrize(("left", "expected"), [(4, "of 4 bytes is no complete"), (-10, "has [0-9]+ of [0-9]+ bytes")])
def test_a_truncated_file(saved: Path, left: int, expected: str) -> None:
    """The file, its size and the size that its header gives."""
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(BadInput, match=rf"model\.safetensors {expected}.*; download it again"):
        model.build(job(saved))


def test_weights_of_other_shapes(saved: Path) -> None:
    """The first tensor that differs, and both shapes."""
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 48}))
    expected = r"tensor model.layers.0.mlp.down_proj.weight of model.safetensors has the shape \[16, 32\], but config.json gives \[16, 48\]"
    with pytest.raises(BadInput, match=expected):
        model.build(job(saved))


def test_a_tokenizer_of_transformers_5_under_4(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both releases."""
    network, _ = model.build(job(saved))

    def fail(*unused: Any, **options: Any) -> Any:
        raise ValueError("Tokenizer class TokenizersBackend does not exist or is not currently imported.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    monkeypatch.setattr(transformers, "__version__", "4.55.4")
    with pytest.raises(
        BadInput, match=r"was saved by transformers 5, but 4\.55\.4 trains; save it .* PreTrainedTokenizerFast\.$"
    ):
        model.tokenizer(job(saved, dataset_id="d.jsonl"), network)
