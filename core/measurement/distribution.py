"""The version and the extras of a plugin's package as pip knows it. Imports packaging when an extra is checked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from ..workload.command import distribution

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# a longer path would leave too few characters for the rest of a message
_LONGEST_PATH = 70


def installed_version(plugin: str) -> str | None:
    """Return the installed version of a plugin, or None if it runs from a source tree."""
    try:
        return importlib.metadata.version(distribution(plugin))
    except importlib.metadata.PackageNotFoundError:
        return None


def lacking(plugin: str, extra: str) -> list[str]:
    """Return the packages of a plugin's extra that this Python cannot import; empty where the plugin is not installed."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(distribution(plugin)) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [one.name for one in wanted if one.marker and asked_by(one, extra)]
    return [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is None]


def asked_by(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to an extra, or, where that is empty, to none."""
    if requirement.marker is None:
        return not extra
    always = requirement.marker.evaluate({"extra": ""})
    return always if not extra else not always and requirement.marker.evaluate({"extra": extra})


def install_command(plugin: str, extra: str) -> str:
    """Return the command that installs a plugin with an extra: from the directory that it was installed from if that is there."""
    return f"pip install '{_directory(plugin) or f'./{plugin}'}[{extra}]'"


def beside(plugin: str, other: str) -> str:
    """Return the directory of another plugin: beside the one that this plugin was installed from if it is there, else as in the root."""
    found = Path(_directory(plugin) or "").parent / other
    return shlex.quote(str(found)) if found.is_absolute() and (found / "pyproject.toml").is_file() else f"./{other}"


def _directory(plugin: str) -> str | None:
    """Return the directory from which pip installed a plugin, if it still exists and its path is short."""
    try:
        text = importlib.metadata.distribution(distribution(plugin)).read_text("direct_url.json")
        url = urllib.parse.urlsplit(json.loads(text or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    path = urllib.parse.unquote(url.path)
    usable = url.scheme == "file" and len(path) <= _LONGEST_PATH and (Path(path) / "pyproject.toml").is_file()
    return path if usable else None
