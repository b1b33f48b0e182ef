"""A temporary plugin whose stack misbehaves as a job's ``dataset_text_field`` says, and hosts of that plugin.

The plugin has the shape of the real ones; its core is a link to the real core.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

CORE = Path(__file__).parents[3] / "core"
STACK = Path(__file__).with_name("faulty") / "stack.py"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Make the throw-away plugin and import its core."""
    root = tmp_path_factory.mktemp("plugin")
    package = root / "ado_actuators" / "faulty"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A plugin for tests."""\n')
    shutil.copy(STACK, package)
    (package / "core").symlink_to(CORE)
    sys.path.insert(0, str(root))
    # marks all processes started here, so that they are found even after their parent has ended
    os.environ["FAULTY"] = str(root)
    importlib.invalidate_caches()
    import ado_actuators

    ado_actuators.__path__ = [*ado_actuators.__path__, str(package.parent)]  # type: ignore[assignment]
    modules = {
        name.rpartition(".")[2]: importlib.import_module(f"ado_actuators.faulty.core.{name}")
        for name in ("host.host", "workload.validation", "failures", "host.environment", "host.uv", "protocol.messages")
    }
    yield SimpleNamespace(**modules, root=root)
    # the next module makes a plugin of its own
    for name in [name for name in sys.modules if name.startswith("ado_actuators.faulty")]:
        del sys.modules[name]
    ado_actuators.__path__ = [path for path in ado_actuators.__path__ if path != str(package.parent)]  # type: ignore[assignment]
    sys.path.remove(str(root))
    del os.environ["FAULTY"]


@pytest.fixture
def make_host(faulty: SimpleNamespace, tmp_path: Path) -> Iterator[Any]:
    """Make hosts that are closed after the test."""
    hosts: list[Any] = []

    def make(processes: int = 1) -> Any:
        spec = faulty.host.HostSpec(
            "current", None, processes=processes, gpus=0, threads=1, state_dir=str(tmp_path / "state")
        )
        hosts.append(faulty.host.Host(spec))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def job(faulty: SimpleNamespace, tmp_path: Path, what: str, host: Any, processes: int = 1) -> Any:
    """Return a job for the misbehaving stack."""
    workload = faulty.validation.parse(
        {
            "model_name": "m",
            "model_max_length": 8,
            "batch_size": processes,
            "number_gpus": 0,
            "number_nodes": processes,
            "dataset_text_field": what,
            "max_steps": 25,
            "target_ci_percent": 0,
        }
    )
    return faulty.messages.Job(
        id="t",
        workload=faulty.messages.JobWorkload(**workload.model_dump()),
        run_dir=str(tmp_path / "run"),
        master_port=host.address()[1],
        threads=1,
    )


def descendants() -> list[psutil.Process]:
    """Return the live processes that these tests have started, orphans included, guards excluded, which end a moment later."""
    ours = []
    for process in psutil.process_iter(["environ", "cmdline"]):
        if (process.info["environ"] or {}).get("FAULTY") == os.environ["FAULTY"] and alive(process):
            ours.append(process)
    return [process for process in ours if (process.info["cmdline"] or [""])[0] != "/bin/sh"]


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; it may end while it is looked at."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def measure(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, what: str, processes: int = 1, limit_s: float = 60.0
) -> tuple[Any, float]:
    """Measure once; return the outcome and the seconds it took once the trainers were ready."""
    host = make_host(processes)
    outcome = host.measure(job(faulty, tmp_path, what, host, processes), limit_s)
    return outcome, outcome.total_s - outcome.startup_s


def note(record: Any, place: Path, fault: str, outcome: Any, seconds: float) -> None:
    """Record a row of the table in docs/reliability.md, with what the measurement left behind."""
    assert descendants() == []
    assert not (place / "run").exists()
    group = outcome.cause.group if outcome.cause else "measured"
    for name, value in (("fault", fault), ("outcome", group), ("seconds", round(seconds, 1)), ("left", "nothing")):
        record(name, value)
