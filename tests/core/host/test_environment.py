"""The trainer's Python: found, or built by uv, also by concurrent processes and after a killed build."""

from __future__ import annotations

import ensurepip
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ado_actuators.sfttrainer.core.host import environment
from ado_actuators.sfttrainer.core.host.uv import EnvironmentProblem

pytestmark = pytest.mark.timeout(120)

# resolves a list in a separate process and prints the path of the interpreter
BUILDER = """
import sys
from pathlib import Path
from ado_actuators.sfttrainer.core.host import environment
print(environment.resolve("managed", requirements=Path(sys.argv[1]), cache_dir=Path(sys.argv[2]),
                          progress=lambda line: print("|", line, flush=True)))
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that resolves a list of packages in a cache of this test."""

    def resolve(content: str, progress: Callable[[str], None] = lambda line: None) -> Path:
        path = tmp_path / "list.txt"
        path.write_text(content)
        return environment.resolve("managed", requirements=path, cache_dir=tmp_path / "cache", progress=progress)

    return resolve


def start_builder(tmp_path: Path, content: str) -> subprocess.Popen[str]:
    """Start a process that resolves ``content``."""
    path = tmp_path / "list.txt"
    path.write_text(content)
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(path), str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )


def test_current_is_this_interpreter(tmp_path: Path) -> None:
    """``current`` is the Python of this process."""
    found = environment.resolve("current", requirements=None, cache_dir=tmp_path, progress=print)
    assert found == Path(sys.executable)


def test_a_path_is_not_resolved(tmp_path: Path) -> None:
    """An interpreter, also by the directory of its virtual environment, is returned without following links."""
    place = tmp_path / "venv" / "bin"
    place.mkdir(parents=True)
    (place / "python").symlink_to(sys.executable)
    for name in (place / "python", tmp_path / "venv"):
        assert environment.resolve(str(name), requirements=None, cache_dir=tmp_path, progress=print) == place / "python"


@pytest.mark.parametrize(
    ("name", "mode", "text", "says"),
    [
        ("absent", None, "", "does not exist"),
        ("text", 0o644, "", "is not an executable file"),
        ("script", 0o755, "#!/bin/sh\necho hello\n", "is not a Python interpreter: it does not answer as one does; "),
        ("binary", 0o755, "\0", r"is not a Python interpreter: it cannot be run \(Exec format error\); "),
        (
            "slow",
            0o755,
            "#!/bin/sh\nexec sleep 60\n",
            "is not a Python interpreter: it has not answered within 0.2 s; ",
        ),
    ],
)
def test_a_wrong_path_is_one_message(
    tmp_path: Path, name: str, mode: int | None, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that is not a Python interpreter is named in the message, with the reason."""
    if name == "slow":
        monkeypatch.setattr(environment, "ANSWER_S", 0.2)
    path = tmp_path / name
    if mode is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(EnvironmentProblem, match=says) as problem:
        environment.resolve(str(path), requirements=None, cache_dir=tmp_path, progress=print)
    assert str(path)[-20:] in str(problem.value)
    assert len(str(problem.value)) <= 200


@pytest.mark.parametrize(("version", "accepted"), [("3 9", False), ("3 10", True)])
def test_the_trainer_needs_python_3_10(tmp_path: Path, version: str, accepted: bool) -> None:
    """An older interpreter is rejected before a trainer starts."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho python {version}\n")
    path.chmod(0o755)
    if accepted:
        assert environment.resolve(str(path), requirements=None, cache_dir=tmp_path, progress=print) == path
        return
    with pytest.raises(EnvironmentProblem, match=r"is Python 3\.9; the trainer needs 3\.10 or newer"):
        environment.resolve(str(path), requirements=None, cache_dir=tmp_path, progress=print)


def test_managed_needs_a_list(tmp_path: Path) -> None:
    """An actuator without a list has no managed environment."""
    with pytest.raises(EnvironmentProblem, match="no managed environment"):
        environment.resolve("managed", requirements=None, cache_dir=tmp_path, progress=print)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Interpreter of an environment with one package, and the progress of building it; tests do not change it."""
    path, lines = tmp_path_factory.mktemp("built") / "list.txt", list[str]()
    path.write_text("six==1.17.0\n")
    cache = path.with_name("cache")
    return environment.resolve("managed", requirements=path, cache_dir=cache, progress=lines.append), lines


def test_a_list_becomes_an_environment(built: tuple[Path, list[str]]) -> None:
    """Exactly the packages of the list are installed and compiled, and progress is reported."""
    python, lines = built
    printed = subprocess.run(
        [python, "-I", "-c", "import six, sys; print(six.__version__, six.__cached__); print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0] == "1.17.0"
    assert Path(printed[1]).exists()
    assert Path(printed[2]) == python.parent.parent
    assert lines[0].startswith("building environment list")
    assert lines[-1].startswith("environment list is ready")


def test_a_complete_environment_is_found_in_milliseconds(built: tuple[Path, list[str]]) -> None:
    """There are no progress lines."""
    cache, lines, times = built[0].parents[2], list[str](), []
    requirements = cache.with_name("list.txt")
    # the fastest of several calls, because the scheduler may delay any of them
    for _ in range(5):
        begin = time.perf_counter()
        found = environment.resolve("managed", requirements=requirements, cache_dir=cache, progress=lines.append)
        times.append(time.perf_counter() - begin)
        assert found == built[0]
    assert min(times) < 0.05
    assert lines == []


def test_another_list_is_another_environment(built: tuple[Path, list[str]]) -> None:
    """A changed list does not change the environment of the old list."""
    old, cache = built[0], built[0].parents[2]
    changed = cache.with_name("list-changed") / "list.txt"
    changed.parent.mkdir()
    changed.write_text("six==1.16.0\n")
    new = environment.resolve("managed", requirements=changed, cache_dir=cache, progress=lambda line: None)
    assert old != new
    assert old.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    """Of several concurrent processes one builds; the others wait and get the same environment."""
    builders = [start_builder(tmp_path, "six==1.17.0\nidna==3.10\n") for _ in range(3)]
    outputs = [builder.communicate(timeout=60)[0].splitlines() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len({output[-1] for output in outputs}) == 1
    assert sum(line.startswith("| building") for output in outputs for line in output) == 1


def test_a_killed_build_is_repaired(tmp_path: Path, make: Callable[..., Path]) -> None:
    """A killed builder leaves no directory that counts as an environment, and the next process builds."""
    content = "six==1.17.0\nidna==3.10\n"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        # it waits for an answer that never comes, so that half-way lasts
        patch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        patch.setenv("UV_FIND_LINKS", "")
        builder = start_builder(tmp_path, content)
        silent.settimeout(60)
        silent.accept()
        assert list((tmp_path / "cache").glob("*.building-*"))
        builder.send_signal(signal.SIGKILL)
        builder.wait(timeout=10)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and ".building-" not in path.name] == []
    python = make(content)
    subprocess.run([python, "-I", "-c", "import six, idna"], check=True)
    assert list((tmp_path / "cache").glob("*.building-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_uv_ends_with_its_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a builder is killed, its uv ends, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("UV_FIND_LINKS", "")
        builder = start_builder(tmp_path, "surely-no-such-package-of-anyone==1.0\n")
        # asks, and waits for an answer that never comes
        silent.settimeout(60)
        silent.accept()
        (uv,) = psutil.Process(builder.pid).children()
        builder.kill()
        builder.wait(timeout=10)
        uv.wait(timeout=10)


def test_an_environment_that_lost_its_python_is_built_anew(make: Callable[..., Path]) -> None:
    """When the base interpreter has been removed, the environment is built again."""
    python = make("six==1.17.0\n")
    python.unlink()
    assert make("six==1.17.0\n") == python
    assert os.access(python, os.X_OK)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/bin/python", "x" * 300])
def test_a_path_that_cannot_be_looked_up_is_a_message(name: str, tmp_path: Path) -> None:
    """The home of an unknown user, and a name that no file system allows, give a message."""
    with pytest.raises(EnvironmentProblem, match="cannot be looked up") as problem:
        environment.resolve(name, requirements=None, cache_dir=tmp_path, progress=lambda line: None)
    assert len(str(problem.value)) <= 200


@pytest.mark.parametrize("package", ["six==99.0", "surely-no-such-package-of-anyone==1.0"])
def test_a_package_that_no_index_has_is_named(make: Callable[..., Path], package: str) -> None:
    """The message names the package; the log has uv's output; no incomplete directory is left."""
    with pytest.raises(EnvironmentProblem) as problem:
        make(f"idna==3.10\n{package}\n")
    assert str(problem.value).startswith(
        f"Environment list cannot be built: package {package} is not in the package index"
    )
    assert problem.value.log is not None
    assert package.partition("==")[0] in problem.value.log.read_text()
    assert [path for path in problem.value.log.parent.iterdir() if path.is_dir()] == []


def test_no_credential_of_an_index_is_shown(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """User, password and token of an index do not appear in message, progress and log."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://someone:hunter2@127.0.0.1:9/simple?token=hunter2")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_FIND_LINKS", "")
    lines: list[str] = []
    with pytest.raises(EnvironmentProblem, match=r"package six==1\.13\.0 could not be fetched") as problem:
        make("six==1.13.0\n", lines.append)
    assert problem.value.log is not None
    everything = "\n".join([str(problem.value), *lines, problem.value.log.read_text()])
    assert "hunter2" not in everything
    assert "127.0.0.1" in problem.value.log.read_text()


def make_wheel(place: Path, name: str = "tiny_thing") -> Path:
    """Write a wheel of one empty module."""
    info = f"{name}-1.0.dist-info"
    path = place / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def make_index(place: Path, name: str) -> str:
    """Write an index with one package of one wheel and return its URL."""
    page = place / name.replace("_", "-") / "index.html"
    page.parent.mkdir(parents=True)
    wheel = make_wheel(page.parent, name).name
    page.write_text(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')
    return place.as_uri()


def test_find_links_of_pip_are_honoured(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any index, a wheel in pip's find-links directory is found."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    python = make("tiny-thing==1.0\n")
    subprocess.run([python, "-I", "-c", "import tiny_thing"], check=True)


def test_pips_configuration_file_is_honoured(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that only a pip.conf names serves a managed environment too."""
    (tmp_path / "wheels").mkdir()
    make_wheel(tmp_path / "wheels")
    (tmp_path / "pip.conf").write_text(
        f"[global]\nno-index = true\n[install]\nfind-links =\n    {tmp_path / 'wheels'}\n"
    )
    # the wheel from which Python installs pip is a pip that works
    (pip,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    monkeypatch.setenv("PYTHONPATH", str(pip))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    python = make("tiny-thing==1.0\n")
    subprocess.run([python, "-I", "-c", "import tiny_thing"], check=True)


def test_the_index_of_a_list_joins_those_of_the_user(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One package is on the user's extra index, the other only where the list says."""
    monkeypatch.setenv("UV_INDEX", make_index(tmp_path / "users", "tiny_thing"))
    python = make(f"# index: {make_index(tmp_path / 'lists', 'tiny_other')}\ntiny-thing==1.0\ntiny-other==1.0\n")
    subprocess.run([python, "-I", "-c", "import tiny_thing, tiny_other"], check=True)


def test_a_problem_travels_between_processes() -> None:
    """A problem keeps its message and its log when Ray carries it."""
    problem = pickle.loads(pickle.dumps(EnvironmentProblem("No.", Path("/log"))))
    assert (str(problem), problem.log) == ("No.", Path("/log"))
