"""All processes that a trainer has started end with it, regardless of their process group, session and parent."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host import descendants, trainer_process

# a trainer that leaves a daemon which holds its pipes, reports its number, and does what the test asks
TRAINER = """
import json, os, signal, sys, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writer, str(os.getpid()).encode())
        time.sleep(300)
    os._exit(0)
os.wait()
print(json.dumps({"event": "progress", "text": os.read(reader, 99).decode()}), flush=True)
sys.stdin.readline()
sys.stderr.write("the last words")
sys.stderr.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


# a trainer that starts a program without its variables and in a session of its own
WITHOUT_VARIABLES = """
import json, os, signal, subprocess, sys
child = subprocess.Popen(["env", "-i", "setsid", "sleep", "300"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(json.dumps({"event": "progress", "text": str(child.pid)}), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[trainer_process.TrainerProcess]]:
    """Trainers that run ``TRAINER``; ended after the test."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(trainer_process, "TRAINER", script)
    monkeypatch.setattr(trainer_process, "ALIVE_CHECK_S", 0.05)
    started: list[trainer_process.TrainerProcess] = []
    yield started
    for one in started:
        one.kill()


def start(log: Path, messages: queue.Queue[object]) -> trainer_process.TrainerProcess:
    """Start a trainer."""
    return trainer_process.TrainerProcess(
        python=Path(sys.executable),
        local_rank=0,
        threads=1,
        mask="",
        log=log,
        messages=messages,  # type: ignore[arg-type]
        own_environment=True,
    )


def gone(pid: int, limit_s: float = 20.0) -> bool:
    """Whether a process ends within ``limit_s``."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_death_is_noticed_though_a_daemon_holds_the_pipes(
    tmp_path: Path, trainers: list[trainer_process.TrainerProcess]
) -> None:
    """A trainer counts as ended when its process ends although a daemon keeps its pipes open; the daemon ends and the log is complete."""
    # the first one makes what stays for good
    for index in range(3):
        messages: queue.Queue[tuple[int, dict[str, str] | None]] = queue.Queue()
        log = tmp_path / f"log{index}"
        trainer = start(log, messages)  # type: ignore[arg-type]
        trainers.append(trainer)
        _, first = messages.get(timeout=60)
        assert first is not None
        trainer._process.stdin.write(b"\n")  # type: ignore[union-attr]
        trainer._process.stdin.flush()  # type: ignore[union-attr]
        assert messages.get(timeout=60) == (0, None)
        died = trainer.died()
        assert "SIGKILL" in str(died)
        trainer.kill()
        assert gone(int(first["text"]))
        assert log.read_text() == "the last words"
        used = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
        if index == 1:
            before = used
    assert used == before


@pytest.mark.parametrize("killed", [False, True], ids=["ended by its host", "killed"])
def test_a_program_without_the_variables_ends(
    killed: bool, tmp_path: Path, trainers: list[trainer_process.TrainerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found below the trainer; of a trainer that was killed its host knows what was there before."""
    monkeypatch.setattr(trainer_process, "NOTE_S", 0.05)
    trainer_process.TRAINER.write_text(WITHOUT_VARIABLES)
    messages: queue.Queue[tuple[int, dict[str, str] | None]] = queue.Queue()
    trainer = start(tmp_path / "log", messages)  # type: ignore[arg-type]
    trainers.append(trainer)
    _, first = messages.get(timeout=60)
    assert first is not None
    child = int(first["text"])
    if killed:
        while child not in [one.pid for one in trainer._below]:
            time.sleep(0.01)
        trainer._process.stdin.write(b"\n")  # type: ignore[union-attr]
        trainer._process.stdin.flush()  # type: ignore[union-attr]
        assert messages.get(timeout=60) == (0, None)
        assert "SIGKILL" in str(trainer.died())
    else:
        trainer.kill()
    assert gone(child)


def test_the_guard_ends_what_left_the_group(tmp_path: Path, trainers: list[trainer_process.TrainerProcess]) -> None:
    """When a host is killed, its guard also ends a daemon that has a session of its own."""
    messages: queue.Queue[tuple[int, dict[str, str] | None]] = queue.Queue()
    trainer = start(tmp_path / "log", messages)  # type: ignore[arg-type]
    trainers.append(trainer)
    _, first = messages.get(timeout=60)
    assert first is not None
    trainer._guard.close()
    assert gone(int(first["text"]))
    assert gone(trainer.pid)


def test_a_later_host_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    """If host and guard are killed, the next host of the node ends the trainer, although it is stopped, and removes its files."""
    runs = tmp_path / "runs"
    script = f"""
import os, subprocess, sys
sys.path[:0] = {sys.path!r}
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host import descendants
environ = {{**os.environ, descendants.VARIABLE: descendants.new_mark()}}
child = subprocess.Popen(["sleep", "300"], env=environ, start_new_session=True)
os.makedirs({str(runs)!r} + "/one@" + descendants.this_host())
print(child.pid, flush=True)
sys.stdin.readline()
"""
    killed = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    pid = int(killed.stdout.readline())
    try:
        os.kill(pid, signal.SIGSTOP)
        mine = runs / f"two@{descendants.this_host()}"
        mine.mkdir()
        descendants.end_orphans()
        descendants.remove_leftover_runs(runs)
        assert Path(f"/proc/{pid}").exists()
        assert len(list(runs.iterdir())) == 2
        killed.kill()
        killed.wait()
        descendants.end_orphans()
        descendants.remove_leftover_runs(runs)
        assert gone(pid)
        assert list(runs.iterdir()) == [mine]
    finally:
        killed.kill()
        descendants.end_orphans()


def test_a_stopped_trainer_ends_although_host_and_guard_are_killed() -> None:
    """The kernel continues it, and it notices that its standard input has ended."""
    trainer = (
        f"import os, sys, time; sys.path[:0] = {sys.path!r}; import ado_actuators.sfttrainer.core.trainer.serve as serve; "
        "serve._continue_with_host_end(); serve._follow(serve._take_stdin()); print(os.getpid(), flush=True); time.sleep(300)"
    )
    host = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {trainer!r}], stdin=subprocess.PIPE, "
    )
    host += "start_new_session=True); time.sleep(300)"
    killed = subprocess.Popen([sys.executable, "-c", host], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    pid = int(killed.stdout.readline())
    try:
        os.kill(pid, signal.SIGSTOP)
        killed.kill()
        killed.wait()
        assert gone(pid)
    finally:
        killed.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_process_limit_is_one_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer could still be started, but not its guard: it ends at once."""
    marks: list[str] = []

    def fail(pid: int, mark: str) -> None:
        marks.append(mark)
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(trainer_process, "_guard", fail)
    with pytest.raises(failures.Broken, match="No more processes or threads may be started here"):
        start(tmp_path / "log", queue.Queue())
    assert marks[0] not in [mark for _, mark in descendants._marked()]


@pytest.mark.parametrize(
    ("host_name", "alive"),
    [("elsewhere:1:5", True), ("", True), (f"{descendants._node()}:4194304:5", False), (descendants.this_host(), True)],
    # the names of nodes and processes differ from one pytest-xdist worker to another
    ids=["elsewhere", "unnamed", "ended", "this"],
)
def test_only_what_can_be_seen_counts_as_ended(host_name: str, alive: bool) -> None:
    """A process of another node or container is never considered ended."""
    assert descendants.is_alive(host_name) is alive
