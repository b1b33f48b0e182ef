"""Runs commands so that nothing they start outlives them, whatever its parent, group or session is by then."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

# every process that a command starts inherits this variable; Ray's processes leave their session and parent, but keep it
MARKER = "ADO_TESTS_COMMAND"
# Ray gives a node 30 s to start, which no setting changes, and a crowded machine can exceed
RAY_TOO_SLOW = "timed out during startup"
MOST_PATIENT = 6.0


def limit_s(quiet_s: float) -> float:
    """Return a time limit for this machine now: ``quiet_s`` seconds, times the load for each CPU where that is above 1."""
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return quiet_s * min(MOST_PATIENT, max(1.0, load))


def run(
    command: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    attempts: int = 3,
) -> subprocess.CompletedProcess[str]:
    """Run a command, wait until it ends, and end every process that it has left.

    Output goes to files: a process that is left behind would keep a pipe open, and waiting for its end would hang.

    Args:
        command: program and arguments.
        cwd: directory to run in.
        env: environment variables.
        timeout_s: limit in seconds on a quiet machine; ``limit_s`` scales it.
        attempts: how often the command is started if Ray did not start in time.

    Raises:
        AssertionError: the limit was reached; the message ends with what the command had written.
    """
    for attempt in range(1, attempts + 1):
        done = _run_once(command, cwd, env, limit_s(timeout_s))
        if done.returncode == 0 or RAY_TOO_SLOW not in done.stdout + done.stderr:
            break
        time.sleep(5.0 * attempt)
    return done


def _run_once(
    command: list[str], cwd: Path, env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    name = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, MARKER: name},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_marked(MARKER, name)
            process.wait()
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(command, code or 0, out.read(), err.read())
    assert code is not None, f"no end within {timeout_s:.0f} s: {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def end_marked(variable: str, value: str) -> None:
    """Kill every process whose environment has this variable with this value, and those they start meanwhile."""
    for _ in range(20):
        found = [process for process in psutil.process_iter() if _has(process, variable, value)]
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=2.0)


def _has(process: psutil.Process, variable: str, value: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(variable) == value
    return False
