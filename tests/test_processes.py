"""What a test's command starts ends with it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from .processes import limit_s, run

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({path!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists({path!r}):
    time.sleep(0.01)
{then}
"""


def started(tmp_path: Path) -> int:
    """Return the pid that the daemon wrote."""
    return int((tmp_path / "pid").read_text())


def gone(pid: int) -> bool:
    """Whether a process has ended, or ends within five seconds."""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_daemon_in_a_session_of_its_own_ends_with_the_command(tmp_path: Path) -> None:
    """It has neither the parent nor the session of the command, and holds its output open."""
    code = DAEMON.format(path=str(tmp_path / "pid"), then="print('done')")
    done = run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, timeout_s=30)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert gone(started(tmp_path))


def test_at_a_time_limit_everything_ends_and_the_output_is_shown(tmp_path: Path) -> None:
    """The daemon as well."""
    code = DAEMON.format(path=str(tmp_path / "pid"), then="print('begun', flush=True); time.sleep(600)")
    with pytest.raises(AssertionError, match=r"no end within (?s:.*)begun"):
        run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, timeout_s=2)
    assert gone(started(tmp_path))


@pytest.mark.parametrize(("load", "expected"), [(0.0, 10.0), (1.0, 10.0), (3.0, 30.0), (50.0, 60.0)])
def test_limits_grow_with_the_load_of_each_cpu(load: float, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a sixfold; a quiet machine keeps the limit as it is."""
    cpus = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getloadavg", lambda: (load * cpus, 0.0, 0.0))
    assert limit_s(10.0) == pytest.approx(expected)
