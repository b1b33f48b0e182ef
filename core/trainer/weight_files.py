"""Checks the files of a model directory before a library reads them. Standard library only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import BadInput

# what transformers loads: a whole file, or the parts of an index
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_POINTER = b"version https://git-lfs.github.com/"
_MOST_POINTER_BYTES = 1024
# how torch's files begin: an archive, or a pickle as before torch 1.6
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
# the safetensors library's own limit
_MOST_HEADER_BYTES = 100_000_000
_SHOWN = 60


def check(model_name: str, directory: Path, *, weights: bool) -> None:
    """Check that the files of a model directory are complete.

    Args:
        model_name: for messages.
        directory: the directory; one that does not exist passes.
        weights: whether the weights will be read, too.

    Raises:
        BadInput: a file is a git-lfs pointer, or a file of weights is truncated or missing.
    """
    if not directory.is_dir():
        return
    name = model_name[-_SHOWN:]
    if weights and not any(file.suffix in _SUFFIXES or file.name in _WEIGHTS for file in directory.iterdir()):
        raise BadInput(
            f"Model {name} has no {_WEIGHTS[0]} or {_WEIGHTS[1]}; save its weights there, or use weights random."
        )
    if weights and (part := _missing_part(directory)):
        raise BadInput(f"Model {name}: {part[-_SHOWN:]} is missing, which the index of its weights names; download it.")
    for file in sorted(directory.iterdir()):
        if not file.is_file() or (not weights and file.suffix in _SUFFIXES):
            continue
        if _is_pointer(file):
            raise BadInput(
                f"Model {name}: {file.name[-_SHOWN:]} is a git-lfs pointer without the content; run git lfs pull in the model directory."
            )
        if file.suffix == ".safetensors" and (reason := _damage(file)):
            raise BadInput(f"Model {name}: {file.name[-_SHOWN:]} {reason}; download it again, or run git lfs pull.")
        if file.name.startswith("pytorch_model") and file.suffix == ".bin" and (reason := _damaged_archive(file)):
            raise BadInput(f"Model {name}: {file.name[-_SHOWN:]} {reason}; download it again, or use safetensors.")


def _missing_part(directory: Path) -> str | None:
    """Return the first file that the index of the weights names, and that does not exist; None without an index that can be read."""
    index = next((directory / file for file in _WEIGHTS[2:] if (directory / file).is_file()), None)
    if index is None or (directory / _WEIGHTS[0]).is_file():
        return None
    try:
        parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return next((part for part in parts if not (directory / part).is_file()), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_pointer(file: Path) -> bool:
    if file.stat().st_size > _MOST_POINTER_BYTES:
        return False
    with file.open("rb") as content:
        return content.read(len(_POINTER)) == _POINTER


def _damage(file: Path) -> str | None:
    size = file.stat().st_size
    header = _header(file)
    if header is None:
        return f"of {size} bytes is not a complete safetensors file"
    begin, tensors = header
    ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
    expected = begin + max(ends, default=0)
    return f"has {size} of {expected} bytes" if size < expected else None


def _damaged_archive(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as content:
        begin = content.read(4)
    if begin.startswith(_ZIP):
        # the directory of a zip archive is its end
        return None if zipfile.is_zipfile(file) else f"of {size} bytes ends before its last tensor"
    return None if begin.startswith(_PICKLE) else f"of {size} bytes is not a file of PyTorch"


def _header(file: Path) -> tuple[int, Mapping[str, dict]] | None:  # type: ignore[type-arg]
    """Return where the tensors of a safetensors file begin, and their descriptions; None if it has no valid header."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= min(_MOST_HEADER_BYTES, file.stat().st_size - 8):
            return None
        try:
            tensors = json.loads(content.read(length))
            return 8 + length, {
                name: one for name, one in tensors.items() if name != "__metadata__" and one["data_offsets"]
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def shapes(directory: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield file, name and shape of each tensor in the safetensors files of a directory."""
    for file in sorted(directory.glob("*.safetensors")):
        header = _header(file)
        for name, tensor in (header[1] if header else {}).items():
            yield file.name, name, tuple(tensor.get("shape", ()))
