"""Chooses the Python that runs the trainer: this one, one the user names, or one built from a pinned list.

A managed environment is the directory ``<cache_dir>/<list name>-<digest>``. The digest covers the list's content, the
Python version and the platform: a changed list gives a new environment, and an unchanged list reuses the old one. ``uv``
builds it in a temporary directory, with the user's index settings for uv or pip. The directory is renamed when it is
complete, under a file lock, so an environment with the final name is always complete.

A list may contain the comment lines ``# python: 3.11 3.12`` (supported versions; this interpreter's version if listed,
else the last) and ``# index: URL`` (a further index for packages that the user's indexes lack).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .uv import POLL_S, Deadline, EnvironmentProblem, Progress, Uv

# limit in seconds for waiting for another builder and building
BUILD_TIMEOUT_S = 3600.0
OLDEST_PYTHON = (3, 10)
# seconds an interpreter has to say which it is
ANSWER_S = 30.0


def resolve(
    environment: str,
    *,
    requirements: Path | None,
    cache_dir: Path,
    progress: Progress,
    timeout_s: float = BUILD_TIMEOUT_S,
) -> Path:
    """Return the Python interpreter that ``environment`` names, and build it first if necessary.

    Args:
        environment: ``current``, ``managed``, or the path of a Python interpreter or of a virtual environment.
        requirements: the pinned list of a managed environment; None if the plugin has none.
        cache_dir: directory of managed environments; created if missing. Should be on a local disk.
        progress: called with one line of text whenever the progress changes.
        timeout_s: limit in seconds for waiting for another builder and building.

    Raises:
        EnvironmentProblem: the interpreter does not exist or cannot be built.
    """
    if environment == "current":
        if not sys.executable:
            raise EnvironmentProblem(
                "The path of the current Python interpreter is unknown; set environment to the path of an interpreter."
            )
        return Path(sys.executable)
    if environment != "managed":
        return _named(environment)
    if requirements is None:
        raise EnvironmentProblem(
            "This actuator has no managed environment; set environment to current or to the path of a Python interpreter."
        )
    try:
        content = requirements.read_text()
    except OSError as error:
        raise EnvironmentProblem(
            f"The package list {requirements.name} of the environment cannot be read: {error.strerror}."
        ) from None
    return _Managed(requirements, content, Path(cache_dir).expanduser().absolute()).python(progress, timeout_s)


def built(requirements: Path, cache_dir: Path) -> Path | None:
    """Return the interpreter of a managed environment that is complete, or None; builds nothing."""
    return _Managed(requirements, requirements.read_text(), cache_dir).complete()


def _named(environment: str) -> Path:
    try:
        path = Path(environment).expanduser().absolute()  # not resolved: a virtual environment's Python is a link
        if path.is_dir():
            path = path / "bin" / "python"
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a user without a home is a RuntimeError
        why = error.strerror if isinstance(error, OSError) else error
        raise EnvironmentProblem(f"environment {environment!r:.100} cannot be looked up: {why}.") from None
    if not there:
        raise EnvironmentProblem(
            f"environment {environment!r} does not exist; give current, managed or the path of a Python interpreter."
        )
    if not path.is_file() or not os.access(path, os.X_OK):
        raise EnvironmentProblem(
            f"environment {environment!r} is not an executable file; give the path of a Python interpreter."
        )
    ask = [str(path), "-I", "-c", "import sys; print('python', *sys.version_info[:2])"]
    why = "it does not answer as one does"
    answer: list[str] = []
    try:
        done = subprocess.run(
            ask, capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL, check=False
        )
        answer = done.stdout.split()
        if len(answer) > 3 and answer[-3] == "python":
            why = f"it prints {done.stdout.strip().splitlines()[0]!r:.30}, and the trainer's output is read"
    except OSError as error:
        why = f"it cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        why = f"it has not answered within {ANSWER_S:g} s"
    except UnicodeDecodeError:
        pass
    if len(answer) != 3 or answer[0] != "python":
        raise EnvironmentProblem(
            f"environment {environment!r} is not a Python interpreter: {why}; give the path of one."
        )
    if (int(answer[1]), int(answer[2])) < OLDEST_PYTHON:
        raise EnvironmentProblem(
            f"environment {environment!r} is Python {answer[1]}.{answer[2]}; the trainer needs 3.10 or newer."
        )
    return path


class _Managed:
    """One managed environment: its directory, its lock and how it is built."""

    def __init__(self, requirements: Path, content: str, cache_dir: Path) -> None:
        self._requirements = requirements.absolute()
        self._content = content
        self._version = _python_version(content)
        what = "\0".join((content, self._version, sysconfig.get_platform()))
        self._key = f"{requirements.stem}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        self._cache_dir = cache_dir
        self._directory = cache_dir / self._key
        self._log = cache_dir / f"{self._key}.log"

    def complete(self) -> Path | None:
        """Return the interpreter if the environment is complete."""
        python = self._directory / "bin" / "python"
        return python if os.access(python, os.X_OK) else None

    def python(self, progress: Progress, timeout_s: float) -> Path:
        """Return the interpreter; build the environment, or wait for the process that builds it."""
        if there := self.complete():
            return there
        python = self._directory / "bin" / "python"
        deadline = Deadline(timeout_s)
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            with self._lock(progress, deadline):
                if not os.access(python, os.X_OK):
                    self._build(progress, deadline)
        except OSError as error:
            raise EnvironmentProblem(
                f"The environment cannot be built in {self._cache_dir}: {error.strerror or error}.", self._log
            ) from None
        return python

    @contextlib.contextmanager
    def _lock(self, progress: Progress, deadline: Deadline) -> Iterator[None]:
        with (self._cache_dir / f"{self._key}.lock").open("w") as file:
            waiting = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if not waiting:
                    progress(f"waiting for another process that builds environment {self._requirements.stem}")
                    waiting = True
                if deadline.passed():
                    raise EnvironmentProblem(
                        f"Another process did not finish building environment {self._requirements.stem} within "
                        f"{deadline.limit_s:g} s; see the log, and measure again.",
                        self._log,
                    )
                time.sleep(POLL_S)
            yield  # closing the file releases the lock, and so does the end of this process

    def _build(self, progress: Progress, deadline: Deadline) -> None:
        # while this process holds the lock, an unfinished build of this key was left by a process that has ended
        for left in self._cache_dir.glob(f"{self._key}.building-*"):
            shutil.rmtree(left, ignore_errors=True)
        # was complete, but its base Python has been removed
        if self._directory.exists() or self._directory.is_symlink():
            shutil.rmtree(self._directory)
        building = Path(tempfile.mkdtemp(prefix=f"{self._key}.building-", dir=self._cache_dir))
        begin = time.monotonic()
        progress(f"building environment {self._requirements.stem} with Python {self._version}")
        try:
            with self._log.open("w") as log:
                uv = Uv(log, self._log, progress, deadline)
                uv.make_venv(building, self._version)
                uv.install(building, self._requirements, self._content)
            building.chmod(0o755)
            building.rename(self._directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        progress(f"environment {self._requirements.stem} is ready after {time.monotonic() - begin:.0f} s")


def _python_version(content: str) -> str:
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    line = re.search(r"^# python: (.+)$", content, re.MULTILINE)
    versions = line[1].split() if line else [this]
    return this if this in versions else versions[-1]
