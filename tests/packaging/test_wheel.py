"""The files that ship: the same for every way of building, and exactly those that git lists. Needs the build tools, no network."""

from __future__ import annotations

import configparser
import dataclasses
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import DISTRIBUTIONS, Repository, copy, run

pytestmark = pytest.mark.slow

# setuptools-scm adds a file to wheels that are built from an sdist, and RECORD lists it
NOTES = ("RECORD", "scm_version.json", "scm_file_list.json")


@dataclasses.dataclass(frozen=True)
class Builds:
    """One commit, built in every way."""

    repository: Repository
    by_pip: Path
    by_build: Path
    via_sdist: Path
    sdist: Path


@pytest.fixture(scope="module")
def builds(plugin: str, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Build a clean clone with pip, with build in the tree, and with build through an sdist."""
    place = tmp_path_factory.mktemp("builds")
    repository = Repository(place / "repository", plugin)
    copy(repository.root)
    repository.git("init", "--quiet")
    repository.commit()
    build = (sys.executable, "-m", "build", "--no-isolation")
    for options in (("--wheel", "--outdir", place / "tree"), ("--outdir", place / "sdist")):
        done = run(*build, *options, cwd=repository.directory)
        assert done.returncode == 0, done.stdout
    (by_build,), (via_sdist,) = (place / "tree").glob("*.whl"), (place / "sdist").glob("*.whl")
    (sdist,) = (place / "sdist").glob("*.tar.gz")
    return Builds(repository, repository.wheel(place / "pip"), by_build, via_sdist, sdist)


def content(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel, without those that depend on the way of building."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith(NOTES)}


def test_pip_wheel_equals_build(builds: Builds) -> None:
    """The wheel that pip builds has the same name and files as the one from `python -m build --wheel`."""
    assert builds.by_build.name == builds.by_pip.name
    assert content(builds.by_build) == content(builds.by_pip)


def test_wheel_via_sdist_equals_wheel_in_tree(builds: Builds) -> None:
    """A wheel built from an sdist has the same files and version."""
    assert builds.via_sdist.name == builds.by_pip.name
    assert content(builds.via_sdist) == content(builds.by_pip)


def test_wheel_holds_what_git_lists(builds: Builds) -> None:
    """Every file of the package and of the linked core ships, and no other."""
    shipped = {name for name in content(builds.by_pip) if ".dist-info/" not in name}
    assert shipped == builds.repository.listed()


def test_version_names_the_commit(builds: Builds) -> None:
    """A clean clone's version ends with its commit."""
    commit = builds.repository.git("rev-parse", "HEAD")[:9]
    assert builds.by_pip.name.split("-")[1].split("+")[1] == f"g{commit}"


def test_entry_points_are_the_actuator_and_its_command(builds: Builds) -> None:
    """One leads to the class in actuator_definition.yaml, the other to the package's commands; there is no other."""
    (text,) = (text for name, text in content(builds.by_pip).items() if name.endswith("/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(text.decode())
    plugin = builds.repository.plugin
    name = {"sfttrainer": "SFTTrainer", "fms_hf_tuning": "FMSHFTuning"}[plugin]
    assert {section: dict(parser[section]) for section in parser.sections()} == {
        "ado.actuators": {plugin: f"ado_actuators.{plugin}.actuator:{name}"},
        "console_scripts": {f"ado-{plugin.replace('_', '-')}": f"ado_actuators.{plugin}.__main__:main"},
    }


def test_check_wheel_contents(builds: Builds) -> None:
    """check-wheel-contents finds no fault, and the namespace is the only top-level directory."""
    tool = Path(sys.executable).with_name("check-wheel-contents")
    done = run(
        tool,
        "--toplevel",
        "ado_actuators",
        "--package",
        builds.repository.package.parent,
        builds.by_pip,
        cwd=builds.repository.root,
    )
    assert done.returncode == 0, done.stdout


def test_an_sdist_has_files_instead_of_links(builds: Builds) -> None:
    """The sdist has the targets of links, since the repository's links lead out of the plugin's directory."""
    with tarfile.open(builds.sdist) as file:
        members = file.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    assert {"setup.py", "plugin_build.py", "LICENSE"} <= {member.name.partition("/")[2] for member in members}


def test_twine_check(builds: Builds) -> None:
    """An index accepts the metadata of wheel and sdist."""
    done = run(
        sys.executable, "-m", "twine", "check", "--strict", builds.by_pip, builds.sdist, cwd=builds.repository.root
    )
    assert done.returncode == 0, done.stdout


def test_building_leaves_no_build_directory(builds: Builds) -> None:
    """A build leaves only setuptools' egg-info, which git ignores."""
    left = builds.repository.git("status", "--porcelain", "--ignored").split()
    name = DISTRIBUTIONS[builds.repository.plugin]
    assert left == ["!!", f"{builds.repository.plugin}/src/{name}.egg-info/"]
