"""Checks of a data set by its name and the kind of its file, without reading it. Imports the standard library only.

The host checks before it starts trainers, which takes seconds to minutes, and the trainer checks again.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

SYNTHETIC = ("synthetic-fixed", "synthetic-uniform", "synthetic-lognormal")
SYNTHETIC_IMAGES = "synthetic-image"
# most characters of a path, a name or a list of names in a message
LONGEST_NAME = 60
# a longer first line is not checked here; the trainer reads it later
_MOST_FIRST_LINE_BYTES = 2**20
# files of which a tokenizer has at least one
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
# what values of JSON and Parquet are called in messages
_KINDS = {
    str: "text",
    dict: "object",
    bool: "boolean",
    int: "number",
    float: "number",
    bytes: "bytes",
    type(None): "null",
}


def kind(value: object) -> str:
    """Return what a value of JSON or Parquet is called in a message."""
    if isinstance(value, list):
        return "list" if value else "empty list"
    return _KINDS.get(type(value), type(value).__name__)


def exists(path: str) -> bool:
    """Return whether ``path`` exists; False also for a name that no file system can hold, for which ``Path.exists`` raises."""
    return os.path.exists(path)  # noqa: PTH110


def quoted(path: str, longest: int = LONGEST_NAME) -> str:
    """Return ``path`` in quotes for a message. Of a long path only the end is shown, because it identifies the file better."""
    return repr(path if len(path) <= longest else "..." + path[-longest + 3 :])


def unusable(name: str, *, images: bool) -> str | None:
    """Return why a data set cannot be used, as far as this can be seen without reading all of it; else None.

    Args:
        name: of synthetic data, or the path of a file.
        images: whether it must have images.
    """
    if images:
        return None if name == SYNTHETIC_IMAGES else _unusable_images(name)
    if name in SYNTHETIC:
        return None
    if not exists(name):
        if name.startswith("synthetic"):
            return f"Data set {quoted(name)} is unknown; synthetic ones are {', '.join(SYNTHETIC)}."
        return f"Data set {quoted(name)} does not exist; use {', '.join(SYNTHETIC)}, or a .jsonl or .parquet file."
    if not name.endswith((".jsonl", ".parquet")):
        return f"Data set {quoted(name)} is neither a .jsonl nor a .parquet file; convert or unpack it."
    return irregular(name)


def _unusable_images(name: str) -> str | None:
    if not name.endswith(".parquet"):
        return f"Data set {quoted(name)} is not a .parquet file, which dataset_image_field needs; or use {SYNTHETIC_IMAGES}."
    if not exists(name):
        return f"Data set {quoted(name)} does not exist; use a .parquet file, or {SYNTHETIC_IMAGES}."
    return irregular(name)


def unreadable(path: str, reason: str | None) -> str:
    """Return the message about a file that the system does not read, for its ``reason``."""
    return f"Data set {quoted(path)} cannot be read: {reason}."


def empty(path: str) -> str:
    """Return the message about a file without rows."""
    return f"Data set {quoted(path)} is empty; expected at least one row. Give another file."


def irregular(path: str) -> str | None:
    """Return why a path is not a regular file: opening a pipe or reading a device may never end. None for a regular file."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        return unreadable(path, error.strerror)
    if stat.S_ISDIR(mode):
        return f"Data set {quoted(path)} cannot be read: Is a directory; give a .jsonl or .parquet file in it."
    if not stat.S_ISREG(mode):
        return f"Data set {quoted(path)} is a pipe, socket or device; expected a regular file."
    return None


def without_tokenizer(name: str, model: str, source: str | None) -> str | None:
    """Return why a model has no tokenizer for a file of text or chats; None where it may have one, or none is needed.

    Args:
        name: of the data set; ``unusable`` has no objection.
        model: name of the model, for the message.
        source: its hub id or directory; None for a model without published tokenizer, which has one token a byte.
    """
    if name.startswith("synthetic-"):
        return None
    directory = Path(source) if source is not None else None
    if directory is not None and not directory.is_dir():
        return None
    files = [] if directory is None else [directory / file for file in _TOKENIZER_FILES]
    if files and not any(file.is_file() for file in files):
        return f"Model directory {quoted(model)} has no tokenizer; save it there, or use synthetic data."
    if _begins_with_chat(name) and not _has_template(directory):
        return no_template(f"Line 1 of data set {quoted(name)}")
    return None


def no_template(position: str) -> str:
    """Return the message for a row of messages, named by ``position``, and a tokenizer without a chat template."""
    return f"{position} has messages, but the model's tokenizer has no chat template; use text, or an instruct model."


def _begins_with_chat(name: str) -> bool:
    """Whether the first row of a .jsonl file is a conversation and nothing else; False where that cannot be seen quickly."""
    if not name.endswith(".jsonl"):
        return False
    try:
        with Path(name).open("rb") as file:
            row = json.loads(file.readline(_MOST_FIRST_LINE_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "input_ids" not in row and isinstance(row.get("messages"), list)


def _has_template(directory: Path | None) -> bool:
    """Whether a model directory has a chat template; True where it cannot be read, which the trainer reports."""
    if directory is None:
        return False
    if (directory / "chat_template.jinja").is_file() or (directory / "chat_template.json").is_file():
        return True
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(settings, dict) or bool(settings.get("chat_template"))
