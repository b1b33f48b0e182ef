"""The rooms of docs/architecture.md: each file of the core is in one, and imports what that room may."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for path in sorted((ROOT / "core").rglob("*.py")) if path.name != "__init__.py"]
# packages beside the standard library
PACKAGES = {
    "arithmetic": {"pydantic", "yaml"},
    "ado": {"ado", "pydantic", "ray"},
    "Ray": {"ray"},
    "process": {"psutil", "pynvml"},
    "reporting": {"pydantic", "yaml"},
    "trainer": {
        *("accelerate", "bitsandbytes", "datasets", "huggingface_hub", "numpy", "peft", "PIL", "pyarrow"),
        *("tokenizers", "torch", "transformers", "trl", "tuning"),
    },
}
MORE_PACKAGES = {
    "core/doctor": {"packaging"},
    "core/run": {"yaml"},
    "core/reporting/canvas": {"matplotlib"},
    "core/reporting/figures": {"matplotlib"},
}
# rooms, files of other rooms, and directories
OURS = {
    "arithmetic": {"arithmetic"},
    "ado": {"ado", "arithmetic"},
    "Ray": {"Ray", "ado", "arithmetic", "process"},
    "process": {"process", "arithmetic"},
    "reporting": {"reporting", "core/workload", "core/outputs", "core/kinds"},
    "trainer": {"trainer", "core/trainer"},
}


def name(path: Path) -> str:
    """Return what a file is called: its path in the repository, without suffix."""
    return str(path.relative_to(ROOT).with_suffix(""))


def rooms() -> dict[str, str]:
    """Return the rooms of files, as the page's table has them: a pattern stands for what no line above it names."""
    found: dict[str, str] = {}
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room, files in re.findall(r"^\| (\w+) \| (`.*?) \|", page.partition("## Rooms")[2].partition("\n## ")[0], re.M):
        core, _, plugins = files.partition(";")
        # behind a colon stands what is in a pattern's files
        for pattern in re.findall(r"`([\w/*]+)`", core.partition(":")[0]):
            paths = [*(ROOT / "core").glob(f"{pattern}.py")]
            assert paths, f"the table names {pattern}, which does not exist"
            found = {name(path): room for path in paths} | found
        for pattern in re.findall(r"`(\w+)`", plugins):
            found = {name(path): room for path in ROOT.glob(f"*/src/ado_actuators/*/{pattern}.py")} | found
    return found


ROOMS = rooms()


def imports(path: Path, tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Give what a file imports, packages by name and files as ``name`` does: at its top, or inside of functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*filter(None, str(node.module or "").split("."))).resolve()
            for module in (base / alias.name for alias in node.names):
                yield name(module if module.with_suffix(".py").is_file() else base)
        elif everywhere or not _is_late(node):
            yield from imports(path, node, everywhere=everywhere)


def _is_late(node: ast.AST) -> bool:
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_each_file_of_the_core_has_a_room() -> None:
    """Who adds a file says in the table where it belongs."""
    assert [name(path) for path in FILES if name(path) not in ROOMS] == []
    assert set(ROOMS.values()) == set(PACKAGES) == set(OURS)


@pytest.mark.parametrize("file", sorted(ROOMS))
def test_a_file_imports_what_its_room_may(file: str) -> None:
    """At its top; what trains not even inside of functions, since its environment has nothing else."""
    room, path = ROOMS[file], ROOT / f"{file}.py"
    trains = room == "trainer" or file.startswith("core/trainer/")
    found = {*imports(path, ast.parse(path.read_text()), everywhere=trains)} - sys.stdlib_module_names
    ours = {one for one in found if "/" in one}
    packages, allowed = PACKAGES[room] | MORE_PACKAGES.get(file, set()), OURS[room]
    if trains:
        packages, allowed = packages & PACKAGES["trainer"], OURS["trainer"]
    assert found - ours - packages == set()
    assert {one for one in ours if not {ROOMS.get(one), one, one.rpartition("/")[0]} & allowed} == set()
