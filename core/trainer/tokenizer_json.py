"""What is wrong with a tokenizer.json, once the tokenizers library has failed to read it. Imports tokenizers.

The library says for most faults only that data did not match, and at which character. Each part is therefore read alone, in a
tokenizer without other parts.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from ..protocol.data_files import kind

# larger files take too long to read in parts; a tokenizer of 250,000 tokens with its merges has 35 MB
_MOST_BYTES = 2**28
_SHOWN = 30
# characters for the types that are expected
_MOST_LISTED = 50
# a tokenizer with no part that matters
_EMPTY: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}
# of each component, the base class of its types
_TYPES: dict[str, tuple[Any, str]] = {
    "model": (models, "Model"),
    "normalizer": (normalizers, "Normalizer"),
    "pre_tokenizer": (pre_tokenizers, "PreTokenizer"),
    "post_processor": (processors, "PostProcessor"),
    "decoder": (decoders, "Decoder"),
}
# of each component, the key under which a sequence has its members
_MEMBERS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A part of a tokenizer.json that the library does not read.

    Attributes:
        message: the part, its value, and what is expected.
        error: what the library raises for this part alone, where only that tells what is expected; else None.
    """

    message: str
    error: Exception | None = None


def fault(directory: Path) -> Fault | None:
    """Return the first part of a directory's tokenizer.json that the library does not read; None if it reads all.

    Args:
        directory: the directory; it need not exist, or have the file.
    """
    file = directory / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return None
    content = json.loads(file.read_bytes())
    for key in _EMPTY:
        if key in content and (error := _error(key, content[key])):
            return _fault(key, key, content[key], error)
    return None


def _error(key: str, value: Any) -> Exception | None:
    """Return what the library raises for a tokenizer that has only this part; None if it reads it."""
    try:
        tokenizers.Tokenizer.from_str(json.dumps({**_EMPTY, key: value}))
    except Exception as error:  # the library raises no other
        # the position is one in the text above, not in the user's file
        return Exception(re.sub(r" at line 1 column \d+$", "", str(error)))
    return None


def _fault(component: str, path: str, value: Any, error: Exception) -> Fault:
    """Return what is wrong with the part at ``path``, for which the library raises ``error``."""
    for name, member in _members(component, path, value):
        if inner := _error(component, [member] if component == "added_tokens" else member):
            return _fault(component, name, member, inner)
    version = tokenizers.__version__
    if component not in _TYPES:
        return Fault(f"tokenizer.json has {path} {_shown(value)}, which tokenizers {version} does not read", error)
    if not isinstance(value, dict) or "type" not in value:
        expected = f"an object with type, which is {_listed(component, '')}"
        return Fault(f"tokenizer.json has {path} {_shown(value)}; expected {expected}")
    if value["type"] not in _types(component):
        expected = _listed(component, str(value["type"]))
        return Fault(f"tokenizer.json has {path}.type {_shown(value['type'])}; expected {expected}")
    return Fault(
        f"tokenizer.json has {path} of type {value['type']} whose keys or values tokenizers {version} does not read",
        error,
    )


def _members(component: str, path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a sequence with their paths; nothing for other values."""
    if component == "added_tokens" and path == component:
        key, members = path, value
    else:
        key = f"{path}.{_MEMBERS.get(component)}"
        members = value.get(_MEMBERS.get(component)) if isinstance(value, dict) else None
    for position, member in enumerate(members if isinstance(members, list) else ()):
        yield f"{key}[{position}]", member


def _types(component: str) -> list[str]:
    """Return the types of a component that the installed library has."""
    module, base = _TYPES[component]
    parent = getattr(module, base)
    return [
        name
        for name, one in vars(module).items()
        if inspect.isclass(one) and issubclass(one, parent) and one is not parent
    ]


def _listed(component: str, wanted: str) -> str:
    """Return the types of a component for a message, those first that are written alike."""
    names = sorted(_types(component))
    close = difflib.get_close_matches(wanted[:_MOST_LISTED], names, n=len(names), cutoff=0.4)
    names = [*close, *(one for one in names if one not in close)]
    while len(", ".join(names)) > _MOST_LISTED:
        names.pop()
    more = len(_types(component)) - len(names)
    *first, last = [*names, f"{more} more"] if more else names
    return f"{', '.join(first)} {'and' if more else 'or'} {last}"


def _shown(value: Any) -> str:
    return json.dumps(value)[:_SHOWN] if isinstance(value, (str, int, float)) else f"that is: {kind(value)}"
