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
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import redaction
from . import package_indexes

Progress = Callable[[str], None]

POLL_S = 0.2
# limit in seconds for waiting for another builder and building
BUILD_TIMEOUT_S = 3600.0
HEARTBEAT_S = 5.0
OLDEST_PYTHON = (3, 10)
# requests SIGKILL from Linux for the moment when the parent ends, and executes the command. No preexec_fn: it can deadlock in a process
# with threads
DIES_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EnvironmentProblem(Exception):
    """No Python interpreter can run the trainer: has a message of at most 200 characters, and the path of the build log if there is one."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(_cut(_redact(message), 200))
        self.log = log

    def __reduce__(self) -> tuple[type, tuple[str, Path | None]]:
        return type(self), (str(self), self.log)


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
    try:
        answer = subprocess.run(
            ask, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        answer = []
    if len(answer) != 3 or answer[0] != "python":
        raise EnvironmentProblem(f"environment {environment!r} is not a Python interpreter; give the path of one.")
    if (int(answer[1]), int(answer[2])) < OLDEST_PYTHON:
        raise EnvironmentProblem(
            f"environment {environment!r} is Python {answer[1]}.{answer[2]}; the trainer needs 3.10 or newer."
        )
    return path


class _Deadline:
    """When waiting and building must have ended.

    Attributes:
        limit_s: the time limit, counted from now.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._end_s


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
        deadline = _Deadline(timeout_s)
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
    def _lock(self, progress: Progress, deadline: _Deadline) -> Iterator[None]:
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

    def _build(self, progress: Progress, deadline: _Deadline) -> None:
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
                uv = _Uv(log, self._log, progress, deadline)
                uv.make_venv(building, self._version)
                uv.install(building, self._requirements, self._content)
            building.chmod(0o755)
            building.rename(self._directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        progress(f"environment {self._requirements.stem} is ready after {time.monotonic() - begin:.0f} s")


class _Uv:
    """Runs uv with the user's index settings; output goes to the log and, line by line, to ``progress``."""

    def __init__(self, log: object, log_path: Path, progress: Progress, deadline: _Deadline) -> None:
        self._log = log
        self._log_path = log_path
        self._progress = progress
        self._deadline = deadline
        self._uv = find_uv()
        self._variables = package_indexes.variables()

    def make_venv(self, directory: Path, version: str) -> None:
        """Make an empty environment at ``directory`` that can be renamed afterwards."""
        this = f"{sys.version_info[0]}.{sys.version_info[1]}"
        python = sys.executable if version == this and sys.executable else version
        output, code = self._run(
            "venv", "--quiet", "--allow-existing", "--relocatable", "--no-project", "--python", python, str(directory)
        )
        if code:
            raise EnvironmentProblem(
                f"uv cannot make an environment with Python {version}: {_last_line(output)}", self._log_path
            )

    def install(self, directory: Path, requirements: Path, content: str) -> None:
        """Install exactly the packages of the list."""
        base = ["pip", "install", "--python", str(directory / "bin" / "python"), "--no-deps", "--compile-bytecode"]
        base += ["--requirement", str(requirements)]
        base += package_indexes.options(self._variables)
        output, code = self._run(*base)
        index = re.search(r"^# index: (\S+)", content, re.MULTILINE)
        # used only when needed: an unreachable index would make lists fail that are complete without it
        if code and index and _not_in_index(output) and "--no-index" not in base:
            # a command-line option would replace the indexes in the user's variables
            others = self._variables.get("UV_INDEX", "")
            self._variables |= {"UV_INDEX": f"{others} {index[1]}".strip(), "UV_INDEX_STRATEGY": "unsafe-best-match"}
            output, code = self._run(*base)
        if code:
            raise EnvironmentProblem(_why(output, content, requirements.stem), self._log_path)

    def _run(self, *arguments: str) -> tuple[str, int]:
        process = subprocess.Popen(
            [*_dies_with_this_process(), self._uv, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._variables,
            cwd=self._log_path.parent,  # uv reads only the user's settings there, and no project's
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            return self._follow(lines), process.wait()
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _follow(self, lines: queue.Queue[str | None]) -> str:
        output: list[str] = []
        last, begin, reported = "installing", time.monotonic(), time.monotonic()
        while True:
            try:
                line = lines.get(timeout=POLL_S)
            except queue.Empty:
                now = time.monotonic()
                if self._deadline.passed():
                    raise EnvironmentProblem(
                        f"Building the environment took longer than {self._deadline.limit_s:g} s; see the log, and measure again.",
                        self._log_path,
                    ) from None
                if now - reported >= HEARTBEAT_S:
                    reported = now
                    # after installing, uv prints nothing until all byte code is compiled
                    doing = "compiling byte code" if last.startswith("Installed") else last
                    self._progress(f"{doing} ({now - begin:.0f} s)")
                continue
            if line is None:
                return "\n".join(output)
            line = _redact(line.rstrip())
            output.append(line)
            print(line, file=self._log, flush=True)  # type: ignore[call-overload]
            if line.strip() and not line.startswith(("warning:", " ", "Using Python")):
                last = line.strip()
                self._progress(last)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _dies_with_this_process() -> list[str]:
    """Return a command prefix that ends the command together with this process, before another process builds."""
    if sys.platform != "linux" or not sys.executable:
        return []
    return [sys.executable, "-I", "-S", "-c", DIES_WITH_PARENT, str(os.getpid())]


def find_uv() -> str:
    """Return the path of uv, which comes with ado-core.

    Raises:
        EnvironmentProblem: uv is not installed.
    """
    try:
        from uv import find_uv_bin  # type: ignore[import-not-found,unused-ignore]

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if not found:
        raise EnvironmentProblem(
            "A managed environment needs uv, which is not installed: pip install uv, or name a Python as environment."
        )
    return found


def _python_version(content: str) -> str:
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    line = re.search(r"^# python: (.+)$", content, re.MULTILINE)
    versions = line[1].split() if line else [this]
    return this if this in versions else versions[-1]


def _why(output: str, content: str, name: str) -> str:
    """Return the message for a failed installation; it names the package if uv's output does."""
    if re.search(r"No space left on device", output):
        return f"Environment {name} cannot be built: the disk of the environments is full (no space left on device)."
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)(==[^\s;\\]+)?", content, re.MULTILINE)
    reason = re.sub(r"[-_.]+", "-", output[max(output.rfind("error:"), output.rfind("×"), 0) :].lower())
    for package, version in sorted(pins, key=lambda pin: _position(pin[0], reason)):
        if _position(package, reason) < len(reason):
            cause = "is not in the package index" if _not_in_index(output) else "could not be fetched or installed"
            remedy = "check UV_INDEX, UV_FIND_LINKS and UV_OFFLINE"
            if re.search(r"hash mismatch|hashes.*do not match", reason):
                cause = "has a hash that the list does not contain"
                remedy = "check where UV_INDEX and UV_FIND_LINKS point"
            return f"Environment {name} cannot be built: package {package}{version} {cause}; {remedy}."
    return f"Environment {name} cannot be built: {_last_line(output)}"


def _position(package: str, reason: str) -> int:
    normal = re.sub(r"[-_.]+", "-", package.lower())
    found = re.search(rf"(?<![\w-]){re.escape(normal)}(?![\w])(?!-[a-z])", reason)
    return found.start() if found else len(reason)


def _not_in_index(output: str) -> bool:
    return bool(
        re.search(
            r"no version of|not found in|no wheels|not available|needs to be downloaded", " ".join(output.split())
        )
    )


def _last_line(output: str) -> str:
    lines = [line.strip(" ×│├╰─▶") for line in output.splitlines() if line.strip(" ×│├╰─▶")]
    return lines[-1] if lines else "uv printed no reason."


def _redact(text: str) -> str:
    """Hide secrets of the environment, and user information and query strings of URLs."""
    text = redaction.hide_logins(redaction.hide(text))
    return re.sub(r"(\w+://[^\s?`'\"]+)\?[^\s`'\"]+", r"\1?***", text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
