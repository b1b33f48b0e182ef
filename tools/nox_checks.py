"""What the sessions of the noxfile check, and in which surroundings."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

import nox

IMPORTABLE = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"ado_actuators.{name}.actuator")
    except ModuleNotFoundError as error:
        if error.name not in ("ado_actuators", f"ado_actuators.{name}"):
            raise
    else:
        print(name)
"""
WITHOUT_TORCH = """
import importlib.util, sys
sys.exit("torch is installed" if importlib.util.find_spec("torch") else 0)
"""


def own_state(session: nox.Session) -> dict[str, str]:
    """Return settings that keep ado's state in the session's own directory."""
    home = Path(session.create_tmp()) / "home"
    shutil.rmtree(home, ignore_errors=True)
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


def actuators(session: nox.Session, plugins: Collection[str]) -> set[str]:
    """Return the actuators that ado lists, called in a directory without sources."""
    with session.chdir(session.create_tmp()):
        printed = session.run("ado", "get", "actuators", silent=True, log=False, env=own_state(session)) or ""
    return {plugin for plugin in plugins if re.search(rf"\b{plugin}\b", printed)}


def importable(session: nox.Session, plugins: Collection[str]) -> set[str]:
    """Return the plugins that can be imported, called in a directory without sources."""
    with session.chdir(session.create_tmp()):
        printed = session.run("python", "-c", IMPORTABLE, *plugins, silent=True, log=False) or ""
    return set(str(printed).split())


def check_installed(session: nox.Session, plugins: Collection[str], expected: set[str]) -> None:
    """Fail unless exactly the ``expected`` ones of all ``plugins`` can be imported and ado lists them."""
    if (found := importable(session, plugins)) != expected:
        session.error(f"The plugins {sorted(expected)} are installed, but {sorted(found)} can be imported.")
    if (found := actuators(session, plugins)) != expected:
        session.error(f"The plugins {sorted(expected)} are installed, but ado lists {sorted(found)}.")
    session.log(f"Python imports and ado lists exactly {', '.join(sorted(expected))}.")


def rounds(lists: list[str]) -> list[list[str]]:
    """Return the pins of all lists, grouped so that each group has one version per package, as pip-audit requires."""
    versions: dict[str, list[str]] = {}
    for text in lists:
        # without torch's CPU build, which advisory services do not list
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)(?![\w.+])", text, re.MULTILINE):
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    count = max(map(len, versions.values()))
    return [[f"{name}=={known[i]}" for name, known in versions.items() if len(known) > i] for i in range(count)]
