"""Resolves model names to architectures and to sources of weights.

``models.yaml`` holds published hyper-parameters, keyed as in a Hugging Face ``config.json``. A model of the catalogue
with random weights therefore needs no download. Directories with a ``config.json`` and hub ids are used without the catalogue.
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

from ..protocol import model_config
from ..protocol.data_files import quoted

ACCEPTED = "a name of the catalogue, a directory with a config.json, or a hub id (org/name)"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHOWN = 80


class UnknownModel(ValueError):
    """The name is neither in the catalogue, nor a directory, nor in the format of a hub id."""


class NotAModelDirectory(ValueError):
    """The path is not a model directory: it does not exist, is not a directory, or has no ``config.json``."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: as the user wrote it.
        architecture: keys of a Hugging Face configuration, ``model_type`` among them; None if ``source`` has it.
        source: hub id or absolute directory with configuration, weights and tokenizer; None for the models of this project.
        published_parameters: parameters of the published model, shared ones counted once; None if unknown.
    """

    name: str
    architecture: dict[str, Any] | None
    source: str | None
    published_parameters: int | None = None


def names() -> tuple[str, ...]:
    """Return the names of the catalogue, in its order. These models need no download."""
    return tuple(_catalogue())


def resolve(name: str) -> ModelSource:
    """Return the source of model ``name`` from the catalogue and the file system, without the network.

    Raises:
        UnknownModel: the message lists similar names.
        NotAModelDirectory: ``name`` is a path, but not one of a model directory.
    """
    entry = _catalogue().get(name) or _by_hub_id().get(name)
    if entry is not None:
        return ModelSource(name, copy.deepcopy(entry["architecture"]), entry["hub_id"], entry["published_parameters"])
    if not name.isprintable():
        raise UnknownModel(f"Model {quoted(name, _SHOWN)} is unknown: it contains characters that are not printable.")
    expanded = os.path.expanduser(name)  # noqa: PTH111
    path = Path(expanded)
    # os.path returns False for names that no file system allows, such as very long ones
    if os.path.exists(expanded) or name.startswith(("/", ".", "~")):  # noqa: PTH110
        return ModelSource(name, None, str(_model_directory(path, name)))
    if _HUB_ID.fullmatch(name):
        return ModelSource(name, None, name)
    close = difflib.get_close_matches(name, names(), n=3, cutoff=0.6)
    hint = f"use {' or '.join(close)}" if close else f"accepted: {ACCEPTED}"
    raise UnknownModel(f"Model {quoted(name, _SHOWN)} is unknown; {hint}.")


def _model_directory(path: Path, name: str) -> Path:
    if not os.path.exists(path):  # noqa: PTH110 - as above
        remedy = "check the path, or give a name of the catalogue"
        raise NotAModelDirectory(f"Model directory {quoted(name, _SHOWN)} does not exist; {remedy}.")
    if not path.is_dir():
        raise NotAModelDirectory(f"Model {quoted(name, _SHOWN)} is a file; expected a directory with a config.json.")
    if not (path / "config.json").is_file():
        remedy = "give the directory that holds the model's config.json, or a name of the catalogue"
        raise NotAModelDirectory(f"Model directory {quoted(name, _SHOWN)} has no config.json; {remedy}.")
    if message := model_config.unusable(name, path / "config.json"):
        raise NotAModelDirectory(message)
    return path.absolute()


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / "models.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue: dict[str, dict[str, Any]] = yaml.load(text, Loader=loader)["models"]
    return catalogue


@functools.cache
def _by_hub_id() -> dict[str, dict[str, Any]]:
    return {entry["hub_id"]: entry for entry in _catalogue().values() if entry["hub_id"]}
