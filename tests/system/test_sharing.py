"""Operations that share four CPUs with Ray Tune's trials, with each other and with other Ray jobs, on one real cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..processes import run, started, wait_for
from .conftest import end, own_environ, start_head

ADO = str(Path(sys.executable).parent / "ado")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

CORE = Path(__file__).parents[2] / "core"
PLUGIN = Path(__file__).parent / "sharing"
ACTUATORS = {"timed": "Timed", "timed_too": "TimedToo"}
# another user's job: a task that holds one of the CPUs until there is a file
JOB = """
import pathlib, sys, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def preprocess(begun, done):
    pathlib.Path(begun).touch()
    while not pathlib.Path(done).exists():
        time.sleep(0.2)

ray.get(preprocess.options(name="preprocess").remote(*sys.argv[1:]))
"""
LEFT = """
import json, ray
from ray.util.placement_group import placement_group_table
ray.init(log_to_driver=False)
print(json.dumps([group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"]))
"""
POINTS = {
    "model_name": ["tiny-llama-5m"], "model_max_length": [16, 32, 48], "number_gpus": [0],
    "batch_size": [1, 2, 4, 8], "gradient_accumulation_steps": [1, 2],
}  # fmt: skip
FEW = POINTS | {"model_max_length": [32], "batch_size": [4]}
# of POINTS; the stack says why
FASTEST = "batch_size.4-gradient_accumulation_steps.2-model_max_length.32-"
# one for the job, one for each trial of Ray Tune
CPUS = 4
# tasks of Ray Tune may hold CPUs as well while it starts
NAMED = re.compile(r"A measurement has waited \d+ s for 4 CPUs: \d of 4 CPUs free, held by .*task preprocess \(1 CPU\)")
WALK = {
    "module": {"operatorName": "random_walk", "operationType": "explore"},
    "parameters": {"numberEntities": "all", "batchSize": 4, "samplerConfig": {"samplerType": "generator", "mode": "sequential"}},
}  # fmt: skip
SAMPLES = 8


def tune(concurrent: int) -> dict[str, Any]:
    """Return an operation that minimises the step time, with a sampler that is the same in each run."""
    sampler = {"sampler": "TPESampler", "sampler_parameters": {"multivariate": True, "n_startup_trials": 4, "seed": 10}}
    config = {
        "metric": "step_time_median_s", "mode": "min", "num_samples": SAMPLES, "max_concurrent_trials": concurrent,
        "search_alg": {"name": "optuna", "params": sampler},
    }  # fmt: skip
    return {"module": {"operatorName": "ray_tune", "operationType": "search"}, "parameters": {"tuneConfig": config}}


# what each operation does, its actuators and points
OPERATIONS: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "tune": (tune(2), ["timed"], POINTS),
    "walk": (WALK, ["timed", "timed_too"], FEW),
    "terminated": (tune(1), ["timed"], POINTS),
    "interrupted": (WALK, ["timed"], FEW),
}
ENDED_BY = {"terminated": signal.SIGTERM, "interrupted": signal.SIGINT}


@dataclasses.dataclass(frozen=True)
class Shared:
    """A cluster that several programs use.

    Attributes:
        environ: environment of each of them.
    """

    environ: dict[str, str]

    def operation(
        self, place: Path, operation: dict[str, Any], actuators: list[str], points: dict[str, Any]
    ) -> list[str]:
        """Write the files of an operation into a new directory; return the command."""
        place.mkdir()
        experiments = [experiment(name) for name in actuators]
        files: dict[str, dict[str, Any]] = {
            "space": {
                "sampleStoreIdentifier": "default",
                "experiments": experiments,
                "entitySpace": domains(points),
            },
            "operation": {"spaces": ["your-space"], "operation": operation},
        }
        for name, content in files.items():
            (place / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return [ADO, "create", "operation", "-f", "operation.yaml", "--with", "space=space.yaml"]

    def of(self, place: Path) -> dict[str, str]:
        """Return the environment of an operation with a store of its own."""
        return {**self.environ, "HOME": str(place), "XDG_CONFIG_HOME": str(place / "config")}


def experiment(actuator: str) -> dict[str, Any]:
    """Return the experiment of an actuator, with a few steps."""
    fixed = {"max_steps": 5, "target_ci_percent": 0}
    return {
        "actuatorIdentifier": actuator,
        "experimentIdentifier": "finetune_full_benchmark",
        "experimentVersion": "1.0.0",
        "parameterization": [{"property": {"identifier": name}, "value": value} for name, value in fixed.items()],
    }


def domains(points: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an entity space."""
    kinds = {"model_name": {"variableType": "CATEGORICAL_VARIABLE_TYPE"}}
    return [
        {"identifier": name, "propertyDomain": {**kinds.get(name, {}), "values": values}}
        for name, values in points.items()
    ]


@pytest.fixture(scope="module")
def shared(own_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Start a head whose workers have the throw-away plugin."""
    root = tmp_path_factory.mktemp("sharing")
    package = root / "plugin" / "ado_actuators" / "sharing"
    shutil.copytree(PLUGIN, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "core").symlink_to(CORE)
    info = root / "plugin" / "ado_sharing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ado-sharing\nVersion: 1.0\nSummary: for tests\n")
    points = [f"{name} = ado_actuators.sharing.actuator:{cls}\n" for name, cls in ACTUATORS.items()]
    (info / "entry_points.txt").write_text("[ado.actuators]\n" + "".join(points))
    marker = own_home / "s"
    marker.mkdir()
    environ = own_environ() | {"RAY_TMPDIR": str(marker), "PYTHONPATH": str(root / "plugin"), "COLUMNS": "200"}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-tests-0123456789abcdef", "NO_COLOR": "1"}
    process, _ = start_head(Path(sys.executable).with_name("ray"), environ, root / "log", CPUS)
    (address,) = re.findall(r"ray start --address='([^']+)'", (root / "log").read_text())
    try:
        yield Shared(environ | {"RAY_ADDRESS": address})
    finally:
        end(process, str(marker))


def measured(place: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of each stored measurement, by entity."""
    found = {}
    for path in place.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
            named = store.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%_measurement_results'"
            )
            for (name,) in named.fetchall():
                for uid, entity, data in store.execute(f"SELECT uid, entity_id, data FROM {name}"):
                    found[f"{entity} {uid}"] = json.loads(data)["metadata"]
    return found


@dataclasses.dataclass(frozen=True)
class Ran:
    """An operation that has ended.

    Attributes:
        code: its exit status.
        log: its output.
        measured: metadata of its measurements, by entity.
    """

    code: int
    log: str
    measured: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Run all operations at once, together with another user's job, which ends when all of them have said that they wait for it.

    At that moment two of them are ended; they have 30 s.
    """
    root = tmp_path_factory.mktemp("operations")
    begun, done = root / "begun", root / "done"
    job = [sys.executable, "-c", JOB, str(begun), str(done)]
    places = {name: root / name for name in OPERATIONS}

    def log(name: str) -> str:
        return (places[name] / "log").read_text(errors="replace")

    def unended(names: Iterable[str]) -> list[str]:
        return [f"{name}: {log(name)[-2000:]}" for name in names if running[name].poll() is None]

    running: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(job, cwd=root, env=shared.environ, log=root / "job", ready=begun.exists))
        for name, (operation, actuators, points) in OPERATIONS.items():
            place = places[name]
            command = shared.operation(place, operation, actuators, points)
            running[name] = stack.enter_context(started(command, cwd=place, env=shared.of(place), log=place / "log"))
        reported = wait_for(lambda: all(NAMED.search(log(name)) for name in places), 300)
        assert reported, {name: log(name)[-2000:] for name in places if not NAMED.search(log(name))}
        for name, how in ENDED_BY.items():
            running[name].send_signal(how)
        done.touch()
        assert wait_for(lambda: not unended(ENDED_BY), 30), unended(ENDED_BY)
        assert wait_for(lambda: not unended(places), 240), unended(places)
    return {name: Ran(running[name].returncode, log(name), measured(place)) for name, place in places.items()}


def test_optuna_finds_the_fastest_of_24_points(ran: dict[str, Ran]) -> None:
    """Two trials at once hold CPUs while a measurement trains with all."""
    tuned = ran["tune"]
    assert tuned.code == 0, tuned.log
    assert any(name.startswith(FASTEST) for name in tuned.measured)
    assert len(tuned.measured) < 12
    assert {metadata["facts"]["cpu_threads"] for metadata in tuned.measured.values()} == {CPUS}


def test_four_requests_at_once_for_two_actuators(ran: dict[str, Ran]) -> None:
    """Each of them is served at its first attempt, during another operation and the end of two more."""
    walked = ran["walk"]
    assert walked.code == 0, walked.log
    assert [metadata["attempts"] for metadata in walked.measured.values()] == [1] * 4


@pytest.mark.parametrize("name", ENDED_BY)
def test_an_operation_is_ended_while_it_waits(ran: dict[str, Ran], name: str) -> None:
    """SIGTERM to one of Ray Tune, and Ctrl-C to a random walk: they end in time, and with an error."""
    assert ran[name].code > 0, ran[name].log


def test_nothing_is_left(ran: dict[str, Ran], shared: Shared, tmp_path: Path) -> None:
    """No placement group keeps CPUs on the cluster, which still runs."""
    done = run([sys.executable, "-c", LEFT], cwd=tmp_path, env=shared.environ, timeout_s=60)
    assert done.stdout.strip().splitlines()[-1] == "[]"
