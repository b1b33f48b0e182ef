"""The pinned lists have hashes of their packages, and a file with another hash is not installed."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning import environments
from ado_actuators.fms_hf_tuning.core.host import environment
from ado_actuators.fms_hf_tuning.core.host.uv import EnvironmentProblem

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

LISTS = sorted(environments.HERE.glob("*.txt"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_package_has_hashes(path: Path) -> None:
    """Every package has at least one SHA-256, except the CPU build of torch, which differs between indexes."""
    requirements = path.read_text().replace("\\\n", "").splitlines()
    pins = [line for line in requirements if not line.startswith("#")]
    assert len(pins) > 50
    bare = [line for line in pins if "--hash=sha256:" not in line]
    assert bare == (["torch==2.13.0+cpu ; sys_platform == 'linux'"] if path.stem.endswith("cpu") else [])


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a wheel, and make its directory the only source of packages; return the wheel."""
    place = tmp_path / "wheels"
    place.mkdir()
    info = "tiny_hashed-1.0.dist-info"
    path = place / "tiny_hashed-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_hashed.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-hashed\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("UV_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return path


def build(tmp_path: Path, digest: str) -> Path:
    """Build the environment of a list that allows ``digest`` and one other hash."""
    path = tmp_path / "list.txt"
    path.write_text(f"tiny-hashed==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n")
    return environment.resolve(
        "managed", requirements=path, cache_dir=tmp_path / "cache", progress=lambda line: None, timeout_s=90
    )


def test_the_right_file_is_installed_without_an_index(wheel: Path, tmp_path: Path) -> None:
    """A wheel of a local directory is installed if one of the hashes matches."""
    python = build(tmp_path, hashlib.sha256(wheel.read_bytes()).hexdigest())
    subprocess.run([python, "-I", "-c", "import tiny_hashed"], check=True)


def test_a_file_with_another_hash_is_rejected(wheel: Path, tmp_path: Path) -> None:
    """A wheel with the right name and version but other content gives a message, and no environment."""
    with pytest.raises(EnvironmentProblem) as problem:
        build(tmp_path, "1" * 64)
    assert str(problem.value) == (
        "Environment list cannot be built: package tiny-hashed==1.0 has a hash that the list does not contain; "
        "check where UV_INDEX and UV_FIND_LINKS point."
    )
    assert not [place for place in (tmp_path / "cache").iterdir() if place.is_dir()]
