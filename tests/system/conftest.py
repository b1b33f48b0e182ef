"""A Ray cluster with a dashboard, for jobs: one head on loopback with token authentication and ports of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..processes import end_marked, limit_s, run
from . import image

ROOT = Path(__file__).parents[2]
WORKER_PORTS = 100
START_S = 120
ATTEMPTS = 4
TOKEN = "a-token-of-the-tests-0123456789abcdef"


@dataclasses.dataclass(frozen=True)
class Head:
    """A running cluster.

    Attributes:
        address: of the dashboard.
        environ: environment of a user who submits jobs: with the token and the tests' commands on the path.
    """

    address: str
    environ: dict[str, str]

    def run(
        self, *command: str | Path, cwd: Path, timeout_s: float = 600, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user who submits jobs, with changes to the environment; what it starts here ends with it.

        Standard error follows standard output in ``stdout`` of the result.
        """
        words = [str(word) for word in command]
        done = run(words, cwd=cwd, env=self.environ | (environ or {}), timeout_s=timeout_s, attempts=1)
        return subprocess.CompletedProcess(words, done.returncode, done.stdout + done.stderr, "")


def unsupervised(actuator: Any) -> Any:
    """Return the actuator with ado's supervisor switched off.

    The supervisor asks the dashboard, waits half a minute if there is none, and connects to any other cluster after the end
    of this one.
    """
    actuator._launch_supervisor.stop()
    actuator._launch_supervisor.supervise_experiment_executor = lambda request, reference: None
    return actuator


def git(repository: Path, *arguments: str) -> None:
    """Run git in a repository."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "safe.directory=*"]
    subprocess.run(["git", *identity, *arguments], cwd=repository, env=own_environ(), check=True, timeout=60)


def own_environ() -> dict[str, str]:
    """Return this process's environment without variables that select another git repository, Ray or Python."""
    names = [name for name in os.environ if not name.startswith("GIT_")]
    return {name: os.environ[name] for name in names if name not in ("RAY_ADDRESS", "VIRTUAL_ENV", "PYTHONPATH")}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a throw-away repository; its versions differ from those installed."""
    made = tmp_path_factory.mktemp("clone") / "repository"
    copy(made)
    point = made / "sfttrainer" / "examples" / "point.yaml"
    content = yaml.safe_load(point.read_text())
    content["entity"]["max_steps"] = 5
    point.write_text(yaml.safe_dump(content))
    commit(made)
    return made


def copy(made: Path) -> None:
    """Copy the files that git tracks in this repository, with their present content, links as links."""
    for name in filter(None, subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, made / name, follow_symlinks=False)


def commit(made: Path) -> None:
    """Make a copy into a repository with one commit."""
    git(made, "init", "--quiet")
    git(made, "add", "--all")
    git(made, "commit", "--quiet", "--message", "state")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], marker: str) -> None:
    """End a head and all processes that it has started, which have its temporary directory in their environment."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    end_marked("RAY_TMPDIR", marker)
    process.wait()


def start(ray: Path, environ: dict[str, str], log: Path, cpus: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start a head with ports of its own; return its process and the address of its dashboard."""
    workers, dashboard = 20000 + os.getpid() % 100 * WORKER_PORTS, free_port()
    ports = {
        "port": free_port(),
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "min-worker-port": workers,
        "max-worker-port": workers + WORKER_PORTS - 1,
    }
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", "--num-gpus=0"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=200000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return process, f"http://127.0.0.1:{dashboard}"


def ready(address: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until a head has started and its dashboard accepts the token, or until its process has ended."""
    ask = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + limit_s(START_S)
    while time.monotonic() < deadline and process.poll() is None:
        # the dashboard may answer before Ray finds that the node does not
        if "Ray runtime started" in log.read_text():
            with contextlib.suppress(OSError), urllib.request.urlopen(ask, timeout=5):
                return True
        time.sleep(0.3)
    return False


def start_head(ray: Path, environ: dict[str, str], log: Path, cpus: int = 2) -> tuple[subprocess.Popen[bytes], str]:
    """Start a head; repeated if it fails, since Ray allows itself 30 s, which a busy machine can exceed."""
    for _ in range(ATTEMPTS):
        process, address = start(ray, environ, log, cpus)
        if ready(address, process, log):
            return process, address
        end(process, environ["RAY_TMPDIR"])
    return pytest.fail(f"the cluster did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def head(own_home: Path) -> Iterator[Head]:
    """Start a cluster of two CPUs whose Python has the packages of the tests' own, both plugins included."""
    python = image.make(own_home / "image")
    marker, home, log = own_home / "h", own_home / "cluster", own_home / "head.log"
    marker.mkdir()
    home.mkdir()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    # jobs inherit this environment, and must not change the state of the tests
    inherited = own_environ() | token
    inherited |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "RAY_TMPDIR": str(marker)}
    process, address = start_head(python.with_name("ray"), inherited, log)
    try:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        yield Head(address, {**own_environ(), **token, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"})
    finally:
        end(process, str(marker))
