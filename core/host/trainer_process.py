"""One trainer process as its host sees it: start it, send it jobs, receive its messages, end it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO

import psutil

from .. import failures, redaction
from ..protocol.messages import Job, Message
from . import descendants

TRAINER = Path(__file__).absolute().parent.parent / "trainer"
# Runs on after the host has ended. When its standard input ends, it kills the trainer's process group and all processes with the
# trainer's mark, and removes the run directory that it received last, unless the last line was "done". It has no parent, because Ray
# kills the children of a worker that ends.
GUARD = """
exec 3<&0
{
  while IFS= read -r line <&3; do last=$line; done
  [ "$last" = done ] && exit
  kill -9 -"$0"
  for process in /proc/[0-9]*; do
    grep -qsF -- "$1" "$process/environ" && kill -9 "${process#/proc/}"
  done
  sleep 1
  case "$last" in /*) rm -rf -- "$last" ;; esac
} >/dev/null 2>&1 &
"""
LOG_HEAD_BYTES = 8 * 2**20
LOG_TAIL_BYTES = 2**18
KILL_TIMEOUT_S = 30.0
LONGEST_MESSAGE_BYTES = 64 * 2**20
# seconds between checks whether the trainer has ended; needed when a child keeps its pipes open
ALIVE_CHECK_S = 0.5
# seconds between looks at the processes below a trainer, which take milliseconds
NOTE_S = 5.0
# with more threads than cores, spinning threads slow a step down several times
QUIET_THREADS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# glibc adapts these thresholds to the history of the process: a step may or may not return memory and fault it in again (25,000 pages
# with 5 million parameters, 4 % of a step). Fixed values make all trainers behave alike; the second is the maximum that glibc accepts.
STEADY_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
# set by a surrounding launcher or Ray worker; not valid for the trainer
FOREIGN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "PYTHONHOME",
)


class TrainerProcess:
    """A running trainer; its messages arrive in a queue as ``(local_rank, message)``, and ``(local_rank, None)`` when it ends."""

    def __init__(
        self,
        *,
        python: Path,
        local_rank: int,
        threads: int,
        mask: str,
        log: Path,
        messages: queue.Queue[tuple[int, Message | None]],
        own_environment: bool,
    ) -> None:
        self.local_rank = local_rank
        self.log = log
        self.ready = False
        self._messages = messages
        self._oom_kills = oom_kills()
        self._garbage = ""
        self._mark = descendants.new_mark()
        # what was below it in the tree of processes, for the case that it is killed from outside
        self._below: list[psutil.Process] = []
        try:
            self._process = subprocess.Popen(
                [str(python), str(TRAINER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**trainer_environ(threads, mask, own_environment), descendants.VARIABLE: self._mark},
                cwd=log.parent,
                start_new_session=True,
            )
        except BlockingIOError as error:
            raise failures.Broken(failures.PROCESS_LIMIT_MESSAGE) from error
        except OSError as error:
            raise failures.Broken(f"The trainer cannot be started with {python}: {error.strerror}.") from error
        # psutil notices if another process has its number later
        self._tree = psutil.Process(self._process.pid)
        self._writer = LogWriter(log)
        try:
            self._guard = _guard(self._process.pid, self._mark)
            self._start_threads()
        except (OSError, RuntimeError) as error:
            self._end_all()
            self._process.wait()
            cause = failures.classify_exception(type(error).__name__, str(error), "starting the trainer")
            raise failures.raised(cause) from error

    def _start_threads(self) -> None:
        self._threads = [
            threading.Thread(target=self._listen, name=f"trainer-{self.local_rank}-messages", daemon=True),
            threading.Thread(
                target=self._writer.pump,
                args=(self._process.stderr,),
                name=f"trainer-{self.local_rank}-log",
                daemon=True,
            ),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, job: Job) -> None:
        """Write a job; if the trainer has ended, its message queue ends, too."""
        assert self._process.stdin is not None
        # do not count processes that the kernel killed before this job
        self._oom_kills = oom_kills()
        self._send_to_guard(job.run_dir)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(job.to_line().encode() + b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End the trainer and everything it has started, and wait for it."""
        self._end_all()
        # a process in an uninterruptible driver call cannot be waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILL_TIMEOUT_S)
            # its process id may be reused
            self._send_to_guard("done")
        for thread in self._threads:
            thread.join(timeout=2)
        read_by = zip((self._process.stdout, self._process.stderr), self._threads, strict=True)
        # closing a pipe that a thread still reads would block
        unread = [pipe for pipe, thread in read_by if not thread.is_alive()]
        for pipe in (self._guard, self._process.stdin, *unread):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def died(self) -> failures.Failure:
        """Return why the process ended unexpectedly."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return failures.Broken("The trainer closed its standard output but is still running.")
        # a child that inherited the pipe would keep the log open
        self._end_all()
        if self._garbage:
            return failures.Broken(
                f"The trainer wrote a line that is not a JSON message with an event: {self._garbage!r}."
            )
        for thread in self._threads:
            thread.join(timeout=2)
        return failures.from_exit(code, self._writer.tail(), oom_killed=oom_kills() > self._oom_kills)

    def _send_to_guard(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._guard.write(line.encode() + b"\n" if "\n" not in line else b"\n")

    def _end_all(self) -> None:
        below = {*self._below, *descendants.below(self._tree)}
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        descendants.end(self._mark)
        descendants.kill(below)

    def _listen(self) -> None:
        for line in self._lines():
            try:
                message = json.loads(line)
                message["event"]
            except (ValueError, TypeError, KeyError):
                self._garbage = redaction.hide(line[:LOG_TAIL_BYTES].decode(errors="replace"))[:60]
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                break
            self._messages.put((self.local_rank, message))
        self._messages.put((self.local_rank, None))

    def _lines(self) -> Iterator[bytes]:
        """Return the lines of standard output until it is closed or the trainer has ended, also if a child keeps it open."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        pending = bytearray()
        noted_s = 0.0
        while True:
            if time.monotonic() - noted_s > NOTE_S:
                self._below, noted_s = descendants.below(self._tree), time.monotonic()
            # checked before reading, so that all output before the end is read
            ended = not self.alive
            if ready.poll(0 if ended else ALIVE_CHECK_S * 1000):
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    break
                pending += chunk
                if b"\n" in chunk:
                    *complete, pending = pending.split(b"\n")
                    yield from map(bytes, complete)
                if len(pending) > LONGEST_MESSAGE_BYTES:
                    break
            elif ended:
                break
        if pending:
            yield bytes(pending)


def _guard(pid: int, mark: str) -> IO[bytes]:
    """Start the guard of a trainer, and return the pipe to it.

    Raises:
        BlockingIOError: this user may not have more processes.
    """
    started = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, str(pid), mark],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )
    if started.wait():
        raise BlockingIOError("the shell cannot fork")
    assert started.stdin is not None
    return started.stdin


class LogWriter:
    """Writes the beginning and the end of a trainer's output to a file, without secrets; continues when the disk is full.

    The first ``LOG_HEAD_BYTES`` are written immediately. Of the rest only the end is kept, and secrets are removed from it only when it
    is needed, because a trainer may write gigabytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._filter = redaction.Filter()
        self._head_tail = b""
        self._written = 0
        # once the head is full: its length, and its last bytes
        self._more_bytes = 0
        self._more = b""

    def pump(self, stream: IO[bytes]) -> None:
        """Copy ``stream`` until it ends."""
        file: FileIO | None = None
        with contextlib.suppress(OSError):
            # a new file with mode 0600; an existing file or link, which may be another user's, is an error
            file = open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)  # noqa: PTH123, SIM115
        with contextlib.suppress(ValueError, OSError):
            while chunk := os.read(stream.fileno(), 65536):
                if self._more_bytes:
                    self._keep_end(chunk)
                else:
                    self._write_head(self._filter.feed(chunk), file)
        if not self._more_bytes:
            self._write_head(self._filter.end(), file)
        if file is not None:
            with contextlib.suppress(OSError):
                if self._more_bytes:
                    kept = self._end()
                    left_out = max(0, self._more_bytes - len(kept)) if self._more_bytes > len(self._more) else 0
                    file.write(b"\n... %d bytes left out ...\n" % left_out + kept)
                file.close()

    def tail(self) -> str:
        """Return the last output without secrets, at most ``LOG_TAIL_BYTES``."""
        return (self._head_tail + self._end())[-LOG_TAIL_BYTES:].decode(errors="replace")

    def _write_head(self, output: bytes, file: FileIO | None) -> None:
        if self._written + len(output) > LOG_HEAD_BYTES:
            self._keep_end(output + self._filter.held())
            return
        self._written += len(output)
        self._head_tail = (self._head_tail + output)[-LOG_TAIL_BYTES:]
        if file is not None:
            with contextlib.suppress(OSError):
                file.write(output)

    def _keep_end(self, output: bytes) -> None:
        self._more_bytes += len(output)
        # one more line, so that the text shown does not begin within a secret
        self._more = (self._more + output)[-LOG_TAIL_BYTES - redaction.LONGEST_LINE_BYTES :]

    def _end(self) -> bytes:
        cut = self._more_bytes > len(self._more)
        return redaction.hide_bytes(self._more, cut=cut)[-LOG_TAIL_BYTES:]


def trainer_environ(threads: int, mask: str, own_environment: bool) -> dict[str, str]:
    """Return the environment variables of a trainer.

    Args:
        threads: CPU threads of its tensor operations.
        mask: CUDA_VISIBLE_DEVICES.
        own_environment: whether the trainer runs in this process's environment and keeps PYTHONPATH; others must not see it.
    """
    environ = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    if not own_environment:
        for key in ("PYTHONPATH", "VIRTUAL_ENV"):
            environ.pop(key, None)
    return {
        **environ,
        **QUIET_THREADS,
        **STEADY_MEMORY,
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": mask,
        # the order in which NVML and Ray count
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONUNBUFFERED": "1",
    }


def oom_kills() -> int:
    """Return how many processes Linux has killed on this node because memory ran out; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
