"""The version identifies the content, and incomplete trees are rejected. On temporary repositories, without a network."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT, Repository, run

pytestmark = pytest.mark.slow

CLONE = "Clone again with `git clone -c core.symlinks=true`"


def shipped(wheel: Path) -> set[str]:
    """Return the names of a wheel's files outside its metadata."""
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


@pytest.mark.parametrize(
    "edited",
    [
        "core/workload/fields.py",
        "core/workload/models.yaml",
        "{}/pyproject.toml",
        "{}/src/ado_actuators/{}/actuator.py",
    ],
)
def test_an_edit_changes_the_version_and_its_undoing_restores_it(repository: Repository, edited: str) -> None:
    """Two contents never share a version, and one content has one version."""
    path = repository.root / edited.format(repository.plugin, repository.plugin)
    before = path.read_bytes()
    clean = repository.version()
    versions = []
    for addition in (b"# one\n", b"# two\n", b"# one\n"):
        path.write_bytes(before + addition)
        versions.append(repository.version())
    path.write_bytes(before)
    assert repository.version() == clean
    assert versions[0] == versions[2]
    assert len({clean, *versions}) == 3
    assert all(version.startswith(f"{clean}.c") for version in versions)


def test_a_file_unknown_to_git_changes_the_version(repository: Repository) -> None:
    """Setuptools ships every Python file, so an untracked one counts as an edit."""
    clean = repository.version()
    new = repository.root / "core" / "trainer" / "new.py"
    new.write_text('"""New."""\n')
    assert repository.version().startswith(f"{clean}.c")
    new.unlink()
    assert repository.version() == clean


def test_an_edit_elsewhere_keeps_the_content_hash(repository: Repository) -> None:
    """The hash covers only files that ship."""
    (repository.root / "CHANGELOG.md").write_text("edited\n")
    first = repository.version()
    (repository.root / "CHANGELOG.md").write_text("edited again\n")
    assert repository.version() == first


def test_a_commit_changes_the_version(repository: Repository) -> None:
    """The version of a clean clone has its commit."""
    first = repository.version()
    (repository.root / "CHANGELOG.md").write_text("edited\n")
    commit = repository.commit()
    assert repository.version().endswith(f"+g{commit[:9]}")
    assert repository.version() != first


def test_a_deleted_file_does_not_come_back(repository: Repository, tmp_path: Path) -> None:
    """An old build directory is not used."""
    gone = f"ado_actuators/{repository.plugin}/core/gone.py"
    old = repository.directory / "build" / "lib" / gone
    old.parent.mkdir(parents=True)
    old.write_text('"""Left by an old build."""\n')
    (repository.root / "core" / "gone.py").write_text('"""Soon deleted."""\n')
    assert gone in shipped(repository.wheel(tmp_path / "first"))
    (repository.root / "core" / "gone.py").unlink()
    assert shipped(repository.wheel(tmp_path / "second")) == repository.listed()


def test_a_data_file_ships_once_git_knows_it(repository: Repository, tmp_path: Path) -> None:
    """Other files than Python ship only after `git add`."""
    name = f"ado_actuators/{repository.plugin}/core/tables/sizes.csv"
    (repository.root / "core" / "tables").mkdir()
    (repository.root / "core" / "tables" / "sizes.csv").write_text("1,2\n")
    assert name not in shipped(repository.wheel(tmp_path / "before"))
    repository.git("add", "--all")
    assert name in shipped(repository.wheel(tmp_path / "after"))


def test_an_exported_archive_builds_completely(repository: Repository, tmp_path: Path) -> None:
    """`git archive` gives a tree without .git that knows its commit and ships everything."""
    commit = repository.git("rev-parse", "HEAD").strip()
    repository.git("archive", "--output", str(tmp_path / "a.tar"), "HEAD")
    exported = Repository(tmp_path / "exported", repository.plugin)
    with tarfile.open(tmp_path / "a.tar") as file:
        file.extractall(exported.root, filter="data")
    wheel = exported.wheel(tmp_path / "wheel")
    assert shipped(wheel) == repository.listed()
    assert f"+g{commit[:9]}.c" in wheel.name


def test_an_edited_sdist_has_another_version(repository: Repository, tmp_path: Path) -> None:
    """An unpacked sdist has its original version; an edit adds a hash, and undoing the edit removes it."""
    clean = repository.version()
    unpacked = repository.unpacked_sdist(tmp_path / "sdist")
    edited = unpacked.package / "core" / "workload" / "models.yaml"
    before = edited.read_bytes()
    assert unpacked.version() == clean
    edited.write_bytes(before + b"# edited\n")
    assert unpacked.version().startswith(f"{clean}.c")
    edited.write_bytes(before)
    assert unpacked.version() == clean


def test_a_plain_copy_is_refused(repository: Repository, tmp_path: Path) -> None:
    """Without .git and export metadata the files cannot be listed."""
    shutil.rmtree(repository.root / ".git")
    refused(repository, tmp_path, "is neither a git clone nor an exported archive")


@pytest.mark.parametrize("links", [True, False], ids=["links-kept", "links-followed"])
def test_a_plain_copy_of_a_plugins_directory_is_refused(repository: Repository, tmp_path: Path, links: bool) -> None:
    """The same holds for a copy that contains the core."""
    alone = Repository(tmp_path / "alone", repository.plugin)
    shutil.copytree(repository.directory, alone.directory, symlinks=links)
    assert (alone.package / "core").exists() is not links
    refused(alone, tmp_path, "is neither a git clone nor an exported archive")


def test_a_link_that_is_a_text_file_is_refused(repository: Repository, tmp_path: Path) -> None:
    """git checks links out as text files where it may not make links."""
    link = repository.package / "core"
    target = link.readlink()
    link.unlink()
    link.write_text(str(target))
    refused(repository, tmp_path, CLONE)


def test_a_build_that_is_a_text_file_is_refused(repository: Repository, tmp_path: Path) -> None:
    """The link to the shared build can be checked out as text as well."""
    (repository.directory / "plugin_build.py").unlink()
    (repository.directory / "plugin_build.py").write_text("../sfttrainer/plugin_build.py")
    refused(repository, tmp_path, CLONE)


def test_a_link_that_leads_nowhere_is_refused(repository: Repository, tmp_path: Path) -> None:
    """A plugin's directory alone is not enough."""
    (repository.root / "core").rename(repository.root / "moved")
    refused(repository, tmp_path, "is a link without a target")


@pytest.mark.parametrize(
    "name", ["actuator_definition.yaml", "core/trainer/__main__.py"], ids=["definition", "trainer"]
)
def test_what_a_plugin_cannot_work_without_is_not_left_out(repository: Repository, tmp_path: Path, name: str) -> None:
    """Without the definition there would be no entry point, without the trainer no measurement."""
    (repository.package / name).unlink()
    refused(repository, tmp_path, f"{name} is missing")


@pytest.mark.parametrize("plugin", ["fms_hf_tuning"], indirect=True)
def test_a_plugin_without_its_lists_is_refused(repository: Repository, tmp_path: Path) -> None:
    """At least one list of packages must be tracked, because environments are built from them."""
    repository.git("rm", "--cached", "--quiet", *map(str, (repository.package / "environments").glob("*.txt")))
    refused(repository, tmp_path, "environments would ship. Restore the lists and run `git add` for them.")


def test_a_definition_unknown_to_git_is_refused(repository: Repository, tmp_path: Path) -> None:
    """An untracked file that the plugin needs would not ship."""
    repository.git("rm", "--cached", "--quiet", str(repository.package / "actuator_definition.yaml"))
    refused(repository, tmp_path, "actuator_definition.yaml is not tracked by git, so it would not ship. Run `git add")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moduleType: actuator\n", "must have moduleName, moduleClass and moduleType: actuator"),
        ("actuator\n", "must have moduleName, moduleClass and moduleType: actuator"),
        ("moduleType: [\n", "actuator_definition.yaml is not valid YAML. Correct it."),
    ],
    ids=["without-class", "no-mapping", "no-yaml"],
)
def test_a_definition_that_names_no_class_is_refused(
    repository: Repository, tmp_path: Path, text: str, message: str
) -> None:
    """Every key of the definition is required."""
    (repository.package / "actuator_definition.yaml").write_text(text)
    refused(repository, tmp_path, message)


def test_a_tree_of_somebody_else_builds(repository: Repository) -> None:
    """A tree with another owner, as in a container, is built, although git would reject it."""
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    clean = repository.version()
    assert run("chown", "-R", "12345", repository.root, cwd=ROOT).returncode == 0
    assert repository.version() == clean


def refused(repository: Repository, tmp_path: Path, message: str) -> None:
    """Assert that pip fails, with one line of output from the build, which has ``message`` in it."""
    done = repository.try_wheel(tmp_path / "refused")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.returncode != 0
    assert "[1 lines of output]" in done.stdout, done.stdout
    assert len([line for line in lines if f"{repository.plugin} cannot be built: " in line and message in line]) == 1, (
        done.stdout
    )
    assert "Traceback" not in done.stdout
