"""Checks the numbers of a model's config.json, before anything is built of them. Imports the standard library only.

The bounds are about a thousand times what published models have: they catch a typing error or a hostile file in milliseconds, where
building the model would take minutes or end in a library's message. Which bound holds follows from the name of the key.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
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
# numbers of the whole model that have to be there, by all their names: a single whole number
_REQUIRED = re.compile(r"num_hidden_layers|n_layers?|num_layers|hidden_size|n_embd|d_model|vocab_size")
# whole numbers by names of keys: the first that matches gives the smallest and the largest value
_WHOLE = [
    (re.compile(pattern), least, most)
    for pattern, least, most in [
        # tokens, and the layers that a vision model takes its features from
        (r"(.*_)?(ids?|idx|index|indices|offset|feature_layers?|vision_layer)", -MOST_LAYERS, 10**9),
        (r"num_hidden_layers|n_layers?|num_layers", 1, MOST_LAYERS),
        (r"max_position_embeddings", 1, 10**10),
        (r"n_positions|n_ctx", 1, 10**6),
        (r"hidden_size|n_embd|d_model", 1, 2_000_000),
        (r"vocab_size", 1, 20_000_000),
        (r"num_attention_heads|num_key_value_heads|n_heads?", 1, 20_000),
        (r"head_dim", 0, 100_000),
        (r"vocab_size_.*", 0, 100_000_000),
        (r"intermediate_size|moe_intermediate_size|n_inner|ffn_dim", 0, 20_000_000),
        # some are computed from others, and negative in small models
        (_LAYERS, -MOST_LAYERS, MOST_LAYERS),
        (r"num_labels", 0, 100_000),
        (r"(.*_)?num_.*experts|n_.*experts", 0, 20_000),
        (r"sliding_window", -1, 10**10),
        (r"(.*_)?heads?", 0, 20_000),
        (r".*_per_tok(en)?|(.*_)?top_?k", 0, 100_000),
        (r"(n|num)_.*", -1, 100_000),
        (r".*(_size|_dims?|_rank|_channels|_features|_width)", -1, 100_000_000),
    ]
]
_SHARE = re.compile(r".*(dropout|_pdrop|drop_rate|layerdrop|drop_path|_prob)(_prob|_rate)?|(.*_)?eps(ilon)?")
# a single number, also where only some types have it: heads and widths of the attention
_SINGLE = re.compile(r"num_attention_heads|num_key_value_heads|n_heads?|head_dim")
_SPREAD = re.compile(r"initializer_range|init_std|.*_init_std")
_POSITIVE = re.compile(r"rope_theta|rotary_emb_base|rope_local_base_freq")
# a mapping or a list with an entry for each layer
_PER_LAYER = re.compile(rf"{_LAYERS}|.*(_types?|_pattern)")
# descriptions that others read: of quantisation, of labels, of code
_OTHER = ("quantization_config", "compression_config", "id2label", "label2id", "auto_map", "task_specific_params")
_DTYPE = re.compile(r"(torch\.)?(auto|float(16|32|64)|bfloat16|half|float|double|float8_e4m3fn|float8_e5m2)")


def implausible(model_name: str, configuration: Mapping[str, Any]) -> str | None:
    """Return an error message if a value of a model's configuration, or of a part of it, cannot be meant; else None.

    Args:
        model_name: for the message.
        configuration: keys of a Hugging Face configuration.
    """
    name = model_name[-_SHOWN:]
    if fault := next(_faults(configuration, "", 0), None):
        key, value, expected = fault
        return f"Model {name} has {key[-_SHOWN:]} {_text(value)} in its configuration; expected {expected}."
    return _inconsistent(name, configuration)


def _faults(part: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, Any, str]]:
    """Yield path, value and expectation of what cannot be meant."""
    for given, value in part.items():
        if (key := str(given)) in _OTHER:
            continue
        where = f"{path}{key}"
        if isinstance(value, Mapping):
            if _REQUIRED.fullmatch(key) or _SINGLE.fullmatch(key):
                yield where, value, "a whole number"
            elif depth == DEEPEST:
                yield where, "...", f"at most {DEEPEST} levels"
            else:
                yield from _faults(value, f"{where}.", depth + 1)
        elif isinstance(value, list | tuple):
            yield from _list_faults(key, value, where, depth)
        elif expected := _expected(key, value):
            yield where, value, expected


def _list_faults(key: str, values: Any, where: str, depth: int) -> Iterator[tuple[str, Any, str]]:
    if _REQUIRED.fullmatch(key):
        yield where, values, "a whole number"
        return
    most = MOST_LAYERS if _PER_LAYER.fullmatch(key) else LONGEST_LIST
    if len(values) > most:
        yield where, f"with {len(values)} entries", f"at most {most}"
        return
    if depth == DEEPEST:
        yield where, "...", f"at most {DEEPEST} levels"
        return
    for position, value in enumerate(values):
        if isinstance(value, Mapping):
            yield from _faults(value, f"{where}.{position}.", depth + 1)
        elif isinstance(value, list | tuple):
            yield from _list_faults(key, value, where, depth + 1)
        elif expected := _expected(key, value, listed=True):
            yield where, value, expected


def _expected(key: str, value: Any, *, listed: bool = False) -> str | None:
    """Return what was expected instead of a value, or None if it can be meant."""
    if value is None:
        return None
    if key in ("dtype", "torch_dtype") and not isinstance(value, str):
        return "a type such as bfloat16"
    single = not listed and (_REQUIRED.fullmatch(key) or _SINGLE.fullmatch(key))
    if single and (not isinstance(value, int) or isinstance(value, bool)):
        least, most = _bounds(key)
        return f"a whole number from {least} to {most}"
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _expected_text(key, value, listed=listed)
    if not isinstance(value, int | float):
        return None
    if math.isnan(value) or (math.isinf(value) and not key.endswith("_limit")):
        return "a finite number"
    if _SHARE.fullmatch(key):
        return None if 0 <= value <= 1 else "a number from 0 to 1"
    if _SPREAD.fullmatch(key):
        return None if 0 <= value <= 1000 else "a number from 0 to 1000"
    if _POSITIVE.fullmatch(key):
        return None if value > 0 else "a number above 0"
    least, most = _bounds(key)
    return None if isinstance(value, float) or least <= value <= most else f"a whole number from {least} to {most}"


@functools.lru_cache(maxsize=1024)
def _bounds(key: str) -> tuple[int, int]:
    return next(((least, most) for pattern, least, most in _WHOLE if pattern.fullmatch(key)), (-(10**12), 10**12))


def _expected_text(key: str, value: str, *, listed: bool) -> str | None:
    if _SHARE.fullmatch(key) or _POSITIVE.fullmatch(key) or _SPREAD.fullmatch(key):
        return "a number"
    if key in ("dtype", "torch_dtype") and not _DTYPE.fullmatch(value):
        return "a type such as bfloat16"
    if not listed and _PER_LAYER.fullmatch(key) and len(value) > MOST_LAYERS:
        return f"at most {MOST_LAYERS} characters"
    return None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) and value.startswith(("with ", "...")) else repr(value)
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
