"""Checks the numbers of a model's config.json, before anything is built of them. Imports the standard library only.

The bounds are about a thousand times what published models have: they catch a typing error or a hostile file in milliseconds, where
building the model would take minutes or end in a library's message. Which bound holds follows from the name of the key.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .data_files import kind

_SHOWN = 60
# the largest published configuration has less than 100 kB
LARGEST_CONFIGURATION_BYTES = 4 * 2**20
DEEPEST = 20
LONGEST_LIST = 100_000
MOST_LAYERS = 2_000
_LAYERS = r"(.*_)?(layers?|depths?|blocks?|stages?)"
# one number for the whole model
_SINGLE = re.compile(r"num_hidden_layers|n_layers?|num_layers|hidden_size|n_embd|d_model|vocab_size")


def _compiled(*rows: tuple[str, int, int]) -> list[tuple[re.Pattern[str], int, int]]:
    return [(re.compile(pattern), least, most) for pattern, least, most in rows]


# keys that hold whole numbers, with the smallest and the largest value
_WHOLE = _compiled(
    (r"num_hidden_layers|n_layers?|num_layers", 1, MOST_LAYERS),
    (r"hidden_size|n_embd|d_model", 1, 2_000_000),
    (r"vocab_size", 1, 20_000_000),
    (r"max_position_embeddings", 1, 10**10),
    (r"n_positions|n_ctx", 1, 10**6),
    (r"num_attention_heads|num_key_value_heads|n_heads?", 1, 20_000),
    (r"head_dim", 0, 100_000),
    (r"intermediate_size|moe_intermediate_size|n_inner|ffn_dim", 0, 20_000_000),
    (r"(.*_)?num_(.*_)?experts|n_(.*_)?experts", 0, 20_000),
)
# keys whose names say that a number in them counts or measures something; some types have a switch or text there
_OTHER_NUMBERS = _compiled(
    # tokens, and the layers that a vision model takes its features from
    (r"(.*_)?(ids?|idx|index|indices|offset|feature_layers?|vision_layer)", -MOST_LAYERS, 10**9),
    (r"vocab_size_.*", 0, 100_000_000),
    # some are computed from others, and negative in small models
    (_LAYERS, -MOST_LAYERS, MOST_LAYERS),
    (r"num_labels", 0, 100_000),
    (r"sliding_window", -1, 10**10),
    (r"(.*_)?heads?", 0, 20_000),
    (r".*_per_tok(en)?|(.*_)?top_?k", 0, 100_000),
    (r"(n|num)_.*", -1, 100_000),
    (r".*(_size|_dims?|_rank|_channels|_features|_width)", -1, 100_000_000),
    (r".*", -(10**12), 10**12),
)
_SHARE = re.compile(r".*(dropout|_pdrop|drop_rate|layerdrop|drop_path|_prob)(_prob|_rate)?|(.*_)?eps(ilon)?")
_SPREAD = re.compile(r"initializer_range|init_std|.*_init_std")
_POSITIVE = re.compile(r"rope_theta|rotary_emb_base|rope_local_base_freq")
# text or a list with an entry for each layer
_PER_LAYER = re.compile(rf"{_LAYERS}|.*(_types?|_pattern)")
# descriptions that others read: of quantisation, of labels, of code
_SKIPPED = ("quantization_config", "compression_config", "id2label", "label2id", "auto_map", "task_specific_params")
_DTYPE = re.compile(r"(torch\.)?(auto|float(16|32|64)|bfloat16|half|float|double|float8_e4m3fn|float8_e5m2)")

# path, value and expectation of what cannot be meant
Fault = tuple[str, str, str]


def implausible(model_name: str, configuration: Mapping[str, Any]) -> str | None:
    """Return an error message if a value of a model's configuration, or of a part of it, cannot be meant; else None.

    Args:
        model_name: for the message.
        configuration: keys of a Hugging Face configuration.
    """
    name = model_name[-_SHOWN:]
    if fault := next(_faults("", configuration, (), 0), None):
        path, value, expected = fault
        return f"Model {name} has {path[-_SHOWN:]} {value} in its configuration; expected {expected}."
    return _inconsistent(name, configuration)


def _faults(key: str, value: Any, path: tuple[str, ...], depth: int) -> Iterator[Fault]:
    """Yield what cannot be meant in the value of a key; ``path`` leads to it."""
    if isinstance(value, Mapping | list | tuple):
        if expected := _expected_of_parts(key, value, depth):
            shown = f"with {len(value)} entries" if len(value) > MOST_LAYERS else _shown(value)
            yield ".".join(path), shown, expected
            return
        if isinstance(value, Mapping):
            for name, part in value.items():
                if str(name) not in _SKIPPED:
                    yield from _faults(str(name), part, (*path, str(name)), depth + 1)
            return
        for position, part in enumerate(value):
            # an entry of a list is a value of its key
            further = (*path, str(position)) if isinstance(part, Mapping) else path
            yield from _faults("" if isinstance(part, Mapping) else key, part, further, depth + 1)
    elif expected := _expected(key, value):
        yield ".".join(path), _shown(value), expected


def _expected_of_parts(key: str, value: Mapping[Any, Any] | Sequence[Any], depth: int) -> str | None:
    """Return what was expected instead of a mapping or a list, or None if it can be meant."""
    if depth > DEEPEST:
        return f"at most {DEEPEST} levels"
    if _SINGLE.fullmatch(key) or (isinstance(value, Mapping) and _bounds(key)[0]):
        return _whole_number(key)
    most = MOST_LAYERS if _PER_LAYER.fullmatch(key) else LONGEST_LIST
    return f"at most {most}" if len(value) > most else None


def _expected(key: str, value: Any) -> str | None:
    """Return what was expected instead of a value, or None if it can be meant."""
    if value is None:
        return None
    if key in ("dtype", "torch_dtype"):
        return None if _DTYPE.fullmatch(str(value)) else "a type such as bfloat16"
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not key.endswith("_limit"))):
        return "a finite number"
    if expected := _expected_in_range(key, value):
        return expected
    whole, least, most = _bounds(key)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_whole |= whole and isinstance(value, float) and value.is_integer() and not _SINGLE.fullmatch(key)
    if (whole and not is_whole) or (is_whole and not least <= value <= most):
        return _whole_number(key)
    if isinstance(value, str) and _PER_LAYER.fullmatch(key) and len(value) > MOST_LAYERS:
        return f"at most {MOST_LAYERS} characters"
    return None


def _expected_in_range(key: str, value: Any) -> str | None:
    """Return what was expected of a number that need not be whole."""
    number = isinstance(value, int | float)
    if _SHARE.fullmatch(key) and not (number and 0 <= value <= 1):
        return "a number from 0 to 1"
    if _SPREAD.fullmatch(key) and not (number and 0 <= value <= 1000):
        return "a number from 0 to 1000"
    if _POSITIVE.fullmatch(key) and not (number and value > 0):
        return "a number above 0"
    return None


@functools.lru_cache(maxsize=1024)
def _bounds(key: str) -> tuple[bool, int, int]:
    """Return whether the values of a key are whole numbers, and the smallest and the largest number in it."""
    for whole, rows in ((True, _WHOLE), (False, _OTHER_NUMBERS)):
        for pattern, least, most in rows:
            if pattern.fullmatch(key):
                return whole, least, most
    raise AssertionError("the last pattern matches every key")


def _whole_number(key: str) -> str:
    _, least, most = _bounds(key)
    return f"a whole number from {least} to {most}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _inconsistent(name: str, configuration: Mapping[str, Any]) -> str | None:
    heads: Any = configuration.get("num_attention_heads")
    groups: Any = configuration.get("num_key_value_heads")
    # latent attention (kv_lora_rank) does not use the groups
    known = isinstance(heads, int) and isinstance(groups, int) and not configuration.get("kv_lora_rank")
    if known and groups and heads % groups:
        return f"Model {name} has {heads} num_attention_heads, which its {groups} num_key_value_heads do not divide."
    quantisation = configuration.get("quantization_config")
    if quantisation is not None and not isinstance(quantisation, Mapping):
        return (
            f"Model {name} has quantization_config {str(quantisation)[:40]!r} in its configuration; expected a mapping."
        )
    return None


def unusable(model_name: str, file: Path) -> str | None:
    """Return an error message if a model's config.json is not a regular file, is too large, is no object, or has an implausible value."""
    name = model_name[-_SHOWN:]
    if not file.is_file():
        return f"Model {name} has a config.json that is not a regular file; replace it by one."
    size = file.stat().st_size
    if size > LARGEST_CONFIGURATION_BYTES:
        return f"Model {name} has a config.json of {size} bytes; expected at most {LARGEST_CONFIGURATION_BYTES}."
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        return f"Model {name} has a config.json that cannot be read: {error.strerror}."
    except RecursionError:
        return f"Model {name} has a config.json that is nested too deeply; download it again."
    except ValueError:  # includes UnicodeDecodeError
        return f"Model {name} has a config.json that is not valid JSON; download it again."
    if not isinstance(content, dict):
        return f"Model {name} has a config.json that holds: {kind(content)}; expected an object with model_type. Download it again."
    return implausible(model_name, content)
