"""Resolves model names to architectures and to sources of weights.

``models.yaml`` holds published hyper-parameters, keyed as in a Hugging Face ``config.json``. A model of the catalogue
with random weights therefore needs no download. Directories with a ``config.json`` and hub ids are taken as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..protocol import supported

ACCEPTED = "a name of the catalogue, a directory with a config.json, or a hub id (org/name)"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHOWN = 80


class UnknownModel(ValueError):
    """The name is neither in the catalogue, nor a directory, nor of the form of a hub id."""


class NotAModelDirectory(ValueError):
    """The path holds no model: it does not exist, is no directory, or has no ``config.json``."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: as the user wrote it.
        architecture: keys of a Hugging Face configuration, ``model_type`` among them; None where ``source`` holds it.
        source: hub id or absolute directory with configuration, weights and tokenizer; None for a model of our own.
        published_parameters: parameters of the published model, shared ones once; None where unknown.
    """

    name: str
    architecture: dict[str, Any] | None
    source: str | None
    published_parameters: int | None = None


def names() -> tuple[str, ...]:
    """Return the names of the catalogue, in its order: those that need no download."""
    return tuple(_catalogue())


def resolve(name: str) -> ModelSource:
    """Find out what ``name`` stands for; looks at the catalogue and the file system, never at the network.

    Raises:
        UnknownModel: the name is unknown; the message lists similar names.
        NotAModelDirectory: ``name`` is a path without a model.
    """
    entry = _catalogue().get(name) or _by_hub_id().get(name)
    if entry is not None:
        return ModelSource(name, copy.deepcopy(entry["architecture"]), entry["hub_id"], entry["published_parameters"])
    if not name.isprintable():
        raise UnknownModel(f"model {_shown(name)} is unknown: no name has such characters.")
    expanded = os.path.expanduser(name)  # noqa: PTH111
    path = Path(expanded)
    # os.path takes names no file system could hold, such as overlong ones, for absent
    if os.path.exists(expanded) or name.startswith(("/", ".", "~")):  # noqa: PTH110
        return ModelSource(name, None, str(_model_directory(path, name)))
    if _HUB_ID.fullmatch(name):
        return ModelSource(name, None, name)
    close = difflib.get_close_matches(name, names(), n=3, cutoff=0.6)
    hint = f"close: {', '.join(close)}" if close else f"accepted: {ACCEPTED}"
    raise UnknownModel(f"model {_shown(name)} is unknown; {hint}.")


def _model_directory(path: Path, name: str) -> Path:
    if not os.path.exists(path):  # noqa: PTH110 - as above
        raise NotAModelDirectory(f"model directory {_shown(name)} does not exist.")
    if not path.is_dir():
        raise NotAModelDirectory(f"model {_shown(name)} is a file, but must be a directory with a config.json.")
    if not (path / "config.json").is_file():
        raise NotAModelDirectory(f"directory {_shown(name)} holds no config.json, so it is no model.")
    if message := supported.unusable_configuration(name, path / "config.json"):
        raise NotAModelDirectory(message)
    return path.absolute()


def _shown(value: str) -> str:
    # the end of a path says more than its beginning
    return repr(value if len(value) <= _SHOWN else "..." + value[-_SHOWN + 3 :])


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / "models.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue: dict[str, dict[str, Any]] = yaml.load(text, Loader=loader)["models"]
    return catalogue


@functools.cache
def _by_hub_id() -> dict[str, dict[str, Any]]:
    return {entry["hub_id"]: entry for entry in _catalogue().values() if entry["hub_id"]}
