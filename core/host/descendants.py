"""Ends all processes that a trainer has started, in any process group or session, and removes run directories of ended hosts.

Each trainer carries a mark in its environment variables, which its children inherit. A mark names the host process that started the
trainer, so that a later host of the same node can also end the processes that a killed host has left. What a trainer started without its
variables is found below it in the tree of processes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

VARIABLE = "ADO_ACTUATORS_TRAINER"
# several rounds, because a process may start others while they are listed
ROUNDS = 50
# run directories older than this were left by killed hosts
LEFTOVER_S = 7 * 86400.0
_numbers = itertools.count()


def new_mark() -> str:
    """Return a value of ``VARIABLE`` for a new trainer: node, process and start time of its host, and a number."""
    return f"{this_host()}:{next(_numbers)}"


def this_host() -> str:
    """Return an identifier of this process among all processes of all nodes: node, process id and start time."""
    return f"{_node()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(host: str) -> bool:
    """Return whether the process identified by ``this_host`` runs; True for those of other nodes and containers, which it cannot see."""
    node, _, rest = host.partition(":")
    pid, _, started = rest.partition(":")
    if node != _node() or not pid.isdecimal():
        return True
    try:
        return _started(int(pid)) == started
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return False
    except (OSError, psutil.Error):
        return True


def _node() -> str:
    """Return the host name, and on Linux the namespace of process ids, which containers with the host's name do not share."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def _started(pid: int) -> str:
    """Return when a process started: on Linux in clock ticks after the boot, which setting the clock does not change."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return str(psutil.Process(pid).create_time())


def below(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes below a trainer, which adopts those whose parents have ended; none once it has ended itself."""
    try:
        return process.children(recursive=True)
    except (psutil.Error, OSError):
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes that still run; psutil does not confuse them with later ones of the same number."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def end(mark: str) -> None:
    """Kill all processes that carry ``mark``, repeatedly until none is left."""
    _end(lambda found: found == mark)


def end_orphans() -> None:
    """Kill the processes whose host ended on this node without ending them."""
    alive: dict[str, bool] = {}

    def orphaned(mark: str) -> bool:
        host = mark.rpartition(":")[0]
        if host not in alive:
            alive[host] = is_alive(host)
        return not alive[host]

    _end(orphaned)


def _end(wanted: Callable[[str], bool]) -> None:
    for _ in range(ROUNDS):
        found = [process for process, mark in _marked() if wanted(mark)]
        if not found:
            return
        kill(found)
        time.sleep(0.01)


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    """Return the processes with a mark and their marks; those of other users and those that have ended are skipped."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(VARIABLE)
            if mark and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process, mark


def remove_leftover_runs(runs: Path) -> None:
    """Remove run directories of ended hosts of this node; those of hosts that are invisible here only after ``LEFTOVER_S``."""
    with contextlib.suppress(OSError):
        for left in runs.iterdir():
            _, _, host = left.name.partition("@")
            if not is_alive(host) or left.stat().st_mtime < time.time() - LEFTOVER_S:
                shutil.rmtree(left, ignore_errors=True)
