"""Runs plugin_build.py, which both plugins share: a file in one of them and a link to it in the other.

This file is a copy in each plugin. If it were the link, setuptools would take a link that leads nowhere for a plugin without
setup.py, and would build an incomplete package without an error.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent
BUILD = HERE / "plugin_build.py"

if not BUILD.is_file() or not BUILD.read_text(encoding="utf-8").startswith('"""'):
    sys.exit(
        f"{HERE.name} cannot be built: {BUILD.name} is a link that leads to no file; {HERE.parent} is neither a git clone nor an "
        "exported archive, or was cloned without links. Clone again with `git clone -c core.symlinks=true`."
    )
runpy.run_path(str(BUILD), run_name="__main__")
