"""What is found wrong with a data set or a tokenizer before a trainer is started."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.protocol import data_files

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def written(directory: Path, *rows: object, name: str = "data.jsonl") -> str:
    """Write a .jsonl file and return its path."""
    path = directory / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", data_files.SYNTHETIC)
def test_synthetic_data_are_usable(name: str) -> None:
    """They need neither a file nor a tokenizer."""
    assert data_files.unusable(name, images=False) is None
    assert data_files.without_tokenizer(name, "m", None) is None


def test_a_regular_file_is_usable(tmp_path: Path) -> None:
    """Its rows are left to the trainer, which reads them."""
    assert data_files.unusable(written(tmp_path, "no object"), images=False) is None
    assert data_files.unusable(written(tmp_path, name="images.parquet"), images=True) is None
    assert data_files.unusable(data_files.SYNTHETIC_IMAGES, images=True) is None


def test_other_names_are_not(tmp_path: Path) -> None:
    """Each message names the value and what was expected."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, images, expected in [
        ("nowhere.jsonl", False, "'nowhere.jsonl' does not exist; use synthetic-fixed, "),
        ("synthetic-fixd", False, "'synthetic-fixd' is unknown; synthetic ones are synthetic-fixed, "),
        (written(tmp_path, name="rows.csv"), False, "is neither a .jsonl nor a .parquet file; convert or unpack it."),
        (str(tmp_path / "pipe.jsonl"), False, "is a pipe, socket or device; expected a regular file."),
        (str(tmp_path / "folder.jsonl"), False, "Is a directory; give a .jsonl or .parquet file in it."),
        (written(tmp_path), True, "is not a .parquet file, which dataset_image_field needs; or use synthetic-image."),
        ("nowhere.parquet", True, "does not exist; use a .parquet file, or synthetic-image."),
    ]:
        message = data_files.unusable(name, images=images)
        assert message is not None
        assert expected in message
        assert len(message) <= 200


def test_a_model_directory_without_tokenizer(tmp_path: Path) -> None:
    """A hub id is not looked up; a directory needs one of the tokenizers' files."""
    data = written(tmp_path, {"text": "a"})
    assert data_files.without_tokenizer(data, "org/name", "org/name") is None
    message = data_files.without_tokenizer(data, "./my-model", str(tmp_path))
    assert message == "Model directory './my-model' has no tokenizer; save it there, or use synthetic data."
    (tmp_path / "tokenizer.json").write_text("{}")
    assert data_files.without_tokenizer(data, "./my-model", str(tmp_path)) is None


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    """The byte tokenizer of the smallest models has none; a directory may have it in either of two files."""
    data = written(tmp_path, CHAT)
    expected = (
        f"Line 1 of data set {data_files.quoted(data)} has messages, but the model's tokenizer has no chat template"
    )
    assert (data_files.without_tokenizer(data, "tiny-llama-5m", None) or "").startswith(expected)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text("{}")
    assert (data_files.without_tokenizer(data, "m", str(tmp_path)) or "").startswith(expected)
    settings.write_text('{"chat_template": "{{ messages }}"}')
    assert data_files.without_tokenizer(data, "m", str(tmp_path)) is None
    settings.write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert data_files.without_tokenizer(data, "m", str(tmp_path)) is None


@pytest.mark.parametrize(
    "first", ['{"text": "a"}', '{"messages": 5}', "no JSON", "[" * 100_000, '{"input_ids": [1], "messages": []}']
)
def test_other_first_lines_are_left_to_the_trainer(tmp_path: Path, first: str) -> None:
    """It has a message with the number of the row."""
    (tmp_path / "data.jsonl").write_text(f"{first}\n")
    assert data_files.without_tokenizer(str(tmp_path / "data.jsonl"), "tiny-llama-5m", None) is None
