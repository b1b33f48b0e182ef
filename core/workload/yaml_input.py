"""Reads YAML from users safely, without duplicate keys, and in bounded time and memory."""

from __future__ import annotations

import re
from typing import Any

import yaml

LONGEST_CHARACTERS = 2**18
# nested aliases multiply: nine levels of nine aliases expand to 400 million values
MOST_ALIASES = 20
DEEPEST = 20
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OCTAL = re.compile(r"[-+]?0[0-9_]+")


class InvalidYAML(Exception):
    """The text cannot be used; the message says where and why."""


class NotYAML(InvalidYAML):
    """The text is not valid YAML."""


def load(text: str) -> Any:
    """Return the value of a YAML document.

    Numbers follow YAML 1.2: ``1e1`` is 10.0. ``010``, which YAML 1.1 reads as 8, is rejected, and so is ``1:30``, which it reads as 90.

    Raises:
        NotYAML: the text is not valid YAML.
        InvalidYAML: the text has a key twice or a number that begins with 0 or has a colon, or is longer, deeper or
            has more aliases than allowed.
    """
    if len(text) > LONGEST_CHARACTERS:
        raise InvalidYAML(f"has {len(text)} characters; expected at most {LONGEST_CHARACTERS}.")
    try:
        _check_size(text)
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        mark = getattr(error, "problem_mark", None)
        if mark and "single document" in str(getattr(error, "context", "")):
            text = f"more than one YAML document: another begins at line {mark.line + 1}"
            raise InvalidYAML(f"{text}. Write each to a file of its own.") from None
        raise NotYAML("not valid YAML" + (f" at line {mark.line + 1}." if mark else ".")) from None


def _check_size(text: str) -> None:
    aliases = depth = 0
    for event in yaml.parse(text, Loader=_Base):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MOST_ALIASES or depth > DEEPEST:
            what = f"more than {MOST_ALIASES} aliases" if aliases > MOST_ALIASES else f"more than {DEEPEST} levels"
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise InvalidYAML(f"has {what} at line {line}. Replace aliases by their values, or use fewer levels.")


class _Loader(_Base):
    """Rejects a mapping with a duplicate key, because one of its values would be ignored."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                line = node.start_mark.line + 1
                raise InvalidYAML(
                    f"{key.value[:60]} is given twice in the mapping that begins in line {line}. Remove one of them."
                )
            seen.add(str(key.value))
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if _OCTAL.fullmatch(node.value):
        raise InvalidYAML(f"{node.value[:60]} begins with 0, which YAML 1.1 reads as octal. Remove the leading zero.")
    _reject_sexagesimal(node)
    return int(loader.construct_yaml_int(node))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    _reject_sexagesimal(node)
    return float(loader.construct_yaml_float(node))


def _reject_sexagesimal(node: yaml.ScalarNode) -> None:
    if ":" in node.value:
        text = f"{node.value[:60]} has a colon, which YAML 1.1 reads as base 60."
        raise InvalidYAML(f"{text} Write the number without it, or text in quotes.")


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+"), list("-+0123456789")
)
