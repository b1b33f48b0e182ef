"""Entry of the trainer process: ``python CORE/trainer STACK``. Imports the standard library until ``serve`` takes over.

The process runs in an environment that may have neither ado nor Ray nor this plugin installed. The namespace
``ado_actuators`` is therefore made here, of the directory this file lies in, and nothing else is put on ``sys.path``.
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
