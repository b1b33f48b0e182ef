"""Translates the user's pip settings about package indexes (variables and configuration files) into uv's variables.

uv reads no pip settings. Without this module, a mirror that serves ``pip install`` would not serve managed environments.
Standard library only: the noxfile imports this file, too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

SETTINGS = ("find-links", "index-url", "extra-index-url", "no-index", "cert", "trusted-host")
ELSEWHERE = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
)


def variables() -> dict[str, str]:
    """Return the environment variables of this process for uv, completed with the settings of pip's configuration files."""
    return uv_variables(pip_files() | os.environ)


def options(variables: dict[str, str]) -> list[str]:
    """Return the command-line options of uv for settings that have no variable."""
    return ["--no-index"] if variables.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "y", "t") else []


def uv_variables(variables: dict[str, str]) -> dict[str, str]:
    """Return ``variables`` for uv: pip's index settings become uv's where uv has none; variables that select another Python are removed."""
    wanted = {name: value for name, value in variables.items() if name not in ELSEWHERE}
    wanted["NO_COLOR"] = "1"
    if links := variables.get("PIP_FIND_LINKS"):
        wanted.setdefault("UV_FIND_LINKS", ",".join(links.split()))
    if (index := variables.get("PIP_INDEX_URL")) and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & variables.keys():
        wanted["UV_DEFAULT_INDEX"] = index
    if (more := variables.get("PIP_EXTRA_INDEX_URL")) and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & variables.keys():
        wanted["UV_INDEX"] = more
        wanted.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip treats several indexes
    if certificates := variables.get("PIP_CERT"):
        wanted.setdefault("SSL_CERT_FILE", certificates)
    if hosts := variables.get("PIP_TRUSTED_HOST"):
        wanted.setdefault("UV_INSECURE_HOST", hosts)
    return wanted


def pip_files() -> dict[str, str]:
    """Return the package settings of pip's configuration files, named like pip's variables; empty without pip."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(
            pip, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse(done.stdout)


def parse(listed: str) -> dict[str, str]:
    """Return the settings in the output of ``pip config list``; settings for ``pip install`` take precedence over global ones.

    >>> parse("global.index-url='https://mirror/simple'")
    {'PIP_INDEX_URL': 'https://mirror/simple'}
    """
    found = {}
    for section in ("global", "install"):
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(['\"].*['\"])$", listed, re.MULTILINE):
            if name in SETTINGS:
                found[f"PIP_{name.replace('-', '_').upper()}"] = " ".join(ast.literal_eval(value).split())
    return found
