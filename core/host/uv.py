"""Runs uv: makes an environment, and installs the packages of a list into it with the user's index settings."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .. import redaction
from . import package_indexes

Progress = Callable[[str], None]

POLL_S = 0.2
HEARTBEAT_S = 5.0
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


class Deadline:
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


class Uv:
    """Runs uv with the user's index settings; output goes to the log and, line by line, to ``progress``."""

    def __init__(self, log: object, log_path: Path, progress: Progress, deadline: Deadline) -> None:
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


def _why(output: str, content: str, name: str) -> str:
    """Return the message for a failed installation; it names the package if uv's output does."""
    if re.search(r"No space left on device", output):
        return f"Environment {name} cannot be built: the disk is full (no space left on device); free some space, or set state_dir."
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
