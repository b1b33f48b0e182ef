"""Runs commands so that every process they start ends with them, whatever its parent, group or session is by then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

# all processes that a command starts inherit this variable, even those of Ray, which change their session and parent
MARKER = "ADO_TESTS_COMMAND"
# Ray gives a node 30 s to start, which no setting changes, and a crowded machine can exceed
RAY_TOO_SLOW = "timed out during startup"
MOST_PATIENT = 6.0
END_S = 30.0
POLL_S = 0.2


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
    attempts: int = 5,
    must_end: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command, wait until it ends, and end every process that it has left.

    Output goes to files: a process that is left behind would keep a pipe open, and waiting for its end would hang.

    Args:
        command: program and arguments.
        cwd: directory to run in.
        env: environment variables.
        timeout_s: limit in seconds on a quiet machine; ``limit_s`` scales it.
        attempts: how often the command is started if Ray did not start in time.
        must_end: of the processes that the command started, those with one of these texts in their command line have to end
            by themselves after it.

    Raises:
        AssertionError: the limit was reached, or a process of ``must_end`` did not end; the message ends with the output.
    """
    for attempt in range(1, attempts + 1):
        done = _run_once(command, cwd, env, limit_s(timeout_s), must_end)
        if done.returncode == 0 or RAY_TOO_SLOW not in done.stdout + done.stderr:
            break
        time.sleep(5.0 * attempt)
    return done


def _run_once(
    command: list[str], cwd: Path, env: Mapping[str, str], timeout_s: float, must_end: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    name = uuid.uuid4().hex
    left: list[str] = []
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
            left = _left(name, must_end)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_marked(MARKER, name)
            process.wait()
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(command, code or 0, out.read(), err.read())
    written = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert code is not None, f"no end within {timeout_s:.0f} s: {command}\n{written}"
    assert not left, f"still running after {command}: {left}\n{written}"
    return done


def _left(name: str, texts: Sequence[str]) -> list[str]:
    """Return the command lines with one of these texts that still run when their time to end is over."""
    deadline = time.monotonic() + limit_s(END_S)
    while texts:
        commands = [_command_line(process) for process in marked(MARKER, name)]
        found = [command for command in commands if command and any(text in command for text in texts)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)
    return []


@contextlib.contextmanager
def started(
    command: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    ready: Callable[[], object] = lambda: True,
    timeout_s: float = 120.0,
    attempts: int = 5,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, give its process once it is ready, and end every process that it has left when the block ends.

    Args:
        command: program and arguments.
        cwd: directory to run in.
        env: environment variables.
        log: file that the output is appended to.
        ready: returns a true value once the block can begin.
        timeout_s: limit in seconds for becoming ready, on a quiet machine; ``limit_s`` scales it.
        attempts: how often the command is started if Ray did not start in time.

    Raises:
        AssertionError: the command ended, or the limit was reached, before it was ready; the message ends with the output.
    """
    for attempt in range(1, attempts + 1):
        name = uuid.uuid4().hex
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**env, MARKER: name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # a shell that runs the tests in the background has them ignore Ctrl-C
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        try:
            if _becomes_ready(process, ready, timeout_s):
                yield process
                return
        finally:
            end_marked(MARKER, name)
            process.wait()
        written = log.read_text(errors="replace")
        if attempt == attempts or RAY_TOO_SLOW not in written:
            break
        log.unlink()
        time.sleep(5.0 * attempt)
    raise AssertionError(f"not ready: {command}\n{written[-3000:]}")


def _becomes_ready(process: subprocess.Popen[bytes], ready: Callable[[], object], timeout_s: float) -> bool:
    return bool(wait_for(lambda: ready() or process.poll() is not None, timeout_s) and ready())


def wait_for(condition: Callable[[], Any], quiet_s: float) -> Any:
    """Poll until the condition holds, for at most ``limit_s(quiet_s)`` seconds; return its last value."""
    deadline = time.monotonic() + limit_s(quiet_s)
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


def start_ray(start: Callable[[], T], attempts: int = 5) -> T:
    """Call ``start``, which starts Ray in this process, and return its result; again if Ray did not start in time."""
    for attempt in range(1, attempts + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            return start()
        except Exception as error:
            if attempt == attempts or RAY_TOO_SLOW not in str(error):
                raise
        # what has been started of the node would live until the end of this process
        for process in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(5.0 * attempt)
    raise AssertionError("unreachable")


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Return the live processes whose environment has this variable with this value."""
    return [process for process in psutil.process_iter() if _has(process, variable, value)]


def end_marked(variable: str, value: str) -> None:
    """Kill every process whose environment has this variable with this value, and those they start meanwhile."""
    for _ in range(20):
        found = marked(variable, value)
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # one that its new parent has not reaped yet has ended
        deadline = time.monotonic() + 2.0
        while any(_has(process, variable, value) for process in found) and time.monotonic() < deadline:
            time.sleep(0.01)


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _has(process: psutil.Process, variable: str, value: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(variable) == value
    return False
