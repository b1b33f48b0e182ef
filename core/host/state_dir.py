"""Where a node keeps logs, run files and environments. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir(configured: str) -> Path:
    """Return the directory on this node that an actuator configuration's ``state_dir`` means, empty: the usual one.

    Raises:
        RuntimeError: it begins with the home of a user that does not exist.
    """
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ado-actuators"
