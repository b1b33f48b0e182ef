"""The command that measures a row's workload again. No I/O."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..workload import yaml_input
from ..workload.experiments import KINDS
from ..workload.fields import Workload
from . import ibm
from .rows import Row


def command(row: Row) -> str:
    """Return the command ``run`` with the row's workload; empty where this project has no such experiment or property.

    Settings of the actuator, such as a price or an environment, are not in a row and not in the command.
    """
    if ibm.is_from(row) or row.experiment not in KINDS or not row.workload.keys() <= Workload.model_fields.keys():
        return ""
    given = [f"{name}={_value(value)}" for name, value in row.workload.items()]
    # as a package's name is made of its actuator's
    return shlex.join([f"ado-{row.actuator.replace('_', '-')}", "run", "--experiment", row.experiment, *given])


def _value(value: Any) -> str:
    """Return a value as the command reads it: YAML, in which a text that looks like another type has quotes."""
    return value if isinstance(value, str) and value and _is_plain(value) else json.dumps(value)


def _is_plain(text: str) -> bool:
    try:
        return bool(yaml_input.load(text) == text)
    except yaml_input.InvalidYAML:
        return False
