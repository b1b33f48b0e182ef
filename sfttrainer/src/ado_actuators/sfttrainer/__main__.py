"""The commands of this plugin: ``ado-sfttrainer run workload.yaml``, or ``python -m ado_actuators.sfttrainer run workload.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .core.commands import app

if TYPE_CHECKING:
    from .core.measurement.plugin import Plugin


def load() -> tuple[Plugin, type[Any]]:
    """Return the plugin and the class of its parameters. Imports neither ado nor Ray."""
    from .description import PLUGIN
    from .parameters import SFTTrainerParameters

    return PLUGIN, SFTTrainerParameters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, by default those of this process; return its exit status."""
    return app.main("sfttrainer", "current", load, arguments)


if __name__ == "__main__":
    sys.exit(main())
