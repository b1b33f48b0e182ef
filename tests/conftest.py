"""What all tests share: nothing touches the user's home or the network's hub, and Ray's directories have short paths."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# setuptools replaces distutils, and fails if another library has imported the old one first; torch.compile needs setuptools
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

KEY = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its own home, before any library has read the real one."""
    # a shell without job control starts background jobs with SIGINT ignored, which what the tests start would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = Path(tempfile.mkdtemp(prefix="ado-", dir="/tmp"))
    (home / "r").mkdir()
    config.stash[KEY] = home
    if hasattr(config, "workerinput"):
        _share_environments(home, Path(os.environ["HOME"]))
    # uv's package cache is worth keeping: it holds packages, not state
    os.environ.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    os.environ.update(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / ".config"),
        XDG_CACHE_HOME=str(home / ".cache"),
        RAY_TMPDIR=str(home / "r"),
        HF_HUB_OFFLINE="1",
        # a client of a closed Ray instance that was left behind would end the whole process after a minute without its server
        RAY_gcs_rpc_server_reconnect_timeout_s="1800",
    )


def _share_environments(home: Path, of_all: Path) -> None:
    """Let processes of pytest-xdist share the environments for trainers, which take a minute to build: those of their parent's home."""
    name = Path(".cache", "ado-actuators", "environments")
    (of_all / name).mkdir(parents=True, exist_ok=True)
    (home / name).parent.mkdir(parents=True)
    (home / name).symlink_to(of_all / name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import modules that ``-m`` deselects as a whole: the libraries they import may be absent, and take seconds."""
    excluded = re.findall(r"not (torch|ray|slow)\b", config.option.markexpr or "")
    if not excluded or collection_path.suffix != ".py":
        return None
    marked = re.search(r"^pytestmark = (\[[^\]]*\]|.*)", collection_path.read_text(encoding="utf-8"), re.MULTILINE)
    return True if marked and any(f"pytest.mark.{name}" in marked[1] for name in excluded) else None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the home."""
    shutil.rmtree(config.stash[KEY], ignore_errors=True)


@pytest.fixture(scope="session")
def own_home(pytestconfig: pytest.Config) -> Path:
    """Home directory of this run."""
    return pytestconfig.stash[KEY]
