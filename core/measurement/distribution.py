"""The name and the version of a plugin's package as pip knows it. Standard library only: the command line imports it first."""

from __future__ import annotations

import importlib.metadata


def distribution(plugin: str) -> str:
    """Return the name of a plugin's package, which is also its command: ``ado-fms-hf-tuning`` for ``fms_hf_tuning``."""
    return f"ado-{plugin.replace('_', '-')}"


def installed_version(plugin: str) -> str | None:
    """Return the installed version of a plugin, or None if it runs from a source tree."""
    try:
        return importlib.metadata.version(distribution(plugin))
    except importlib.metadata.PackageNotFoundError:
        return None
