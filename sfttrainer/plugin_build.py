"""Builds the plugin in the directory of this file, or of a link to it. Imports the standard library, setuptools and PyYAML.

pyproject.toml holds the static metadata. This file adds what neither setuptools nor setuptools-scm does:

* a version that names the content: two different trees never share a version (``version``);
* a list of files that follows the link to the shared core, in clones, archives and sdists (``listed``, ``present``);
* entry points computed from the actuator's definition (``entry_points``);
* an error with one message instead of a package that lacks files (``check``).
"""

from __future__ import annotations

import email.parser
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from setuptools import find_namespace_packages, setup
from setuptools.command.sdist import sdist

# not resolved: the file may be a link, and the directory of the link is the plugin
HERE = Path(__file__).absolute().parent
REPOSITORY = HERE.parent
SOURCE = HERE / "src"
NAMESPACE = SOURCE / "ado_actuators"
DEFINITION = "actuator_definition.yaml"
NOTE = "content.sha256"
NEEDED = (
    DEFINITION,
    "__main__.py",
    "actuator.py",
    "description.py",
    "core/__init__.py",
    "core/workload/models.yaml",
    "core/trainer/__main__.py",
)
REMEDY = "Build from a complete clone of the repository, from an archive made by `git archive`, or from an sdist."


def refuse(reason: str, remedy: str = REMEDY) -> NoReturn:
    """End the build with one message: what is wrong and what to do."""
    sys.exit(f"{HERE.name} cannot be built: {reason}. {remedy}")


def git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in ``folder``, or None if git fails."""
    # hooks set GIT_DIR and similar variables, which would make git use another repository
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # in a container the tree often has another owner, and git refuses to read it without this setting
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=clean, capture_output=True, check=False)
    except FileNotFoundError:
        if (REPOSITORY / ".git").exists():
            refuse("git lists its files and is not installed", "Install git and try again.")
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None


def origin() -> str:
    """Return the kind of this tree: an ``sdist``, a ``clone`` or an exported ``archive``."""
    if (HERE / "PKG-INFO").is_file():
        return "sdist"
    top = git(REPOSITORY, "rev-parse", "--show-toplevel")
    if top is not None and Path(top.rstrip("\n")).resolve() == REPOSITORY.resolve():
        return "clone"
    archival = REPOSITORY / ".git_archival.txt"
    if archival.is_file() and "$Format" not in archival.read_text(encoding="utf-8"):
        return "archive"
    return refuse(f"{REPOSITORY} is neither a git clone nor an exported archive, so its files cannot be listed")


def listed(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that are in git's index and still exist; links to directories are followed.

    setuptools-scm's file finder (``setuptools.command.sdist.walk_revctrl``) lists the same files in an ordinary clone. It is
    not used because it refuses a tree with another owner, lists nothing if a subdirectory of an exported archive is
    built, and is deprecated since setuptools-scm 10.3.
    """
    for name in (git(folder, "ls-files", "-z") or "").split("\0"):
        path = folder / name
        if name and path.is_symlink() and path.is_dir():
            yield from listed(path)
        elif name and path.is_file():
            yield path


def present(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` except those that builds, imports and tools create; links are followed."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in folders if name != "__pycache__" and name[0] != "." and not name.endswith(".egg-info")
        ]
        if Path(path) == HERE:
            folders[:] = [name for name in folders if name not in {"build", "dist"}]
        yield from (Path(path, name) for name in files if not name.endswith(".pyc"))


def modules() -> set[Path]:
    """Return every Python file below ``src``: setuptools ships them whether git tracks them or not."""
    return {path for path in present(SOURCE) if path.suffix == ".py"}


def plugin() -> str:
    """Return the name of the one package in the namespace."""
    found = [path.name for path in sorted(NAMESPACE.glob("*")) if (path / "__init__.py").is_file()]
    if len(found) != 1:
        refuse(f"{NAMESPACE} must contain one package and contains {len(found)}")
    return found[0]


def check(shipped: set[Path], package: Path) -> None:
    """End the build if a file that the plugin needs would not ship."""
    core = package / "core"
    if core.is_file():
        clone = "Clone again with `git clone -c core.symlinks=true` (on Windows: in developer mode)."
        refuse(f"{core} is a text file and must be a link to the shared core", clone)
    if not core.is_dir():
        refuse(f"{core} is a link without a target; expected core beside the plugin's directory")
    for path in (package / name for name in NEEDED):
        if not path.is_file():
            refuse(f"{path} is missing")
        if path not in shipped:
            refuse(f"{path} is not tracked by git, so it would not ship", f"Run `git add {path}`.")
    # a plugin with ``requirements`` trains in environments that are built from pinned lists
    description, lists = (package / "description.py").read_text(encoding="utf-8"), package / "environments"
    has_lists = any(path.parent == lists and path.suffix == ".txt" for path in shipped)
    if re.search(r"^ +requirements\b.*= *\S", description, re.MULTILINE) and not has_lists:
        refuse(f"no list of packages in {lists} would ship", "Restore the lists and run `git add` for them.")


def entry_points(package: Path) -> dict[str, list[str]]:
    """Return the entry points of the actuator and of the command.

    They are in one place because setuptools drops the computed ones as soon as pyproject.toml has a [project.scripts] table.
    """
    try:
        definition = yaml.safe_load((package / DEFINITION).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        refuse(f"{package / DEFINITION} is not valid YAML", "Correct it.")
    keys = ("moduleName", "moduleClass", "moduleType")
    module, name, kind = (definition.get(key) if isinstance(definition, dict) else None for key in keys)
    if not module or not name or kind != "actuator":
        refuse(f"{package / DEFINITION} must have moduleName, moduleClass and moduleType: actuator", "Correct it.")
    command = f"ado-{package.name.replace('_', '-')} = ado_actuators.{package.name}.__main__:main"
    return {"ado.actuators": [f"{package.name} = {module}:{name}"], "console_scripts": [command]}


def content(files: Iterable[Path], folder: Path = HERE) -> str:
    """Return a short hash of the names, below ``folder``, and the content of ``files``."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(
            f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape")
        )
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Sdist(sdist):
    """Adds a hash of the content, so that a build of the unpacked sdist notices an edit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the directory that setuptools then packs."""
        # setuptools adds setup.py, but not the file that it runs
        super().make_release_tree(base_dir, sorted({*files, Path(__file__).name}))
        note = Path(base_dir, NOTE)
        # setuptools hard-links files into the tree: writing in place would change the original
        note.unlink(missing_ok=True)
        note.write_text(content(present(Path(base_dir)), Path(base_dir)), encoding="utf-8")


def version(tree: str, shipped: set[Path], unknown_to_git: bool) -> dict[str, Any]:
    """Return the arguments of setup() that set the version.

    Ray caches a wheel under its name, and ado stores the version beside every measurement, so two different contents must
    not share a version. A clean clone has the commit in its version; every other tree has a hash of the content as well;
    an unpacked sdist has its original version, plus a hash if it was edited. No version scheme of setuptools-scm
    hashes the content: its date and time stamps repeat, or differ between the metadata and the wheel of one build.
    """
    if tree == "sdist":
        with (HERE / "PKG-INFO").open(encoding="utf-8") as file:
            made: str = email.parser.HeaderParser().parse(file)["Version"]
        note, now = HERE / NOTE, content(shipped - {HERE / NOTE})
        unchanged = note.is_file() and note.read_text(encoding="utf-8") == now
        return {"version": made if unchanged else f"{made}{'.' if '+' in made else '+'}c{now}"}

    def local_scheme(found: Any) -> str:
        commit = f"+g{(found.node or '0').removeprefix('g')[:9]}"
        clean = tree == "clone" and not found.dirty and not unknown_to_git
        return commit if clean else f"{commit}.c{content(shipped)}"

    return {"use_scm_version": {"root": "..", "relative_to": str(HERE / "setup.py"), "local_scheme": local_scheme}}


def options(temporary: str) -> dict[str, dict[str, str]]:
    """Return the directories in which setuptools' commands work."""
    # an old build/ would ship files that have been deleted since
    directories = {"build": {"build_base": str(Path(temporary, "build"))}}
    if not os.access(SOURCE, os.W_OK):
        directories["egg_info"] = {"egg_base": temporary}
    return directories


def main() -> None:
    """Build the plugin."""
    tree = origin()
    package = NAMESPACE / plugin()
    known = set(listed(HERE) if tree == "clone" else present(HERE))
    shipped = known | modules()
    check(shipped, package)
    data = [path.relative_to(package).as_posix() for path in sorted(shipped) if path.is_relative_to(package)]
    with tempfile.TemporaryDirectory() as temporary:
        setup(
            **version(tree, shipped, unknown_to_git=shipped != known),
            package_dir={"": "src"},
            # includes the namespace itself; otherwise an editable install would use an import hook
            packages=find_namespace_packages("src", exclude=["*__pycache__*"]),
            package_data={f"ado_actuators.{package.name}": [name for name in data if not name.endswith(".py")]},
            include_package_data=False,
            entry_points=entry_points(package),
            options=options(temporary),
            cmdclass={"sdist": Sdist},
        )


main()
