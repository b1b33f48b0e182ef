"""The command that measures a workload again, without ado's store and without Ray. No I/O."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from . import yaml_input


def distribution(plugin: str) -> str:
    """Return the name of a plugin's package, which is also its command: ``ado-fms-hf-tuning`` for ``fms_hf_tuning``."""
    return f"ado-{plugin.replace('_', '-')}"


def run_command(actuator: str, experiment: str, values: Mapping[str, Any]) -> str:
    """Return the command ``run`` of an experiment with these property values."""
    words = [f"{name}={_quoted(value)}" for name, value in values.items()]
    return shlex.join([distribution(actuator), "run", "--experiment", experiment, *words])


def _quoted(value: Any) -> str:
    """Return ``value`` quoted so that the ``run`` command, which reads YAML, gets the same value: the string no needs quotes."""
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    try:
        plain = yaml_input.load(value) == value
    except yaml_input.InvalidYAML:
        plain = False
    return value if plain else yaml.safe_dump(value, default_style='"', width=10**6).strip()
