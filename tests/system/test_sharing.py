"""Operations that share CPUs with Ray Tune's trials, with each other and with a submitted Ray job, on one real cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ..processes import marked, run, started, wait_for
from .conftest import TOKEN, end, own_environ, start_head

ADO = str(Path(sys.executable).parent / "ado")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

CORE = Path(__file__).parents[2] / "core"
PLUGIN = Path(__file__).parent / "sharing"
DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
ACTUATORS = {"timed": "Timed", "timed_too": "TimedToo"}
CPUS = 12
# another user's job holds half of the CPUs: a task and an actor until there are files
JOB = """
import pathlib, sys, time, ray
begun, task_done, actor_done = map(pathlib.Path, sys.argv[1:])
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0.5)
class Model:
    def ping(self):
        pass

@ray.remote(num_cpus=5.5)
def preprocess():
    begun.touch()
    while not task_done.exists():
        time.sleep(0.2)

model = Model.options(name="serve").remote()
ray.get(model.ping.remote())
ray.get(preprocess.options(name="preprocess").remote())
while not actor_done.exists():
    time.sleep(0.2)
"""
LEFT = """
import json, ray
from ray._private.state import actors
from ray.util.placement_group import placement_group_table
ray.init(log_to_driver=False)
groups = [group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
print(json.dumps([groups, sorted(actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD")]))
"""
POINTS = {
    "model_name": ["tiny-llama-5m"], "model_max_length": [16, 32, 48], "number_gpus": [0],
    "batch_size": [1, 2, 4, 8], "gradient_accumulation_steps": [1, 2],
}  # fmt: skip
# beside half a CPU that another program holds
FRACTIONAL = CPUS - 1
FEW = POINTS | {"model_max_length": [32], "batch_size": [4], "cpus_per_process": [FRACTIONAL]}
# of POINTS; the stack says why
FASTEST = "batch_size.4-gradient_accumulation_steps.2-model_max_length.32-"
# tasks of Ray Tune may hold CPUs as well while it starts
NAMED = re.compile(
    rf"A measurement has waited \d+ s for ({CPUS}|{FRACTIONAL}) CPUs: \d+ of {CPUS} CPUs free, "
    r"held by task preprocess \(5\.5 CPUs\)(, | and ).*actor serve \(0\.5 CPUs\)"
)
WALK = {
    "module": {"operatorName": "random_walk", "operationType": "explore"},
    "parameters": {"numberEntities": "all", "batchSize": 4, "samplerConfig": {"samplerType": "generator", "mode": "sequential"}},
}  # fmt: skip


def tune(concurrent: int, samples: int) -> dict[str, Any]:
    """Return an operation that minimises the step time, with a seed of the sampler that comes to the fastest point early."""
    sampler = {"sampler": "TPESampler", "sampler_parameters": {"multivariate": True, "n_startup_trials": 4, "seed": 32}}
    config = {
        "metric": "step_time_median_s", "mode": "min", "num_samples": samples, "max_concurrent_trials": concurrent,
        "search_alg": {"name": "optuna", "params": sampler},
    }  # fmt: skip
    return {"module": {"operatorName": "ray_tune", "operationType": "search"}, "parameters": {"tuneConfig": config}}


# what each operation does, its actuators and points
OPERATIONS: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "one trial": (tune(1, 24), ["timed"], POINTS),
    "two trials": (tune(2, 5), ["timed"], POINTS),
    "walk": (WALK, ["timed", "timed_too"], FEW),
    "terminated": (tune(1, 24), ["timed"], POINTS),
    "interrupted": (tune(1, 24), ["timed"], POINTS),
    "interrupted walk": (WALK, ["timed"], FEW),
}
# what they get while they wait
SIGNALS = {"terminated": signal.SIGTERM, "interrupted": signal.SIGINT, "interrupted walk": signal.SIGINT}


@dataclasses.dataclass(frozen=True)
class Shared:
    """A cluster that several programs use.

    Attributes:
        environ: environment of each of them.
        dashboard: its address.
    """

    environ: dict[str, str]
    dashboard: str

    def submit(self, entrypoint: str) -> None:
        """Submit a Ray job, as `ray job submit` does."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        body = json.dumps({"entrypoint": entrypoint}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.dashboard}/api/jobs/", body, headers), timeout=60):
            pass

    def processes(self) -> list[str]:
        """Return the command lines of dispatchers, hosts and trainers that run."""
        lines = map(command_line, marked("RAY_TMPDIR", self.environ["RAY_TMPDIR"]))
        return [line for line in lines if re.search("core/trainer|Dispatcher|HostActor", line)]

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


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


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
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "NO_COLOR": "1"}
    # workers that are nicer than the rest of the machine take minutes to start on a busy one
    environ |= {"RAY_worker_niceness": "0"}
    process, dashboard = start_head(Path(sys.executable).with_name("ray"), environ, root / "log", CPUS)
    (address,) = re.findall(r"ray start --address='([^']+)'", (root / "log").read_text())
    try:
        yield Shared(environ | {"RAY_ADDRESS": address}, dashboard)
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
        measured: metadata of its measurements, by entity, in the order of the store.
    """

    code: int
    log: str
    measured: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Run all operations at once beside a Ray job, half of which ends when all of them have said that they wait for it.

    At that moment some of them get a signal. The rest of the job ends when the one that has CPUs enough has measured. An operation that
    gets a signal has 30 s to end.
    """
    root = tmp_path_factory.mktemp("operations")
    (root / "job.py").write_text(JOB)
    begun, task_done, actor_done = files = [root / name for name in ("begun", "task-done", "actor-done")]
    places = {name: root / name.replace(" ", "-") for name in OPERATIONS}

    def log(name: str) -> str:
        return (places[name] / "log").read_text(errors="replace")

    def unended(names: Iterable[str]) -> list[str]:
        return [f"{name}: {log(name)[-2000:]}" for name in names if running[name].poll() is None]

    running: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        shared.submit(" ".join(map(str, (sys.executable, root / "job.py", *files))))
        for name, (operation, actuators, points) in OPERATIONS.items():
            place = places[name]
            command = shared.operation(place, operation, actuators, points)
            running[name] = stack.enter_context(started(command, cwd=place, env=shared.of(place), log=place / "log"))
            assert begun.exists() or wait_for(begun.exists, 60)
        assert wait_for(lambda: all(NAMED.search(log(name)) for name in places), 300), {
            name: log(name)[-2000:] for name in places if not NAMED.search(log(name))
        }
        for name, number in SIGNALS.items():
            running[name].send_signal(number)
        task_done.touch()
        assert wait_for(lambda: not unended(SIGNALS), 30), unended(SIGNALS)
        assert wait_for(lambda: len(measured(places["walk"])) == 4, 120), log("walk")[-2000:]
        assert not [name for name in ("one trial", "two trials") if measured(places[name])]
        actor_done.touch()
        assert wait_for(lambda: until_fastest(measured(places["one trial"])), 240), log("one trial")[-2000:]
        running["one trial"].send_signal(signal.SIGINT)
        assert wait_for(lambda: not unended(["one trial"]), 30), unended(["one trial"])
        assert wait_for(lambda: not unended(places), 240), unended(places)
    return {name: Ran(running[name].returncode, log(name), measured(place)) for name, place in places.items()}


def until_fastest(found: Iterable[str]) -> int:
    """Return how many measurements it took to find the fastest point; 0 if it was not found."""
    fastest = [number for number, name in enumerate(found, 1) if name.startswith(FASTEST)]
    return min(fastest, default=0)


@pytest.mark.parametrize("name", ["one trial", "two trials"])
def test_optuna_finds_the_fastest_of_24_points(ran: dict[str, Ran], name: str) -> None:
    """In fewer than 12 measurements, with one and with two trials at once, which hold CPUs while a measurement trains with all.

    Another seed may need more.
    """
    tuned = ran[name]
    assert 0 < until_fastest(tuned.measured) < 12, list(tuned.measured)
    assert {metadata["facts"]["cpu_threads"] for metadata in tuned.measured.values()} == {CPUS}
    # the first one is interrupted in one of its 24 trials
    assert (tuned.code == 0) == (name == "two trials"), tuned.log


def test_four_requests_at_once_for_two_actuators(ran: dict[str, Ran]) -> None:
    """Each of them is served at its first attempt, beside half a CPU that somebody holds, and during other operations."""
    walked = ran["walk"]
    assert walked.code == 0, walked.log
    assert [(metadata["attempts"], metadata["facts"]["cpu_threads"]) for metadata in walked.measured.values()] == [
        (1, FRACTIONAL)
    ] * 4


@pytest.mark.parametrize("name", [*SIGNALS, "one trial"])
def test_an_operation_is_ended_in_time(ran: dict[str, Ran], name: str) -> None:
    """SIGTERM and Ctrl-C to those that wait, and Ctrl-C to one of Ray Tune that measures: all end with an error."""
    assert ran[name].code > 0, ran[name].log


def test_nothing_is_left(ran: dict[str, Ran], shared: Shared, tmp_path: Path) -> None:
    """No process of ours, no placement group and no actor is on the cluster, apart from the consoles that ado leaves: docs/cluster.md."""

    def left() -> Any:
        done = run([sys.executable, "-c", LEFT], cwd=tmp_path, env=shared.environ, timeout_s=60)
        return json.loads(done.stdout.strip().splitlines()[-1])

    assert wait_for(lambda: not shared.processes(), 30), shared.processes()
    groups, actors = left()
    assert (groups, set(actors)) == ([], {"RichConsoleQueue"})
    (remove,) = re.findall(r"^python - <<'END'\n.*?^END$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = run(["sh", "-c", remove], cwd=tmp_path, env=shared.environ | {"PATH": path}, timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert wait_for(lambda: left() == [[], []], 20)
