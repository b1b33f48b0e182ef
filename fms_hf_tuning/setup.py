"""Build this plugin. Both plugins have the same file. May import the standard library, setuptools and PyYAML.

What is known beforehand stands in pyproject.toml. This file computes the rest: the version, the files that ship and the
entry point; and it refuses, in one sentence, to build a package from which something would be missing.
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

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SOURCE = HERE / "src"
NAMESPACE = SOURCE / "ado_actuators"
DEFINITION = "actuator_definition.yaml"
NOTE = "content.sha256"
NEEDED = (DEFINITION, "__main__.py", "actuator.py", "core/__init__.py", "core/workload/models.yaml", "core/trainer/__main__.py")
REMEDY = "Build from a complete clone of the repository, from an archive made by `git archive`, or from an sdist."


def refuse(reason: str, remedy: str = REMEDY) -> NoReturn:
    """End the build with one plain sentence and what to do."""
    sys.exit(f"{HERE.name} cannot be built: {reason}. {remedy}")


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints in ``folder``, or None where it cannot answer."""
    # hooks export GIT_DIR and its like, which would point git at another repository
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # in a container the tree often belongs to somebody else, and git would refuse to read it
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=clean, capture_output=True, check=False)
    except FileNotFoundError:
        if (REPOSITORY / ".git").exists():
            refuse("its files are listed by git, which is not installed", "Install git and try again.")
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None


def origin() -> str:
    """Return where this tree comes from: an ``sdist``, a ``clone`` or an exported ``archive``."""
    if (HERE / "PKG-INFO").is_file():
        return "sdist"
    top = git(REPOSITORY, "rev-parse", "--show-toplevel")
    if top is not None and Path(top.rstrip("\n")).resolve() == REPOSITORY:
        return "clone"
    archival = REPOSITORY / ".git_archival.txt"
    if archival.is_file() and "$Format" not in archival.read_text(encoding="utf-8"):
        return "archive"
    return refuse(
        f"{REPOSITORY} is neither a git clone nor an exported archive, so nobody knows which files belong to it"
    )


def listed(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that are in git's index and still exist; links to directories are followed."""
    for name in (git(folder, "ls-files", "-z") or "").split("\0"):
        path = folder / name
        if name and path.is_symlink() and path.is_dir():
            yield from listed(path)
        elif name and path.is_file():
            yield path


def present(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that no build, import or tool has left there; links are followed."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in folders if name != "__pycache__" and name[0] != "." and not name.endswith(".egg-info")
        ]
        if Path(path) == HERE:
            folders[:] = [name for name in folders if name not in {"build", "dist"}]
        yield from (Path(path, name) for name in files if not name.endswith(".pyc"))


def modules() -> set[Path]:
    """Return every Python file below ``src``: setuptools ships them whether git knows them or not."""
    return {path for path in present(SOURCE) if path.suffix == ".py"}


def plugin() -> str:
    """Return the name of the one package in the namespace."""
    found = [path.name for path in sorted(NAMESPACE.glob("*")) if (path / "__init__.py").is_file()]
    if len(found) != 1:
        refuse(f"{NAMESPACE} has to hold one package and holds {len(found)}")
    return found[0]


def check(shipped: set[Path], package: Path) -> None:
    """Refuse when a file without which the plugin cannot work would not ship."""
    core = package / "core"
    if core.is_file():
        clone = "Clone again with `git clone -c core.symlinks=true` (on Windows: in developer mode)."
        refuse(f"{core} is a text file where a link to the shared core belongs", clone)
    if not core.is_dir():
        refuse(f"{core} leads to no core, which lies beside the plugin's directory in the repository")
    for path in (package / name for name in NEEDED):
        if not path.is_file():
            refuse(f"{path} is missing")
        if path not in shipped:
            refuse(f"{path} is not known to git, so it would not ship", f"Run `git add {path}`.")
    # an actuator with ``requirements`` trains in environments that are built from lists
    actuator, lists = (package / "actuator.py").read_text(encoding="utf-8"), package / "environments"
    has_lists = any(path.parent == lists and path.suffix == ".txt" for path in shipped)
    if re.search(r"^ +requirements\b.*= *[\"']", actuator, re.MULTILINE) and not has_lists:
        refuse(f"no list of packages in {lists} would ship", "Restore the lists and run `git add` for them.")


def entry_points(package: Path) -> dict[str, list[str]]:
    """Return the actuator of the definition and the command of the package.

    They are in one place because setuptools drops the computed ones as soon as pyproject.toml has a [project.scripts] table.
    """
    try:
        definition = yaml.safe_load((package / DEFINITION).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        refuse(f"{package / DEFINITION} is not valid YAML", "Correct it.")
    keys = ("moduleName", "moduleClass", "moduleType")
    module, name, kind = (definition.get(key) if isinstance(definition, dict) else None for key in keys)
    if not module or not name or kind != "actuator":
        refuse(f"{package / DEFINITION} has to give moduleName, moduleClass and moduleType: actuator", "Correct it.")
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
    """Makes an sdist with a note of its content, by which an edit of the unpacked one is seen."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the directory that is then packed."""
        super().make_release_tree(base_dir, files)
        note = Path(base_dir, NOTE)
        # files are linked into the tree: writing would change the one they come from
        note.unlink(missing_ok=True)
        note.write_text(content(present(Path(base_dir)), Path(base_dir)), encoding="utf-8")


def version(tree: str, shipped: set[Path], unknown_to_git: bool) -> dict[str, Any]:
    """Return the arguments of setup() that settle the version.

    Ray takes a wheel's name for its content and ado stores the version beside every measurement, so two different
    contents never share a version: a clean clone has the commit in it, every other tree a hash of the content as well,
    and an unpacked sdist the version it was made with, with a hash once it was edited.
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

    return {"use_scm_version": {"root": "..", "relative_to": __file__, "local_scheme": local_scheme}}


def options(temporary: str) -> dict[str, dict[str, str]]:
    """Return where the commands work."""
    # a build/ that an earlier build has left behind would ship files that are deleted by now
    places = {"build": {"build_base": str(Path(temporary, "build"))}}
    if not os.access(SOURCE, os.W_OK):
        places["egg_info"] = {"egg_base": temporary}
    return places


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
            # the namespace itself is listed too: without it an editable install becomes an import hook
            packages=find_namespace_packages("src", exclude=["*__pycache__*"]),
            package_data={f"ado_actuators.{package.name}": [name for name in data if not name.endswith(".py")]},
            include_package_data=False,
            entry_points=entry_points(package),
            options=options(temporary),
            cmdclass={"sdist": Sdist},
        )


main()
