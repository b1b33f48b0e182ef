"""Say what can be measured here and what is missing: ``python -m ado_actuators.sfttrainer.doctor``. Works where ado does not."""

from __future__ import annotations

import sys

from .core.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main("sfttrainer", "current"))
