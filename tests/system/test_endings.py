"""However an operation ends, its trainers and hosts end as well: looked up in the process table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ..processes import marked, started, wait_for

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")
GONE_S = 30
TRAINER, HOST = "core/trainer", "HostActor"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def processes(marker: str, *texts: str) -> list[psutil.Process]:
    """Return the live processes of an operation that have one of these texts in their command line."""
    return [p for p in marked("RAY_TMPDIR", marker) if any(text in command(p) for text in texts)]


def command(process: psutil.Process) -> str:
    """Return a process's command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one of these to psutil
        return ""


def user_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process; 0 once it has ended."""
    try:
        return process.cpu_times().user
    except psutil.NoSuchProcess:
        return 0.0


@pytest.fixture
def operation(tmp_path: Path, own_home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start an operation that would train for ten minutes, and wait until it does."""
    marker = str(own_home / f"e{time.monotonic_ns() % 10**6}")
    Path(marker).mkdir()
    space = tmp_path / "space.yaml"
    space.write_text(
        (EXAMPLES / "space.yaml")
        .read_text()
        .replace("[tiny-llama-5m, smollm2-135m]", "[tiny-llama-5m]")
        .replace(
            "identifier: stop_after_seconds\n        value: 20", "identifier: stop_after_seconds\n        value: 600"
        )
        .replace(
            "entitySpace:", "      - property:\n          identifier: max_steps\n        value: 100000\nentitySpace:"
        )
    )
    create = [ADO, "create", "operation", "-f", str(EXAMPLES / "operation.yaml"), "--with", f"space={space}"]
    environ = {**os.environ, "RAY_TMPDIR": marker}

    def trains() -> bool:
        return any(user_seconds(p) > 8 for p in processes(marker, TRAINER))

    with started(create, cwd=tmp_path, env=environ, log=tmp_path / "out", ready=trains, timeout_s=120) as process:
        yield process, marker


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_survives(operation: tuple[subprocess.Popen[bytes], str], how: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a killed driver: trainers and hosts end within 30 s, on a quiet machine."""
    process, marker = operation
    process.send_signal(how)
    assert wait_for(lambda: not processes(marker, TRAINER, HOST), GONE_S)
