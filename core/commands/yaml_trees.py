"""Changes trees of ruamel.yaml, so that comments and order stay. Imports ruamel.yaml."""

from __future__ import annotations

import copy
import io
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString


def copy_of(item: Any) -> Any:
    """Return a copy with comments and without anchors: what several experiments shared differs now."""
    copied = copy.deepcopy(item)
    for node in (copied, copied["property"]):
        node.yaml_set_anchor(None, always_dump=False)
    return copied


def comments(node: Any) -> str:
    """Return the text of all comments in a part of a tree, without their marks."""
    tokens = [one for key in getattr(getattr(node, "ca", None), "items", {}).values() for one in key or []]
    found = _lines(tokens)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found += comments(child).splitlines()
    return "".join(f"{line}\n" for line in found)


def _lines(tokens: list[Any]) -> list[str]:
    """Return the lines of comments, without their marks; ruamel.yaml nests tokens in lists and has None where there is none."""
    flat = [one for token in tokens for one in (token if isinstance(token, list) else [token]) if one]
    return [line.strip().lstrip("#").strip() for one in flat for line in one.value.splitlines() if line.strip()]


def set_values(old: CommentedSeq, values: list[Any]) -> None:
    """Replace the items of a list and keep its form and comments."""
    for at, value in enumerate(values[: len(old)]):
        comments = getattr(getattr(old[at], "ca", None), "comment", None)
        old[at] = scalar(value)
        if comments and comments[0] and at not in old.ca.items:
            # behind a list that was an item
            old.ca.items[at] = [comments[0], None, None, None]
    for value in values[len(old) :]:
        old.append(scalar(value))
    kept = len(values)
    behind = [one for at in range(kept - 1, len(old)) for one in old.ca.items.get(at, [])[:1] if one]
    del old[kept:]
    for at in [at for at in old.ca.items if at >= kept]:
        del old.ca.items[at]
    if behind:
        token = behind[0]
        token.value = "".join(one.value for one in behind)
        old.ca.items[kept - 1] = [token, None, None, None]


def remove(mapping: CommentedMap, name: str) -> None:
    """Remove a key; its comments go to the next one."""
    at = list(mapping).index(name)
    removed = "\n".join(_lines(mapping.ca.items.pop(name, [])))
    del mapping[name]
    keys = list(mapping)
    comment_before(mapping, keys[min(at, len(keys) - 1)] if keys else None, removed, indent=2)


def comment_before(node: Any, key: Any, comments: str, *, indent: int) -> None:
    """Write comments before a key or index, if there are any."""
    if comments.strip() and len(node):
        node.yaml_set_comment_before_after_key(key, before=comments.strip(), indent=indent)


def set_scalar(node: Any, key: Any, value: str) -> None:
    """Replace a string and keep its quotes."""
    old = node[key]
    node[key] = type(old)(value) if type(old) is not str and isinstance(old, str) else value


def scalar(value: Any) -> Any:
    """Return a value as it is to be written: whole numbers without a fraction, and quotes where ado would read something else."""
    if isinstance(value, str) and yaml.safe_load(value) != value:
        return DoubleQuotedScalarString(value)
    return DoubleQuotedScalarString(value) if isinstance(value, str) and value[:1].isdigit() else number(value)


def number(value: Any) -> Any:
    """Return a whole number without its fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differ(one: Any, other: Any) -> bool:
    """Whether two values that may be equal are a truth value and a number."""
    return isinstance(one, bool) != isinstance(other, bool)


def dumped(node: Any) -> str:
    """Return a part of a tree as YAML."""
    stream = io.StringIO()
    YAML().dump(node, stream)
    return stream.getvalue()
