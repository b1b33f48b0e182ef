"""A virtual environment for the cluster's Python, with links to the packages of the environment that the tests run in.

Ray clones the environment of the cluster's Python for every job that has packages of its own. A clone of the tests' environment
would copy two gigabytes; here it copies links.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ..processes import limit_s

# jobs replace these packages: they are copied, so that nothing is removed through a link
OURS = ("ado_actuators", "ado_sfttrainer", "ado_fms_hf_tuning", "__editable__.ado_")
OF_THE_ENVIRONMENT = ("__pycache__", "_virtualenv", "distutils-precedence", "pip", "setuptools", "_distutils_hack")


def make(place: Path) -> Path:
    """Make the environment and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=limit_s(120))
    packages = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(OF_THE_ENVIRONMENT):
            _provide(entry, packages / entry.name)
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        if not script.name.startswith(("activate", "pip", "python")):
            _provide_script(script, place / "bin")
    return place / "bin" / "python"


def _provide(entry: Path, there: Path) -> None:
    if entry.name.startswith(OURS):
        shutil.copytree(entry, there) if entry.is_dir() else shutil.copy2(entry, there)
    elif entry.suffix == ".dist-info":
        # without its list of files no installer removes a package
        shutil.copytree(entry, there, ignore=shutil.ignore_patterns("RECORD"))
    else:
        there.symlink_to(entry)


def _provide_script(script: Path, into: Path) -> None:
    content = script.read_bytes()
    if content.startswith(b"#!"):
        own = os.fsencode(Path(sys.executable).parent / "python")
        (into / script.name).write_bytes(content.replace(own, os.fsencode(into / "python"), 1))
        (into / script.name).chmod(0o755)
    else:
        (into / script.name).symlink_to(script)
