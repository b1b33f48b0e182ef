"""What is wrong with the JSON files of a model directory, once a library has failed to read them. Standard library only.

The libraries expect certain kinds of values and raise a TypeError or an AttributeError on others, which names no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..protocol.data_files import kind

# larger files hold no settings; a tokenizer of 250,000 tokens with its merges has 35 MB
_MOST_BYTES = 2**28
_SHOWN = 60

# what a value must be, in words, and whether it is
Expected = tuple[str, Callable[[Any], bool]]


def _is(*types: type) -> Callable[[Any], bool]:
    # a boolean is an int to Python, but no number to JSON
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _is_token(value: Any) -> bool:
    # an AddedToken is stored as an object with its content
    return (
        value is None or isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))
    )


_OBJECT: Expected = ("an object", _is(dict))
_TEXT: Expected = ("text", _is(str))
_TOKEN: Expected = ("text, or an object with content", _is_token)
_TOKENS: Expected = ("a list of tokens", lambda value: isinstance(value, list) and all(map(_is_token, value)))
_NAMED: Expected = (
    "tokens in a list or an object",
    lambda value: (
        isinstance(value, (list, dict)) and all(map(_is_token, value.values() if isinstance(value, dict) else value))
    ),
)
# keys that may be null
_OPTIONAL = ("model_max_length", "tokenizer_class", "chat_template", "clean_up_tokenization_spaces")
_SPECIAL = {f"{name}_token": _TOKEN for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")} | {
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _NAMED,
}
_OBJECTS: Expected = (
    "an object of objects",
    lambda value: isinstance(value, dict) and all(map(_is(dict), value.values())),
)
_TEMPLATE: Expected = (
    "text, or a list of objects",
    lambda value: isinstance(value, str) or (isinstance(value, list) and all(map(_is(dict), value))),
)
_INDEX = {
    "weight_map": (
        "an object of file names",
        lambda value: isinstance(value, dict) and all(map(_is(str), value.values())),
    )
}
# of each file, the keys whose values matter; the content itself is an object
_KEYS: Mapping[str, Mapping[str, Expected]] = {
    "config.json": {
        "model_type": _TEXT,
        "architectures": (
            "a list of text",
            lambda value: value is None or (isinstance(value, list) and all(map(_is(str), value))),
        ),
        "layer_types": ("a list", lambda value: value is None or isinstance(value, list)),
        "id2label": ("an object", lambda value: value is None or isinstance(value, dict)),
        "dtype": ("text", lambda value: value is None or isinstance(value, (str, dict))),
        "auto_map": _OBJECT,
    },
    "generation_config.json": {},
    "tokenizer_config.json": {
        **_SPECIAL,
        "model_max_length": ("a number", _is(int, float)),
        "tokenizer_class": _TEXT,
        "chat_template": _TEMPLATE,
        "added_tokens_decoder": _OBJECTS,
        "auto_map": _OBJECT,
        "padding_side": ("left or right", lambda value: value in ("left", "right")),
        "truncation_side": ("left or right", lambda value: value in ("left", "right")),
        "split_special_tokens": ("true or false", _is(bool)),
        "clean_up_tokenization_spaces": ("true or false", _is(bool)),
    },
    "special_tokens_map.json": _SPECIAL,
    "added_tokens.json": {},
    "tokenizer.json": {"model": _OBJECT, "added_tokens": ("a list", _is(list))},
    "chat_template.json": {"chat_template": _TEMPLATE},
    "vocab.json": {},
    "preprocessor_config.json": {},
    "processor_config.json": {},
    "model.safetensors.index.json": _INDEX,
    "pytorch_model.bin.index.json": _INDEX,
}
# keys without which a file cannot be used
_REQUIRED = {
    "tokenizer.json": ("model", "added_tokens"),
    **dict.fromkeys(("model.safetensors.index.json", "pytorch_model.bin.index.json"), ("weight_map",)),
}
# files that are text
_TEXTS = ("chat_template.jinja", "merges.txt", "vocab.txt")


def fault(directory: Path) -> str | None:
    """Return which file of a model directory cannot be used, and why; None if no file is found.

    Args:
        directory: the directory; it need not exist.
    """
    for name, keys in _KEYS.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            continue
        content, reason = _content(file)
        reason = reason or _wrong(content, keys, _REQUIRED.get(name, ()))
        if reason:
            return f"{name} {reason}"
    for name in _TEXTS:
        file = directory / name
        if file.is_file() and file.stat().st_size <= _MOST_BYTES and not _is_utf8(file.read_bytes()):
            return f"{name} is not UTF-8"
    return None


def _content(file: Path) -> tuple[Any, str | None]:
    """Return what a file holds, or why it is no JSON."""
    try:
        data = file.read_bytes()
        return json.loads(data.decode("utf-8")), None
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except RecursionError:
        return None, "is nested too deeply"
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    except ValueError:
        return None, "is not valid JSON" if data.strip() else "is empty"


def _wrong(content: Any, keys: Mapping[str, Expected], required: tuple[str, ...]) -> str | None:
    if not isinstance(content, dict):
        return f"is {_article(kind(content))}; expected an object"
    if missing := next((key for key in required if key not in content), None):
        return f"has no {missing}"
    for key, (expected, is_right) in keys.items():
        value = content.get(key)
        if key not in content or (value is None and key in _OPTIONAL) or is_right(value):
            continue
        shown = json.dumps(value)[:_SHOWN] if isinstance(value, (str, int, float)) else _article(kind(value))
        return f"has {key} {shown}; expected {expected}"
    return None


def _article(word: str) -> str:
    if word in ("text", "null"):
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
