"""Measure one workload with TRL, without ado's store and without Ray: ``python -m ado_actuators.sfttrainer.run workload.yaml``."""

from __future__ import annotations

import sys

from .actuator import SFTTrainer
from .core.commands.run import main
from .parameters import SFTTrainerParameters

if __name__ == "__main__":
    sys.exit(main(SFTTrainer.plugin(), SFTTrainerParameters))
