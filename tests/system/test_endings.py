"""However an operation ends, no process it started survives: looked up in the process table."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")
GONE_S = 30

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def ours(marker: str) -> list[psutil.Process]:
    """Return the live processes that carry this test's variable: the driver, Ray's, the hosts, the trainers."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        environ = process.info["environ"] or {}
        if environ.get("RAY_TMPDIR") == marker and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def trainers(marker: str) -> list[psutil.Process]:
    """Return those that train."""
    return [p for p in ours(marker) if "core/trainer" in command(p)]


def hosts(marker: str) -> list[psutil.Process]:
    """Return the Ray workers that hold trainers."""
    return [p for p in ours(marker) if "HostActor" in command(p)]


def command(process: psutil.Process) -> str:
    """Return a process's command line; empty once it has ended, which may happen while it is looked at."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one of these to psutil
        return ""


def user_seconds(process: psutil.Process) -> float:
    """Return the CPU time a process has used; 0 once it has ended."""
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
    process = subprocess.Popen(
        [ADO, "create", "operation", "-f", str(EXAMPLES / "operation.yaml"), "--with", f"space={space}"],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": marker},
        stdout=(tmp_path / "out").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # a shell that runs the tests in the background has them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(user_seconds(p) > 8 for p in trainers(marker)):
        time.sleep(0.5)
    assert trainers(marker), (tmp_path / "out").read_text()
    yield process, marker
    for left in ours(marker):
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_survives(operation: tuple[subprocess.Popen[bytes], str], how: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a killed driver: trainers and hosts are gone within 30 s."""
    process, marker = operation
    begin = time.monotonic()
    process.send_signal(how)
    while time.monotonic() - begin < GONE_S and (trainers(marker) or hosts(marker)):
        time.sleep(0.5)
    assert trainers(marker) == []
    assert hosts(marker) == []
