"""Where a node keeps logs, run files and environments. Standard library only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def state_dir(configured: str) -> Path:
    """Return the directory on this node for the ``state_dir`` of an actuator configuration; empty means the default.

    Raises:
        RuntimeError: the path begins with the home of a user that does not exist.
    """
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ado-actuators"


def make_subdirectory(state: Path, name: str) -> Path:
    """Make a directory for measurement files with mode 0700, or 1777 (as /tmp) if other users may write to the state directory.

    Raises:
        OSError: it cannot be made, or it is a symbolic link of another user.
    """
    if not state.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = state / name
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if directory.is_symlink() and directory.lstat().st_uid not in (os.geteuid(), 0):
            raise PermissionError(errno.EPERM, f"{name} is a symbolic link of another user") from None
        if not directory.is_dir():
            raise
    else:
        if state.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            directory.chmod(0o1777)
    return directory
