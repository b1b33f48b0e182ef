"""What the sessions of the noxfile install and run, with a session that only records commands."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class Skipped(Exception):
    """A session was skipped."""


class Failed(Exception):
    """A session failed with a message."""


class Session:
    """Records installations and commands; ``answers`` are the outputs of commands by their first words."""

    venv_backend = "uv"
    posargs = ()

    def __init__(self, place: Path, answers: dict[str, str] | None = None) -> None:
        self.place = place
        self.answers = answers or {}
        self.installed: list[str] = []
        self.pins: list[str] = []
        self.env: dict[str, str] = {}
        self.logged: list[str] = []
        self.virtualenv = SimpleNamespace(location=str(place))

    def install(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Record what would be installed, and the variables."""
        self.installed += arguments
        self.env = env or {}

    def run(self, *command: str, **options: Any) -> str:
        """Record the pins of an audit, and return the answer."""
        if command[0] == "pip-audit":
            self.pins += Path(command[-1]).read_text().split()
        return self.answers.get(command[0], "")

    def log(self, message: str) -> None:
        """Record a line."""
        self.logged.append(message)

    def create_tmp(self) -> str:
        """Return the session's directory."""
        return str(self.place)

    @contextmanager
    def chdir(self, place: str) -> Iterator[None]:
        """Do not change the directory."""
        yield

    def skip(self, message: str) -> None:
        """End with a message."""
        raise Skipped(message)

    def error(self, message: str) -> None:
        """Fail with a message."""
        raise Failed(message)


def load() -> Any:
    """Import the noxfile, which nox itself finds by its path."""
    spec = importlib.util.spec_from_file_location("ados_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


noxfile = load()


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the noxfile where pip has no settings but those of a file that names a mirror and its host."""
    for name in ("FIND_LINKS", "INDEX_URL", "EXTRA_INDEX_URL", "NO_INDEX", "TRUSTED_HOST"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    for name in (
        "FIND_LINKS",
        "DEFAULT_INDEX",
        "INDEX_URL",
        "INDEX",
        "EXTRA_INDEX_URL",
        "INDEX_STRATEGY",
        "INSECURE_HOST",
    ):
        monkeypatch.delenv(f"UV_{name}", raising=False)
    listed = "global.extra-index-url='https://mirror/simple'\nglobal.no-index='1'\ninstall.trusted-host='mirror'"
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(f"print({listed!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    noxfile.package_settings.cache_clear()
    yield noxfile
    noxfile.package_settings.cache_clear()


@pytest.mark.parametrize("name", ["tests", "docs", "quickstart", "soak", "faults"])
def test_sessions_take_the_tree_as_it_is(sessions: Any, tmp_path: Path, name: str) -> None:
    """Plugins are always rebuilt, because uv would keep a plugin that was installed before an edit."""
    session = Session(tmp_path)
    getattr(sessions, name)(session)
    paths = [word for word in session.installed if word.startswith("./")]
    wanted = {f"--reinstall-package={sessions.PLUGINS[word[2:].partition('[')[0]]}" for word in paths}
    assert wanted
    assert wanted <= set(session.installed)


def test_an_installation_says_what_it_is_doing(sessions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv prints nothing for minutes: lines tell the seconds and the packages."""
    session = Session(tmp_path)
    monkeypatch.setattr(sessions, "HEARTBEAT_S", 0.01)

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while not any(text in line for line in session.logged) and time.monotonic() < deadline:
            time.sleep(0.01)

    with sessions.heartbeats(session):
        wait_for("downloading packages")
        (tmp_path / "lib" / "python3.11" / "site-packages" / "torch-2.dist-info").mkdir(parents=True)
        wait_for("1 packages are there")
    assert session.logged[0].endswith("0 s: downloading packages")
    assert session.logged[-1].endswith(" s: 1 packages are there; installing and compiling them")


def test_uv_gets_what_pips_files_say(sessions: Any, tmp_path: Path) -> None:
    """Extra index, trusted host and no-index reach uv."""
    session = Session(tmp_path)
    sessions.install(session, "six")
    assert session.installed == ["--no-index", "six"]
    assert {name: session.env.get(name) for name in ("UV_INDEX", "UV_INDEX_STRATEGY", "UV_INSECURE_HOST")} == {
        "UV_INDEX": "https://mirror/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INSECURE_HOST": "mirror",
    }


def test_the_audit_asks_about_dependencies_and_lists(sessions: Any, tmp_path: Path) -> None:
    """The audit covers the plugins' resolved dependencies and the pinned lists; findings fail the session."""
    session = Session(
        tmp_path, {"uv": "ado-core==2.3.0\ntorch==2.13.0+cpu\n", "pip-audit": "Found 1 known vulnerability"}
    )
    with pytest.raises(Failed, match="Found 1 known vulnerability"):
        sessions.audit(session)
    assert "ado-core==2.3.0" in session.pins
    assert "fms-hf-tuning==3.2.2" in session.pins
    assert "torch==2.13.0+cpu" not in session.pins


def test_the_audit_without_a_service(sessions: Any, tmp_path: Path) -> None:
    """Without an answer of the advisory service the session says that nothing was audited."""
    with pytest.raises(Skipped, match="No advisory service"):
        sessions.audit(Session(tmp_path, {"uv": "six==1.17.0\n", "pip-audit": "ConnectionError"}))
