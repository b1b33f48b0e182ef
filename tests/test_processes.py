"""What a test's command starts ends with it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from .processes import RAY_TOO_SLOW, limit_s, run, start_ray, started

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


def started_pid(tmp_path: Path) -> int:
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
    assert gone(started_pid(tmp_path))


def test_at_a_time_limit_everything_ends_and_the_output_is_shown(tmp_path: Path) -> None:
    """The daemon as well."""
    code = DAEMON.format(path=str(tmp_path / "pid"), then="print('begun', flush=True); time.sleep(600)")
    with pytest.raises(AssertionError, match=r"no end within (?s:.*)begun"):
        run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, timeout_s=1)
    assert gone(started_pid(tmp_path))


def test_what_has_to_end_by_itself_is_named_if_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assertion names the daemon, which is ended nevertheless."""
    monkeypatch.setattr("tests.processes.END_S", 0.1)
    code = DAEMON.format(path=str(tmp_path / "pid"), then="")
    with pytest.raises(AssertionError, match="still running after"):
        run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, timeout_s=30, must_end=["time.sleep(600)"])
    assert gone(started_pid(tmp_path))


def test_a_command_in_the_background_ends_with_its_block(tmp_path: Path) -> None:
    """So does its daemon; the block begins when the command is ready."""
    code = DAEMON.format(path=str(tmp_path / "pid"), then="time.sleep(600)")
    log, pid = tmp_path / "log", tmp_path / "pid"
    command = [sys.executable, "-c", code]
    with started(command, cwd=tmp_path, env=os.environ, log=log, ready=lambda: pid.exists() and pid.read_text()) as own:
        assert own.poll() is None
    assert own.poll() is not None
    assert gone(started_pid(tmp_path))


def test_a_command_that_ends_before_it_is_ready_is_an_error(tmp_path: Path) -> None:
    """The message has its output."""
    command = [sys.executable, "-c", "print('why')"]
    with (
        pytest.raises(AssertionError, match=r"not ready(?s:.*)why"),
        started(command, cwd=tmp_path, env=os.environ, log=tmp_path / "log", ready=lambda: False),
    ):
        pass


def test_a_start_of_ray_that_took_too_long_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other errors are not."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    errors = [Exception(f"The current node {RAY_TOO_SLOW}."), ValueError("another")]

    def start() -> None:
        raise errors.pop(0)

    with pytest.raises(ValueError, match="another"):
        start_ray(start)
    assert errors == []


@pytest.mark.parametrize(("load", "expected"), [(0.0, 10.0), (1.0, 10.0), (3.0, 30.0), (50.0, 60.0)])
def test_limits_grow_with_the_load_of_each_cpu(load: float, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a sixfold; a quiet machine keeps the limit as it is."""
    cpus = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getloadavg", lambda: (load * cpus, 0.0, 0.0))
    assert limit_s(10.0) == pytest.approx(expected)
