"""A soak: hundreds of measurements through a real ado operation while some of their trainers are killed, run out of memory or fail.

A throw-away actuator of the plugins' shape is laid beside them: its core is the real core, its stack the real TRL stack,
which misbehaves at a step where an entity's ``seed`` says so. What is stored for every entity is compared with what was
injected, and the memory of driver, dispatcher, host and trainers is sampled meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common
import psutil
import yaml

from ado_actuators import sfttrainer

SOURCE = Path(sfttrainer.__file__).parent
PLUGIN = Path(__file__).parent / "soaking"
BATCH_SIZES = (1, 2, 4)
MAX_RETRIES = 1
SAMPLE_EVERY_S = 5.0
LIMIT_S = 3600.0
# allowed growth over the first quarter's median: variation of the allocator, but not a leak in each measurement
GROWTH_ALLOWED_MIB = 100.0


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected result of an entity.

    Attributes:
        fault: what is injected, a key of ``soaking/stack.py``'s table; ``none`` without one.
        is_valid: the stored value; None: a failed measurement without properties.
        failure: the stored category; empty for a failed measurement.
        attempts: how often it must have been tried.
        reason: part of the message that says why there is no measurement.
    """

    fault: str
    is_valid: int | None
    failure: str
    attempts: int
    reason: str = ""


# of every hundred seeds, five have a transient fault and five a permanent one
FAULTS = {
    3: Expected("killed once", 1, "none", 2),
    23: Expected("killed once", 1, "none", 2),
    43: Expected("killed once", 1, "none", 2),
    63: Expected("killed always", None, "", MAX_RETRIES + 1, "The trainer process was killed from outside (SIGKILL)."),
    83: Expected("segmentation fault once", 1, "none", 2),
    13: Expected("exception", None, "", 1, "ValueError: injected"),
    33: Expected("exception", None, "", 1, "ValueError: injected"),
    53: Expected("GPU out of memory", 0, "gpu_oom", 1, "The workload does not fit: the GPU ran out of memory"),
    73: Expected("host out of memory", 0, "host_oom", 1, "The workload does not fit: the host ran out of memory"),
    93: Expected("garbage", None, "", 1, "The trainer wrote a line that is not a JSON message"),
}
HEALTHY = Expected("none", 1, "none", 1)


def expected(seed: int) -> Expected:
    """Return the expected result of the entity with this seed."""
    return FAULTS.get(seed % 100, HEALTHY)


def main() -> int:
    """Run the soak; 0 if every result is the expected one, memory is flat and it took less than an hour."""
    given = options()
    facts = common.circumstances("cpu")
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as directory:
        root = Path(directory)
        begin = time.perf_counter()
        memory = operate(root, write_inputs(root, given.measurements))
        took_s = time.perf_counter() - begin
        stored = results(root)
        left = leftovers(root)
    facts["load_average_after"] = round(os.getloadavg()[0], 2)
    found = judge(stored, given.measurements)
    growth = {role: grown(series) for role, series in memory.items()}
    flat = all(one["growth_mib"] <= GROWTH_ALLOWED_MIB for one in growth.values())
    met = not found["wrong"] and flat and took_s < LIMIT_S and not any(left.values())
    content = {
        "benchmark": "soak", "measurements": given.measurements, **facts, "took_s": round(took_s, 1),
        "max_retries": MAX_RETRIES, **found, "memory": growth, "left": left, "met": met,
        "samples": {role: [[round(at), round(mib)] for at, mib in series] for role, series in memory.items()},
    }  # fmt: skip
    common.write(given.output, content, text(content))
    return 0 if met else 1


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--measurements", type=int, default=300, help="a multiple of 3 (default 300)")
    default = common.ROOT / "benchmarks" / "results" / "soak.json"
    parser.add_argument("--output", type=Path, default=default, help=f"JSON file (default {default})")
    return parser.parse_args()


def write_inputs(root: Path, measurements: int) -> list[str]:
    """Write plugin, space, configuration and operation into ``root``; return ado's arguments."""
    package = root / "plugin" / "ado_actuators" / "soaking"
    package.mkdir(parents=True)
    for file in PLUGIN.iterdir():
        if file.suffix == ".py":
            shutil.copy(file, package)
    shutil.copy(SOURCE / "stack.py", package / "trl_stack.py")
    # what the stack imports beside it
    for file in SOURCE.glob("*.py"):
        if not (package / file.name).exists():
            shutil.copy(file, package)
    (package / "core").symlink_to((SOURCE / "core").resolve())
    # the entry point by which ado finds the actuator
    info = root / "plugin" / "ado_soaking-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ado-soaking\nVersion: 1.0\nSummary: for the soak\n")
    (info / "entry_points.txt").write_text("[ado.actuators]\nsoaking = ado_actuators.soaking.actuator:Soaking\n")
    values: dict[str, list[Any]] = {
        "model_name": ["tiny-llama-5m"],
        "model_max_length": [32],
        "number_gpus": [0],
        "batch_size": list(BATCH_SIZES),
        "seed": list(range(measurements // len(BATCH_SIZES))),
    }
    fixed = {"max_steps": 5, "target_ci_percent": 0}
    experiment = {
        "actuatorIdentifier": "soaking",
        "experimentIdentifier": "finetune_full_benchmark",
        "experimentVersion": "1.0.0",
        "parameterization": [{"property": {"identifier": name}, "value": value} for name, value in fixed.items()],
    }
    files = {
        "space": {
            "sampleStoreIdentifier": "default",
            "experiments": [experiment],
            "entitySpace": [
                {"identifier": name, "propertyDomain": {"values": given}} for name, given in values.items()
            ],
        },
        "actuatorconfiguration": {
            "actuatorIdentifier": "soaking",
            "parameters": {
                "state_dir": str(root / "state"), "max_retries": MAX_RETRIES, "retry_backoff_s": 0.5,
                "run_timeout_s": 300,
            },
        },
        "operation": yaml.safe_load(
            (common.ROOT / "sfttrainer" / "examples" / "operation.yaml").read_text(encoding="utf-8")
        ),
    }  # fmt: skip
    for name, content in files.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    given = [f"{name}={root / name}.yaml" for name in ("space", "actuatorconfiguration")]
    return ["create", "operation", "-f", str(root / "operation.yaml"), "--with", given[0], "--with", given[1]]


def operate(root: Path, arguments: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Run the operation; return the resident memory of each role over time, ``(seconds, MiB)``."""
    (root / "r").mkdir()
    environ = {
        **os.environ,
        "XDG_CONFIG_HOME": str(root / "config"),
        "RAY_TMPDIR": str(root / "r"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "plugin"), os.environ.get("PYTHONPATH")])),
        "COLUMNS": "200",
    }
    log = root / "operation.log"
    series: dict[str, list[tuple[float, float]]] = {"driver": [], "dispatcher": [], "host": [], "trainer": []}
    ado = str(Path(sys.executable).parent / "ado")
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ado, *arguments], cwd=root, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(SAMPLE_EVERY_S)
                at = time.perf_counter() - begin
                for role, mib in sample(process.pid, root).items():
                    series[role].append((at, mib))
                common.say(f"{at:.0f} s: {count(root)} results")
                if at > 2 * LIMIT_S:
                    raise SystemExit(f"the operation did not end within {2 * LIMIT_S:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        sys.exit(f"the operation ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    return series


def sample(driver: int, root: Path) -> dict[str, float]:
    """Return the resident memory of each running role, MiB."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        role = role_of(" ".join(process.info["cmdline"] or []), process.info["pid"] == driver)
        if not role:
            continue
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if process.environ().get("RAY_TMPDIR") == str(root / "r"):
                found[role] = process.memory_info().rss / 2**20
    return found


def role_of(command: str, is_driver: bool) -> str:
    """Return the role of a process, empty for others."""
    if is_driver:
        return "driver"
    names = {"ray::Dispatcher": "dispatcher", "ray::HostActor": "host", "core/trainer": "trainer"}
    return next((role for name, role in names.items() if name in command), "")


def leftovers(root: Path) -> dict[str, int]:
    """Return the processes and run directories that the operation left behind."""
    time.sleep(5)
    runs = root / "state" / "runs"
    return {
        "trainers and hosts": len({"host", "trainer"} & sample(0, root).keys()),
        "run directories": len(list(runs.iterdir())) if runs.is_dir() else 0,
    }


def database(root: Path) -> Path | None:
    """Return ado's store, once there is one."""
    return next((root / "config").rglob("*.db"), None)


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables with results, one per sample store."""
    named = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'sqlsource_%_measurement_results'")
    return [name for (name,) in named]


def count(root: Path) -> int:
    """Return how many results are stored so far."""
    if not (path := database(root)):
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return sum(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables(connection))


def results(root: Path) -> list[dict[str, Any]]:
    """Return the stored results."""
    path = database(root)
    assert path is not None
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = [row for name in tables(connection) for row in connection.execute(f"SELECT data FROM {name}")]
    return [json.loads(row[0]) for row in rows]


def judge(stored: list[dict[str, Any]], measurements: int) -> dict[str, Any]:
    """Compare the stored results with the injected faults."""
    counted: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    seen: set[str] = set()
    for one in stored:
        identifier = one["entityIdentifier"]
        seed = int(identifier.partition("seed.")[2].partition("-")[0])
        wanted, got = expected(seed), verdict(one)
        seen.add(identifier)
        counted[wanted.fault] += 1
        if not agrees(wanted, got):
            wrong.append({"entity": identifier, "injected": wanted.fault, **got})
    if len(seen) != measurements or len(stored) != measurements:
        wrong.append({"results": len(stored), "entities": len(seen), "expected": measurements})
    return {"results": len(stored), "injected": dict(sorted(counted.items())), "wrong": wrong}


def verdict(stored: dict[str, Any]) -> dict[str, Any]:
    """Return is_valid, failure, attempts and reason of a stored result."""
    values = {one["property"]["targetProperty"]["identifier"]: one["value"] for one in stored.get("measurements") or []}
    metadata = stored.get("metadata") or {}
    return {
        "is_valid": values.get("is_valid"),
        "failure": values.get("failure", ""),
        "attempts": metadata.get("attempts"),
        "reason": stored.get("reason") or metadata.get("reason") or "",
    }


def agrees(wanted: Expected, got: dict[str, Any]) -> bool:
    """Whether a result is the expected one."""
    same = (wanted.is_valid, wanted.failure, wanted.attempts) == (got["is_valid"], got["failure"], got["attempts"])
    return same and wanted.reason in got["reason"]


def grown(series: list[tuple[float, float]]) -> dict[str, float]:
    """Return the medians of the second and the last eighth of a series in MiB, and the growth between them.

    The first eighth is left out: it holds start and imports.
    """
    values = [mib for _, mib in series]
    eighth = max(1, len(values) // 8)
    early, late = statistics.median(values[eighth : 2 * eighth] or values), statistics.median(values[-eighth:])
    return {
        "early_mib": round(early, 1),
        "late_mib": round(late, 1),
        "most_mib": round(max(values), 1),
        "growth_mib": round(late - early, 1),
    }


def text(content: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    injected = content["injected"]
    rows = []
    for fault, number in injected.items():
        wanted = next((one for one in FAULTS.values() if one.fault == fault), HEALTHY)
        stored = "failed" if wanted.is_valid is None else f"is_valid {wanted.is_valid}, failure {wanted.failure}"
        mistaken = sum(1 for one in content["wrong"] if one.get("injected") == fault)
        rows.append([fault, str(number), stored, str(wanted.attempts), str(number - mistaken)])
    memory = [
        [role, *(f"{one[key]:.0f}" for key in ("early_mib", "late_mib", "growth_mib", "most_mib"))]
        for role, one in content["memory"].items()
    ]
    left = ", ".join(f"{number} {what}" for what, number in content["left"].items())
    return "\n\n".join(
        [
            common.heading("Soak", content),
            (
                f"{content['results']} results of {content['measurements']} measurements in {content['took_s'] / 60:.1f} minutes, "
                f"max_retries {content['max_retries']}; target {'met' if content['met'] else 'NOT met'}."
            ),
            common.table(["injected", "measurements", "must be stored as", "attempts", "right"], rows),
            common.table(["resident memory, MiB", "early", "late", "growth", "most"], memory),
            "Early and late are the medians of the second and the last eighth of the time.",
            f"Left behind: {left}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
