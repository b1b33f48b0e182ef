"""The commands of this plugin: ``ado-fms-hf-tuning run workload.yaml``, or ``python -m ado_actuators.fms_hf_tuning run workload.yaml``."""

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
    from .parameters import FMSHFTuningParameters

    return PLUGIN, FMSHFTuningParameters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, by default those of this process; return its exit status."""
    return app.main("fms_hf_tuning", "managed", load, arguments)


if __name__ == "__main__":
    sys.exit(main())
