"""Entry point of the trainer process: ``python CORE/trainer``. Imports only the standard library until it calls ``serve``.

The environment of the process may have neither ado nor Ray nor this plugin installed. This module therefore creates the namespace
package ``ado_actuators`` from its own location, and adds nothing to ``sys.path``.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

here = Path(__file__).absolute().parent
package = here.parent.parent
sys.path = [entry for entry in sys.path if Path(entry or ".").absolute() != here]
namespace = types.ModuleType("ado_actuators")
namespace.__path__ = [str(package.parent)]
sys.modules["ado_actuators"] = namespace
serve = importlib.import_module(f"ado_actuators.{package.name}.core.trainer.serve")
serve.main(f"ado_actuators.{package.name}.stack")
