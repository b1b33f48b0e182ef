"""Operations that share two CPUs with Ray Tune's trials, with each other and with other Ray jobs, on one real cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..processes import limit_s, run, started
from .conftest import end, own_environ, start_head

ADO = str(Path(sys.executable).parent / "ado")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

CORE = Path(__file__).parents[2] / "core"
PLUGIN = Path(__file__).parent / "sharing"
ACTUATORS = {"timed": "Timed", "timed_too": "TimedToo"}
# another user's job: a task that holds one of the two CPUs until there is a file
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
NAMED = "1 of 2 CPUs free, held by task preprocess (1 CPU)."
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
    """Start a head with two CPUs whose workers have the throw-away plugin."""
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
    process, _ = start_head(Path(sys.executable).with_name("ray"), environ, root / "log")
    (address,) = re.findall(r"ray start --address='([^']+)'", (root / "log").read_text())
    try:
        yield Shared(environ | {"RAY_ADDRESS": address})
    finally:
        end(process, str(marker))


@pytest.fixture
def job(shared: Shared, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Start another user's job that holds one CPU; give a function that ends it."""
    begun, done = tmp_path / "begun", tmp_path / "done"
    command = [sys.executable, "-c", JOB, str(begun), str(done)]
    with started(command, cwd=tmp_path, env=shared.environ, log=tmp_path / "job", ready=begun.exists):
        yield done.touch
        done.touch()


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


def groups(shared: Shared, place: Path) -> str:
    """Return the names of the cluster's placement groups."""
    done = run([sys.executable, "-c", LEFT], cwd=place, env=shared.environ, timeout_s=60)
    return done.stdout.strip().splitlines()[-1]


def test_optuna_finds_the_fastest_of_24_points(shared: Shared, tmp_path: Path) -> None:
    """Two trials at once hold both CPUs while a measurement trains with both."""
    place = tmp_path / "o"
    command = shared.operation(place, tune(2), ["timed"], POINTS)
    done = run(command, cwd=place, env=shared.of(place), timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = measured(place)
    assert any(name.startswith(FASTEST) for name in found)
    assert len(found) < 12
    assert {metadata["facts"]["cpu_threads"] for metadata in found.values()} == {2}


def test_two_operations_wait_for_another_users_job(shared: Shared, job: Callable[[], None], tmp_path: Path) -> None:
    """One of them measures with two actuators, four requests at once. Both say who holds the CPU, and measure when it is free."""
    first, second = tmp_path / "o", tmp_path / "p"
    both = shared.operation(first, WALK, ["timed", "timed_too"], FEW), shared.operation(second, WALK, ["timed"], FEW)

    def told() -> bool:
        return all(NAMED in (place / "log").read_text(errors="replace") for place in (first, second))

    with (
        started(both[0], cwd=first, env=shared.of(first), log=first / "log") as one,
        started(both[1], cwd=second, env=shared.of(second), log=second / "log", ready=told, timeout_s=200) as other,
    ):
        job()
        assert [process.wait(limit_s(150)) for process in (one, other)] == [0, 0], (first / "log").read_text()
    assert [len(measured(place)) for place in (first, second)] == [4, 2]
    assert {metadata["attempts"] for place in (first, second) for metadata in measured(place).values()} == {1}


def test_an_operation_is_ended_while_it_waits(shared: Shared, job: Callable[[], None], tmp_path: Path) -> None:
    """SIGTERM to an operation of Ray Tune whose trial waits for a measurement that waits for a CPU: it ends and leaves nothing."""
    place = tmp_path / "o"
    command = shared.operation(place, tune(1), ["timed"], POINTS)

    def told() -> bool:
        return NAMED in (place / "log").read_text(errors="replace")

    with started(command, cwd=place, env=shared.of(place), log=place / "log", ready=told, timeout_s=200) as process:
        process.send_signal(signal.SIGTERM)
        process.wait(limit_s(30))
    assert groups(shared, place) == "[]"
