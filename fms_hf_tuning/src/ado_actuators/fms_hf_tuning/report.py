"""Make a page and pictures of measurements: ``python -m ado_actuators.fms_hf_tuning.report OPERATION``."""

from __future__ import annotations

import sys

from .core.commands.report import main

if __name__ == "__main__":
    sys.exit(main("fms_hf_tuning"))
