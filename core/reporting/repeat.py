"""The command that measures a row's workload again. No I/O."""

from __future__ import annotations

from ..workload.command import run_command
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
    return run_command(row.actuator, row.experiment, row.workload)
