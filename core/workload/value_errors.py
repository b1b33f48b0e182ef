"""Turns pydantic's validation errors into messages: which value is wrong, what was expected, what to do. Imports pydantic."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from . import ibm_names
from .wording import listed

KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
# a longer list of accepted values would fill the message
MOST_ACCEPTED = 8
MOST_CLOSE = 3
LONGEST_VALUE = 60
# difflib compares every character
LONGEST_COMPARED = 100


def first_message(error: pydantic.ValidationError, what: str, fields: Mapping[str, FieldInfo]) -> str:
    """Return a message for the first validation error.

    Args:
        error: pydantic's error.
        what: what is invalid: ``property of a workload``.
        fields: the valid ones, by name.
    """
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or what.split()[-1]
    field = fields.get(str(first["loc"][0])) if first["loc"] else None
    if first["type"] == "missing":
        return f"{name} is missing{'; expected ' + accepted(field) if field else ''}. Add it."
    if first["type"] == "extra_forbidden":
        close = close_names(name, fields)
        hint = f" Use {' or '.join(close)}." if close else ""
        return f"{name} is not a {what}.{ibm_names.hint(name) or hint}"
    value = _shortened(first["input"])
    if field is None:
        return f"{name} {value} is impossible: expected a mapping of names to values."
    if first["type"] == "value_error":
        text = first["msg"].removeprefix("Value error, ")
        return f"{name} {value} is impossible: {text[0].lower()}{text[1:]}."
    return f"{name} {value} is impossible: expected {accepted(field, first['input'])}."


def accepted(field: FieldInfo, given: Any = None) -> str:
    """Return in words what a field accepts; of a long list of values those that are like the given one."""
    types = list(_types(field.annotation))
    choices = [value for one in types if typing.get_origin(one) is typing.Literal for value in typing.get_args(one)]
    if len(choices) > MOST_ACCEPTED:
        names, wanted = [str(choice) for choice in choices], str(given)[:LONGEST_COMPARED]
        close = difflib.get_close_matches(wanted, names, n=len(names), cutoff=0.0)
        # stable: names that begin alike, then by likeness
        close.sort(key=lambda one: not one.startswith(wanted))
        return f"one of {len(choices)} values, such as {', '.join(close[:MOST_CLOSE])}"
    if choices:
        return listed((str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices), "or")
    kind = next((KINDS[one] for one in types if one in KINDS), "another type")
    metadata = [*field.metadata, *_nested_metadata(field.annotation)]
    form = f" in the form of {field.default}" if any(getattr(one, "pattern", None) for one in metadata) else ""
    return f"{kind}{_bounds(metadata)}{form}"


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most like a misspelled one; [] if none is, or if it is too long to be one."""
    if len(name) >= LONGEST_COMPARED:
        return []
    return difflib.get_close_matches(name, list(names), n=MOST_CLOSE, cutoff=0.7)


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types of an annotation: the members of a union, without ``Annotated``."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _types(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (None, typing.Literal):
        yield annotation
    else:
        for member in typing.get_args(annotation):
            yield from _types(member)


def _nested_metadata(annotation: Any) -> list[Any]:
    """Return the constraints that are declared within a union."""
    found = []
    for member in typing.get_args(annotation):
        for one in getattr(member, "__metadata__", ()):
            found += one.metadata if isinstance(one, FieldInfo) else [one]
    return found


def _bounds(metadata: list[Any]) -> str:
    """Return the bounds of a number or of the length of a text, in words; empty if there are none."""
    bound = {key: value for one in metadata for key, value in _constraints(one)}
    if "max_length" in bound:
        least = bound.get("min_length", 0)
        return (
            f" of {least} to {bound['max_length']} characters"
            if least
            else f" of at most {bound['max_length']} characters"
        )
    if "ge" in bound and "le" in bound:
        return f" from {_plain(bound['ge'])} to {_plain(bound['le'])}"
    said = " and ".join(f"{words} {_plain(bound[key])}" for key, words in BOUNDS.items() if key in bound)
    return f" {said}" if said else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _constraints(one: Any) -> Iterator[tuple[str, Any]]:
    for key in (*BOUNDS, "min_length", "max_length"):
        if getattr(one, key, None) is not None:
            yield key, getattr(one, key)


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not convert numbers of more than 4300 digits
        return f"of type {type(value).__name__}"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
