"""Jobs on a real Ray cluster: the commands of README.md and docs/cluster.md, and the nox sessions wheels and ray_submit."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

# distributions that the sessions build, by actuator
DISTRIBUTIONS: dict[str, str] = runpy.run_path(str(ROOT / "tools" / "ray_jobs.py"))["PLUGINS"]
DOCUMENTED_ADDRESS = "http://127.0.0.1:8265"


def documented(address: str, page: str = "docs/cluster.md", fence: str = "bash") -> list[str]:
    """Return the commands of a page, one text per block, for the cluster at ``address``."""
    blocks = re.findall(rf"^```{fence}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [block.replace(DOCUMENTED_ADDRESS, address) for block in blocks]


@pytest.fixture(scope="module")
def by_hand(head: Head, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Path]]:
    """Run the documented commands in the clone; give the output of each block, and the wheels that were built."""
    temporary = tmp_path_factory.mktemp("by-hand")
    between = "\necho '=== next ==='\n"
    script = f"export TMPDIR={temporary}\n{between.join(documented(head.address))}"
    done = head.run("bash", "-eu", "-c", script, cwd=repository, timeout_s=900)
    assert done.returncode == 0, done.stdout
    return done.stdout.split("=== next ==="), sorted(temporary.glob("*/*.whl"))


def version_of(wheel: Path) -> str:
    """Return the version in a wheel's name."""
    return wheel.name.split("-")[1]


def listed_versions(printed: str) -> dict[str, str]:
    """Return the versions of the plugins in the table of ``ado get actuators --details``."""
    rows = re.findall(r"^│ \d+ +│ (\w+) .*│ (\S+) +│$", printed, flags=re.MULTILINE)
    return {name: version for name, version in rows if name in DISTRIBUTIONS}


def test_both_wheels_by_hand(by_hand: tuple[list[str], list[Path]]) -> None:
    """The job lists both actuators with the versions of the wheels, not those of the cluster's Python."""
    (_, submitted, *_), wheels = by_hand
    built = {wheel.name.split("-")[0]: version_of(wheel) for wheel in wheels}
    assert listed_versions(submitted) == {name: built[DISTRIBUTIONS[name]] for name in DISTRIBUTIONS}
    installed = {name: importlib.metadata.version(DISTRIBUTIONS[name]) for name in DISTRIBUTIONS}
    assert [name for name in DISTRIBUTIONS if listed_versions(submitted)[name] == installed[name]] == []


def check_measured(printed: str) -> None:
    """Assert that a job's log has the result of the example's point."""
    measured = dict(re.findall(r"^(\w+) +(\S+)$", printed, flags=re.MULTILINE))
    assert (measured["is_valid"], measured["failure"], measured["model_parameters"]) == ("1", "none", "4999424")
    assert float(measured["dataset_tokens_per_second"]) > 0


def test_a_measurement_in_a_job(by_hand: tuple[list[str], list[Path]]) -> None:
    """A real measurement on the cluster's CPUs gives its result in the job's log."""
    check_measured(by_hand[0][2])


def test_an_unpacked_sdist_by_hand(by_hand: tuple[list[str], list[Path]]) -> None:
    """The directory of a source distribution installs without git, under the version of the wheel."""
    (_, _, _, submitted), wheels = by_hand
    (built,) = (version_of(wheel) for wheel in wheels if wheel.name.startswith("ado_sfttrainer-"))
    assert listed_versions(submitted)["sfttrainer"] == built


def test_the_readmes_way_by_hand(head: Head, repository: Path, by_hand: tuple[list[str], list[Path]]) -> None:
    """The README's block alone, in a clone, shows the actuator in the version of the wheel."""
    (block,) = documented(head.address, "README.md")
    done = head.run("bash", "-eu", "-c", block, cwd=repository)
    assert done.returncode == 0, done.stdout
    (built,) = (version_of(wheel) for wheel in by_hand[1] if wheel.name.startswith("ado_sfttrainer-"))
    assert listed_versions(done.stdout)["sfttrainer"] == built


def test_the_wheels_alone(head: Head, repository: Path, tmp_path: Path) -> None:
    """`nox -s wheels` makes both wheels and a runtime environment that names only them."""
    done = head.run("nox", "-s", "wheels", "--", "--into", tmp_path / "dist", cwd=repository)
    assert done.returncode == 0, done.stdout
    environment = yaml.safe_load((tmp_path / "dist" / "ray_runtime_env.yaml").read_text())
    named = [line.removeprefix("${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/") for line in environment["pip"]]
    assert [name.split("-")[0] for name in named] == list(DISTRIBUTIONS.values())
    assert sorted(named) == sorted(path.name for path in (tmp_path / "dist").glob("*.whl"))


def test_one_command(head: Head, repository: Path) -> None:
    """The two documented calls of `nox -s ray_submit`: both actuators are listed, and a point is measured."""
    blocks = documented(head.address, fence="sh not-run: runs in a test of its own")
    listing, measuring = (block for block in blocks if block.startswith("nox -s ray_submit"))
    done = head.run("bash", "-eu", "-c", listing, cwd=repository)
    assert done.returncode == 0, done.stdout
    assert set(listed_versions(done.stdout)) == set(DISTRIBUTIONS)
    done = head.run("bash", "-eu", "-c", measuring, cwd=repository)
    assert done.returncode == 0, done.stdout
    check_measured(done.stdout)


def test_an_edited_plugin_is_never_the_cached_one(
    head: Head, repository: Path, by_hand: tuple[list[str], list[Path]]
) -> None:
    """One command submits an edited tree: the job has the new versions, and its exit status and a warning come back."""
    before = listed_versions(by_hand[0][1])
    with (repository / "core" / "failures.py").open("a") as file:
        file.write("# edited\n")
    (repository / "core" / "forgotten.csv").write_text("1,2\n")
    nox: list[str | Path] = [
        sys.executable,
        "-m",
        "nox",
        "--noxfile",
        repository / "noxfile.py",
        "--session",
        "ray_submit",
    ]
    options = ["--address", head.address, "--extra", "train", "--constraint", "tests/constraints-cpu.txt"]
    command = ["--", "bash", "-c", "ado get actuators --details; exit 7"]
    done = head.run(*nox, "--", *options, *command, cwd=repository)
    assert done.returncode == 7, done.stdout
    after = listed_versions(done.stdout)
    assert set(after) == set(DISTRIBUTIONS)
    assert [name for name in after if not re.fullmatch(re.escape(before[name]) + r"\.c[0-9a-f]{12}", after[name])] == []
    assert "warning: core/forgotten.csv is not in the wheels, because git does not track it" in done.stdout
