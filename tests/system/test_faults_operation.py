"""An operation that is started again after its driver was killed, and two operations at once: all workloads are measured once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ..processes import RAY_TOO_SLOW, limit_s, marked, run, started, wait_for

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]


def operation(tmp_path: Path, lengths: str = "[16, 24]", store: str = "config") -> dict[str, Any]:
    """Return the command of an operation over these lengths and two batch sizes, and how to run it: in a store of this test."""
    space = tmp_path / f"space-{lengths.strip('[]').replace(', ', '-')}.yaml"
    text = (EXAMPLES / "space.yaml").read_text()
    text = text.replace("[tiny-llama-5m, smollm2-135m]", "[tiny-llama-5m]").replace(
        "values: [64]", f"values: {lengths}"
    )
    space.write_text(text.replace("value: 20", "value: 3"))
    ray = Path(os.environ["RAY_TMPDIR"]).parent / f"o{time.monotonic_ns() % 10**6}"
    ray.mkdir()
    return {
        "command": [ADO, "create", "operation", "-f", str(EXAMPLES / "operation.yaml"), "--with", f"space={space}"],
        "cwd": tmp_path,
        "env": {**os.environ, "RAY_TMPDIR": str(ray), "XDG_CONFIG_HOME": str(tmp_path / store)},
    }


def rows(tmp_path: Path, suffix: str, columns: str, store: str = "config") -> list[tuple[Any, ...]]:
    """Return these columns of the store's table whose name ends so; empty while there is none."""
    for path in (tmp_path / store).rglob("*.db"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            named = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ?", (f"%{suffix}",)
            )
            for (name,) in named.fetchall():
                if found := database.execute(f"SELECT {columns} FROM {name}").fetchall():
                    return list(found)
    return []


def replayed(tmp_path: Path) -> list[bool]:
    """Return of each row of the newest operation whether ado has replayed it.

    A process of its own reads them: ado keeps the path of its store from the time when it is imported.
    """
    code = (
        "import json; from ado_actuators.sfttrainer.core.reporting.read import rows; "
        "print(json.dumps([row.replayed for row in rows('latest')]))"
    )
    environ = operation(tmp_path)["env"]
    done = run([sys.executable, "-c", code], cwd=tmp_path, env=environ, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_a_killed_operation_is_started_again(tmp_path: Path, record_property: Any) -> None:
    """Killed after its first result: the second run measures the other three and repeats none, unless it is asked to measure anew."""

    def results() -> list[tuple[Any, ...]]:
        return rows(tmp_path, "_measurement_results", "uid, entity_id")

    with started(**operation(tmp_path), log=tmp_path / "first", ready=results, timeout_s=240) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        kept = {uid for uid, _ in results()}
        assert 1 <= len(kept) < 4
        begin = time.monotonic()
        # everything has to end by itself: driver, Ray's processes, hosts and trainers
        second = run(**operation(tmp_path), timeout_s=300, must_end=["/"])
        assert second.returncode == 0, second.stdout + second.stderr
        assert wait_for(lambda: not marked("XDG_CONFIG_HOME", str(tmp_path / "config")), 30)
    after = results()
    assert kept <= {uid for uid, _ in after}
    assert sorted(Counter(entity for _, entity in after).values()) == [1, 1, 1, 1]
    for name, value in (
        ("fault", "driver killed, operation started again"), ("outcome", "measured ones kept, missing ones measured"),
        ("seconds", round(time.monotonic() - begin, 1)), ("left", "nothing"),
    ):  # fmt: skip
        record_property(name, value)
    assert Counter(replayed(tmp_path)) == {True: len(kept), False: 4 - len(kept)}
    # as docs/report.md says
    again = operation(tmp_path, "[16]")
    again["command"] += ["--set", "operation.parameters.singleMeasurement=false"]
    third = run(**again, timeout_s=300)
    assert third.returncode == 0, third.stdout + third.stderr
    assert sorted(Counter(entity for _, entity in results()).values()) == [1, 1, 2, 2]
    assert replayed(tmp_path) == [False, False]


@pytest.mark.parametrize("stores", [("one", "one"), ("one", "other")], ids=["one-store", "two-stores"])
def test_two_operations_at_once(tmp_path: Path, stores: tuple[str, str]) -> None:
    """Started together on one machine, each measures its own two workloads, once each."""
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        statuses, written = together(directory, stores)
        if RAY_TOO_SLOW not in written:
            break
    assert statuses == [0, 0], written
    found = [
        entity for store in set(stores) for (entity,) in rows(directory, "_measurement_results", "entity_id", store)
    ]
    assert len(found) == len(set(found)) == 4


def together(directory: Path, stores: tuple[str, str]) -> tuple[list[int], str]:
    """Run two operations at once; return their exit statuses and what they printed."""
    directory.mkdir()
    for store in set(stores):
        # ado's first command makes its contexts, its tables and its default store; two first commands at once fail
        environ = {**os.environ, "XDG_CONFIG_HOME": str(directory / store)}
        create = [ADO, "create", "space", "-f", str(EXAMPLES / "space.yaml")]
        done = run(create, cwd=directory, env=environ, timeout_s=120)
        assert done.returncode == 0, done.stdout + done.stderr
    logs = (directory / "log-0", directory / "log-1")
    with (
        started(**operation(directory, "[16]", stores[0]), log=logs[0]) as one,
        started(**operation(directory, "[24]", stores[1]), log=logs[1]) as other,
    ):
        statuses = [process.wait(timeout=limit_s(400)) for process in (one, other)]
    return statuses, "\n".join(log.read_text() for log in logs)
