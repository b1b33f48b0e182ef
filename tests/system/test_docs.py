"""What the pages tell readers to type works: their shell blocks run, page by page, in the order in which they stand.

A fenced block that begins with ``sh`` is run; one that begins with ``sh not-run: REASON`` is not, and says why. The blocks of
a page share one shell in a copy of the repository, with the plugins installed and a fresh home.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\S*) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^    (ado|pip|python3?|nox|ray|git|\.venv/bin/\w+) ", re.MULTILINE)
HARMLESS = (
    "needs a GPU",
    "needs a cluster",
    "needs MySQL",
    "needs a package index",
    "sets up an environment",
    "runs for long",
    "runs in a test of its own",
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the shell blocks of a page: what stands behind ``sh``, and the commands."""
    return [(mark, text) for language, mark, text in BLOCK.findall(page.read_text()) if language == "sh"]


RUNNABLE = [page for page in PAGES if any(mark == "" for mark, _ in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    """Each command stands in a block that is run, or in one that names a reason readers accept."""
    text = page.read_text()
    assert not COMMANDS.findall(BLOCK.sub("", text)), "commands belong into fenced sh blocks"
    for mark, commands in blocks(page):
        assert mark == "" or mark.startswith(tuple(f"not-run: {reason}" for reason in HARMLESS)), (mark, commands)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """Every block ends with status 0."""
    copy = tmp_path / "repository"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if "/examples/" in name or name.startswith("docs/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    script = "\n".join(commands for mark, commands in blocks(page) if mark == "")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=copy,
        env={
            **os.environ,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
