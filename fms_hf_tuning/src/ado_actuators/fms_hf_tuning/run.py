"""Measure one workload with fms-hf-tuning, without Ray: ``python -m ado_actuators.fms_hf_tuning.run workload.yaml``."""

from __future__ import annotations

import sys

from .actuator import FMSHFTuning
from .core.commands.run import main
from .parameters import FMSHFTuningParameters

if __name__ == "__main__":
    sys.exit(main(FMSHFTuning.plugin(), FMSHFTuningParameters))
