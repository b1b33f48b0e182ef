"""The commands on the pages work: their shell blocks run, page by page, in order.

A fenced block that begins with ``sh`` is run; one that begins with ``sh not-run: REASON`` is not, and says why. The blocks of
a page share one shell in a repository of its own, with the plugins installed and a new home: those of a README in its directory,
those of ``docs/`` in the root. ``SHORTER`` reduces what they measure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.host import package_indexes as indexes

from ..processes import RAY_TOO_SLOW, run
from .conftest import commit, copy, own_environ

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("README.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("*/src/**/README.md"),
        *ROOT.glob("examples/*/**/README.md"),
    ]
)
BLOCK = re.compile(r"^```(\S*) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^    (?:\$ )?(ado|pip|python3?|nox|ray|git|\.venv/bin/\w+) ", re.MULTILINE)
HARMLESS = (
    "needs a GPU",
    "needs a cluster",
    "needs MySQL",
    "runs in a test of its own",
    "runs in a session of its own",
    "runs for ten minutes or more each",
    "needs packages that the tests do not install",
    "takes minutes",
    "would run itself",
)
# in the examples and the commands: shorter measurements, of two steps at least, since one has no interval; studies of one length, of
# one estimate; a smaller GPU, whose largest batch is estimated in half the time
SHORTER = {
    re.compile(r"^( *)(- property:\s+\{?identifier: )stop_after_seconds(\}?\n *value: )\d+", re.MULTILINE): (
        r"\g<1>\g<2>stop_after_seconds\g<3>1\n\g<1>\g<2>min_steps\g<3>2"
    ),
    re.compile(r"^stop_after_seconds: \d+", re.MULTILINE): "stop_after_seconds: 1\nmin_steps: 2",
    re.compile(r"stop_after_seconds=\d+"): "stop_after_seconds=1 min_steps=2",
    re.compile(r"\[llama3.2-1b, granite-3.1-2b, llama3.1-8b\]"): "[llama3.2-1b]",
    re.compile(r"values: \[32, 64, 128\]"): "values: [32]",
    re.compile(r"values: \[64, 128\]"): "values: [64]",
    re.compile(r"values: \[128, 256\]"): "values: [128]",
    re.compile(r"values: \[full, lora\]"): "values: [lora]",
    re.compile(r"values: \[false, true\]"): "values: [true]",
    re.compile(r"NVIDIA-H100-80GB-HBM3"): "Tesla-T4",
}
# the CPU build of torch, unless the user has configured a source of packages
CPU_TORCH = {"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the shell blocks of a page: the text after ``sh``, and the commands."""
    return [(mark, text) for language, mark, text in BLOCK.findall(page.read_text()) if language == "sh"]


def shortened(text: str) -> str:
    """Return a file or commands with less to measure."""
    for long, short in SHORTER.items():
        text = long.sub(short, text)
    return text


def name(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


RUNNABLE = [page for page in PAGES if any(mark == "" for mark, _ in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    """Each command is in a block that is run, or in one with a known reason."""
    text = page.read_text()
    assert not COMMANDS.findall(BLOCK.sub("", text)), "commands belong into fenced sh blocks"
    for mark, commands in blocks(page):
        assert mark == "" or mark.startswith(tuple(f"not-run: {reason}" for reason in HARMLESS)), (mark, commands)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """Every block ends with status 0."""
    script = shortened("\n".join(commands for mark, commands in blocks(page) if mark == ""))
    here = page.parent.relative_to(ROOT) if page.name == "README.md" else "."
    for attempt in ("first", "second"):
        done = run_page(script, tmp_path / attempt, here)
        # on a crowded machine; the quickstart itself tries twice
        if done.returncode == 0 or RAY_TOO_SLOW not in done.stdout + done.stderr:
            break
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def run_page(script: str, directory: Path, here: Path | str) -> subprocess.CompletedProcess[str]:
    """Run a script in a directory of a new repository, with a new home."""
    repository, home = directory / "repository", directory / "home"
    home.mkdir(parents=True)
    copy(repository)
    for file in repository.rglob("examples/**/*.yaml"):
        file.write_text(shortened(file.read_text()))
    commit(repository)
    environ = {
        **({} if "UV_FIND_LINKS" in indexes.variables() else CPU_TORCH),
        **own_environ(),
        "PIP_CONSTRAINT": str(ROOT / "tests" / "constraints-cpu.txt"),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        # Python compiles what it imports, which is a tenth of what pip would compile
        "PIP_NO_COMPILE": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    return run(command, cwd=repository / here, env=environ, timeout_s=580, attempts=1)
