"""Compare two sets of measurements: ``python -m ado_actuators.fms_hf_tuning.compare BEFORE AFTER``."""

from __future__ import annotations

import sys

from .core.commands.compare import main

if __name__ == "__main__":
    sys.exit(main("fms_hf_tuning"))
