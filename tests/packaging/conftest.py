"""Fixtures of the packaging tests: temporary copies of this repository, and builds of them without a network."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"sfttrainer": "ado_sfttrainer", "fms_hf_tuning": "ado_fms_hf_tuning"}
METADATA = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('{}'))"
SDIST = "from setuptools import build_meta; print(build_meta.build_sdist('{}'))"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, whether it succeeds or not; stderr is part of stdout."""
    words = [str(word) for word in command]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(words, cwd=cwd, text=True, timeout=120, check=False, **both)  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class Repository:
    """A copy of this repository in which one plugin is built."""

    root: Path
    plugin: str

    @property
    def directory(self) -> Path:
        """Directory of the plugin."""
        return self.root / self.plugin

    @property
    def package(self) -> Path:
        """Directory of the plugin's package."""
        return self.directory / "src" / "ado_actuators" / self.plugin

    def git(self, *arguments: str) -> str:
        """Run git, which must succeed, and return its output."""
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "safe.directory=*")
        done = run("git", *identity, *arguments, cwd=self.root)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def commit(self) -> str:
        """Commit everything and return the commit's hash."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")
        return self.git("rev-parse", "HEAD").strip()

    def version(self) -> str:
        """Return the version that a build would have now."""
        with tempfile.TemporaryDirectory() as into:
            done = run(sys.executable, "-W", "ignore", "-c", METADATA.format(into), cwd=self.directory)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()[-1].removesuffix(".dist-info").removeprefix(f"{DISTRIBUTIONS[self.plugin]}-")

    def wheel(self, into: Path) -> Path:
        """Build a wheel with pip and return it."""
        done = self.try_wheel(into)
        assert done.returncode == 0, done.stdout
        (built,) = into.glob("*.whl")
        return built

    def try_wheel(self, into: Path) -> subprocess.CompletedProcess[str]:
        """Let pip build a wheel; it may fail."""
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
        return run(*pip, "--wheel-dir", into, f"./{self.plugin}", cwd=self.root)

    def unpacked_sdist(self, into: Path) -> Repository:
        """Make an sdist, unpack it, and return a copy with it in place of the plugin's directory."""
        done = run(sys.executable, "-W", "ignore", "-c", SDIST.format(into), cwd=self.directory)
        assert done.returncode == 0, done.stdout
        (made,) = into.glob("*.tar.gz")
        shutil.unpack_archive(made, into, filter="data")
        made.with_name(made.name.removesuffix(".tar.gz")).rename(into / self.plugin)
        return Repository(into, self.plugin)

    def listed(self) -> set[str]:
        """Return the expected files of a wheel: git's list of the package, with the linked core."""
        package = f"{self.plugin}/src/ado_actuators/{self.plugin}"
        names = self.git("ls-files", "-z").split("\0")
        own = {name.removeprefix(f"{self.plugin}/src/") for name in names if name.startswith(f"{package}/")}
        core = {f"ado_actuators/{self.plugin}/{name}" for name in names if name.startswith("core/")}
        return (own - {f"ado_actuators/{self.plugin}/core"}) | core


def copy(into: Path) -> None:
    """Copy the files of this repository that git lists, links as links."""
    for name in filter(None, subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name, follow_symlinks=False)


@pytest.fixture(params=list(DISTRIBUTIONS), scope="session")
def plugin(request: pytest.FixtureRequest) -> str:
    """The name of a plugin's directory and package."""
    return str(request.param)


@pytest.fixture
def repository(plugin: str, tmp_path: Path) -> Repository:
    """Make a clean temporary repository with one commit."""
    made = Repository(tmp_path / "repository", plugin)
    copy(made.root)
    made.git("init", "--quiet")
    made.commit()
    return made


@pytest.fixture(autouse=True)
def no_foreign_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that git sets for hooks, which would affect the temporary repositories."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
