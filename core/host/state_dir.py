"""Where a node keeps logs, run files and environments. Standard library only."""

from __future__ import annotations

import errno
import os
import stat
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


def make_subdirectory(state: Path, name: str) -> Path:
    """Make a directory for files of measurements: this user's alone; in a state directory that others may write, as open as /tmp.

    Raises:
        OSError: it cannot be made, or it is a link that another user has planted.
    """
    if not state.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = state / name
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if directory.is_symlink() and directory.lstat().st_uid not in (os.geteuid(), 0):
            raise PermissionError(errno.EPERM, f"{name} is a link of another user") from None
        if not directory.is_dir():
            raise
    else:
        if state.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            directory.chmod(0o1777)
    return directory
