"""Model directories with broken files: one message that names the file, the tensor or the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")
safetensors_torch = pytest.importorskip("safetensors.torch")

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


@pytest.mark.parametrize(
    ("left", "expected"), [(4, "of 4 bytes is not a complete"), (-10, "has [0-9]+ of [0-9]+ bytes")]
)
def test_a_truncated_file(saved: Path, left: int, expected: str) -> None:
    """The file, its size and the size that its header gives."""
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(BadInput, match=rf"model\.safetensors {expected}.*; download it again"):
        model.build(job(saved))


def test_weights_that_are_missing(saved: Path) -> None:
    """All of them, or a file that the index names."""
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(
        BadInput, match=r"^Model m has no model\.safetensors or pytorch_model\.bin; save its weights there"
    ):
        model.build(job(saved))
    (saved / "part-1.safetensors").write_bytes(content)
    index = {
        "metadata": {},
        "weight_map": {"lm_head.weight": "part-2.safetensors", "model.norm.weight": "part-1.safetensors"},
    }
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        BadInput, match=r"^Model m: part-2\.safetensors is missing, which the index of its weights names"
    ):
        model.build(job(saved))


def test_a_file_of_weights_that_the_library_does_not_read(saved: Path) -> None:
    """Such as one with a data type of a newer release: the file, and what the library says in full."""
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"F99"', 1))
    with pytest.raises(BadInput) as raised:
        model.build(job(saved))
    begin = f"Model m: safetensors {safetensors.__version__} does not read model.safetensors; download it again: "
    assert str(raised.value).startswith(f"{begin}SafetensorError: ")
    assert "unknown variant `F99`, expected one of `BOOL`" in str(raised.value)
    assert raised.value.quotes


def as_bin(directory: Path, content: bytes | None = None, *, archive: bool = True) -> Path:
    """Replace the weights by a file of torch."""
    network = transformers.AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    file = directory / "pytorch_model.bin"
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=archive)
    if content is not None:
        file.write_bytes(content)
    return file


@pytest.mark.parametrize("archive", [True, False])
def test_a_truncated_file_of_torch(saved: Path, archive: bool) -> None:
    """Both forms of torch's files; a whole one is loaded."""
    file = as_bin(saved, archive=archive)
    assert model.build(job(saved))[1]["model_parameters"] > 0
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    expected = (
        "ends before its last tensor; download it again" if archive else "its weights cannot be loaded as tensors"
    )
    with pytest.raises(BadInput, match=expected) as raised:
        model.build(job(saved))
    assert len(str(raised.value)) <= 200


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>" * 99, b"\x00" * 5000])
def test_a_file_that_torch_has_not_written(saved: Path, content: bytes) -> None:
    """The message does not advise ``weights_only=False``."""
    as_bin(saved, content)
    with pytest.raises(BadInput, match=rf"pytorch_model\.bin of {len(content)} bytes is not a file of PyTorch"):
        model.build(job(saved))


class Code:
    """Runs a function when it is loaded without ``weights_only``."""

    def __reduce__(self) -> Any:
        """Return the function."""
        return pytest.fail, ("code of the weights was run",)


def test_weights_with_code(saved: Path) -> None:
    """The code does not run, and the message does not advise to run it."""
    torch.save({"model.embed_tokens.weight": Code()}, as_bin(saved))
    with pytest.raises(BadInput, match=r"cannot be loaded as tensors \(UnpicklingError\).*; use safetensors"):
        model.build(job(saved))


@pytest.mark.parametrize("change", ["other prefix", "a layer is missing"])
def test_missing_weights_are_not_drawn(saved: Path, change: str) -> None:
    """transformers would draw random values, and the measurement would not be one of pretrained weights."""
    file = saved / "model.safetensors"
    tensors = safetensors_torch.load_file(file)
    if change == "other prefix":
        tensors = {f"other.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if "mlp" not in name}
    safetensors_torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"[0-9]+ of 1[0-9] tensors are not in the weights, such as (lm_head|model\.)"):
        model.build(job(saved))


def test_tied_weights_are_not_missing(saved: Path) -> None:
    """The file has only one of two tensors that share their memory."""
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(saved)
    assert "lm_head.weight" not in safetensors_torch.load_file(saved / "model.safetensors")
    assert model.build(job(saved))[1]["model_parameters"] > 0


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not valid JSON"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer.json", None, "it has no tokenizer.json, or needs the package sentencepiece or tiktoken"),
        (
            "tokenizer_config.json",
            "[1]",
            "tokenizer_config.json is a list; expected an object; correct or download it again.",
        ),
        (
            "tokenizer_config.json",
            '{"eos_token": 3}',
            "tokenizer_config.json has eos_token 3; expected text, or an object with content",
        ),
        (
            "tokenizer_config.json",
            '{"eos_token": "<eos>", "padding_side": null}',
            "has padding_side null; expected left or right",
        ),
        (
            "tokenizer_config.json",
            '{"eos_token": "<eos>", "model_max_length": "x"}',
            'has model_max_length "x"; expected a number',
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 2}}', "an object; expected an object of objects"),
        ("tokenizer_config.json", "{}", "has no end-of-sequence token; set eos_token in its tokenizer_config.json"),
        ("tokenizer.json", '"x"', "tokenizer.json is text; expected an object"),
        ("tokenizer.json", "{}", "tokenizer.json has no model"),
        (
            "tokenizer.json",
            '{"model": {"type": "x"}, "added_tokens": []}',
            'tokenizer.json has model.type "x"; expected BPE, Unigram, WordLevel or WordPiece.',
        ),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json is nested too deeply"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json is an empty list; expected an object"),
        ("special_tokens_map.json", '{"additional_special_tokens": [3]}', "a list; expected a list of tokens"),
        ("added_tokens.json", "null", "added_tokens.json is null; expected an object"),
        ("chat_template.jinja", "\udcff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_a_broken_tokenizer(saved: Path, file: str, content: str | None, expected: str) -> None:
    """The file, what it should hold, and what to do."""
    network, _ = model.build(job(saved))
    if content is None:
        (saved / file).unlink()
    else:
        (saved / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BadInput) as raised:
        model.tokenizer(job(saved, dataset_id="d.jsonl"), network)
    assert expected in str(raised.value)
    assert len(str(raised.value)) <= 200


FOO = {"type": "Foo"}
SPLIT = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "expected", "quoted"),
    [
        ({"model": FOO}, 'model.type "Foo"; expected BPE, Unigram, WordLevel or WordPiece.', ""),
        ({"normalizer": FOO}, 'normalizer.type "Foo"; expected BertNormalizer, ', ""),
        ({"pre_tokenizer": FOO}, 'pre_tokenizer.type "Foo"; expected BertPreTokenizer, ', ""),
        ({"post_processor": FOO}, 'post_processor.type "Foo"; expected BertProcessing, ', ""),
        ({"decoder": {"type": "Bytelevel"}}, 'decoder.type "Bytelevel"; expected ByteLevel, ', ""),
        ({"decoder": {}}, "decoder that is: object; expected an object with type, which is BPEDecoder, ", ""),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFX"}]}},
            'normalizer.normalizers[1].type "NFX"; expected NF',
            "",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}},
            "pre_tokenizer.pretokenizers[0] of type Split whose keys or values tokenizers ",
            "unmatched parenthesis.",
        ),
        ({"model": {"type": "BPE"}}, "model of type BPE whose keys or values tokenizers ", "Missing vocab/merges."),
        ({"added_tokens": [{"id": 0, "content": "a"}]}, "added_tokens[0] that is: object, which ", "`single_word`."),
        ({"version": "9"}, 'version "9", which tokenizers ', "Unknown tokenizer version '9'."),
    ],
)
def test_a_part_of_a_tokenizer_that_is_not_known(
    saved: Path, change: dict[str, Any], expected: str, quoted: str
) -> None:
    """The file, the key, the value and what is expected; the library's text only where it alone knows that."""
    network, _ = model.build(job(saved))
    file = saved / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadInput) as raised:
        model.tokenizer(job(saved, dataset_id="d.jsonl"), network)
    message = str(raised.value)
    assert message.startswith(f"The tokenizer of model m cannot be read: tokenizer.json has {expected}")
    assert len(message) <= 200 or quoted
    assert (": Exception: " in message, raised.value.quotes) == (bool(quoted), bool(quoted))
    assert message.endswith(quoted)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("generation_config.json", "[]", "generation_config.json is an empty list; expected an object"),
        (
            "generation_config.json",
            '{"cache_implementation": "x"}',
            "generation_config.json has a value that cannot be used: ValueError: Invalid ",
        ),
        ("generation_config.json", "[" * 100_000, "generation_config.json is nested too deeply"),
        ("model.safetensors.index.json", "{}", "model.safetensors.index.json has no weight_map"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": 1}}',
            "has weight_map an object; expected an object of file names",
        ),
        ("config.json", "{}", "its config.json has no model_type; expected one that transformers"),
        ("config.json", "3", "has a config.json that holds: number; expected an object with model_type"),
        ("config.json", "[" * 100_000, "has a config.json that is nested too deeply"),
        (
            "config.json",
            '{"model_type": "llama", "architectures": 3}',
            "config.json has architectures 3; expected a list of text",
        ),
        (
            "config.json",
            '{"model_type": "llama", "use_cache": "x"}',
            "rejects a value of its config.json: TypeError: Field 'use_cache' expected bool, got",
        ),
    ],
)
def test_a_broken_file_beside_the_weights(saved: Path, file: str, content: str, expected: str) -> None:
    """The message names the file, and what it should hold."""
    (saved / file).write_text(content)
    if "index" in file:
        (saved / "model.safetensors").unlink()
    with pytest.raises(BadInput) as raised:
        model.build(job(saved))
    assert expected in str(raised.value)
    assert raised.value.quotes or len(str(raised.value)) <= 200


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_act": "nosuch"}, "Model m: its configuration has hidden_act 'nosuch', which transformers "),
        (
            {"rope_scaling": {"rope_type": "fancy", "factor": 2.0}},
            "Model m: its configuration has rope_scaling.rope_type 'fancy', which transformers ",
        ),
        (
            {"pad_token_id": 9999},
            "Model m cannot be built as its config.json says: AssertionError: Padding_idx must be within num_embeddings.",
        ),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "3 num_key_value_heads do not divide"),
        ({"quantization_config": "awq"}, "has quantization_config 'awq' in its configuration; expected a mapping."),
    ],
)
def test_a_value_that_no_model_can_have(saved: Path, change: dict[str, Any], expected: str) -> None:
    """One message with the type of the exception, or the value."""
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadInput) as raised:
        model.build(job(saved, weights="random"))
    assert expected in str(raised.value)


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
