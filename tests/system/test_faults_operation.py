"""An operation whose driver is killed and that is started again, and two operations at once: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "sfttrainer" / "examples"
ADO = str(Path(sys.executable).parent / "ado")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def start(tmp_path: Path, lengths: str = "[16, 24]", store: str = "config") -> subprocess.Popen[bytes]:
    """Start an operation over four small workloads in a store of this test."""
    space = tmp_path / f"space-{lengths.strip('[]').replace(', ', '-')}.yaml"
    text = (EXAMPLES / "space.yaml").read_text()
    text = text.replace("[tiny-llama-5m, smollm2-135m]", "[tiny-llama-5m]").replace(
        "values: [64]", f"values: {lengths}"
    )
    space.write_text(text.replace("value: 20", "value: 3"))
    ray = Path(os.environ["RAY_TMPDIR"]).parent / f"o{time.monotonic_ns() % 10**6}"
    ray.mkdir()
    return subprocess.Popen(
        [ADO, "create", "operation", "-f", str(EXAMPLES / "operation.yaml"), "--with", f"space={space}"],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": str(ray), "XDG_CONFIG_HOME": str(tmp_path / store)},
        stdout=(tmp_path / "out").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


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


def of_store(tmp_path: Path) -> list[str]:
    """Return the commands of live processes of operations with the first store: drivers, Ray's, hosts, trainers."""
    found = []
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        store = (process.info["environ"] or {}).get("XDG_CONFIG_HOME")
        if store == str(tmp_path / "config") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or []))
    return found


def test_a_killed_operation_is_started_again(tmp_path: Path, record_property: Any) -> None:
    """Killed after its first result: the second run measures the other three and repeats none."""
    first = start(tmp_path)
    deadline = time.monotonic() + 240
    while not rows(tmp_path, "_measurement_results", "entity_id") and time.monotonic() < deadline:
        assert first.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {uid for (uid,) in rows(tmp_path, "_measurement_results", "uid")}
    assert 1 <= len(kept) < 4
    begin = time.monotonic()
    second = start(tmp_path)
    assert second.wait(timeout=300) == 0, (tmp_path / "out").read_text()
    after = rows(tmp_path, "_measurement_results", "uid, entity_id")
    assert kept <= {uid for uid, _ in after}
    assert sorted(Counter(entity for _, entity in after).values()) == [1, 1, 1, 1]
    ended = time.monotonic()
    while (left := of_store(tmp_path)) and time.monotonic() < ended + 30:
        time.sleep(0.5)
    assert left == []
    for name, value in (
        ("fault", "driver killed, operation started again"), ("outcome", "measured ones kept, missing ones measured"),
        ("seconds", round(time.monotonic() - begin, 1)), ("left", "nothing"),
    ):  # fmt: skip
        record_property(name, value)


@pytest.mark.parametrize("stores", [("one", "one"), ("one", "other")], ids=["one-store", "two-stores"])
def test_two_operations_at_once(tmp_path: Path, stores: tuple[str, str]) -> None:
    """Started together on one machine, each measures its own two workloads, once each."""
    for store in set(stores):
        # ado's very first commands make its contexts, its tables and its default store, and two of them at once trip over each other
        environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / store)}
        first = [ADO, "create", "space", "-f", str(EXAMPLES / "space.yaml")]
        subprocess.run(first, cwd=tmp_path, env=environ, capture_output=True, check=True, timeout=120)
    lengths = ("[16]", "[24]")
    both = [start(tmp_path, length, store) for length, store in zip(lengths, stores, strict=True)]
    assert [one.wait(timeout=400) for one in both] == [0, 0], (tmp_path / "out").read_text()
    found = [
        entity for store in set(stores) for (entity,) in rows(tmp_path, "_measurement_results", "entity_id", store)
    ]
    assert len(found) == len(set(found)) == 4
