"""The user's package settings of pip, translated into uv's variables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.host import package_indexes as indexes

# output of `pip config list` of pip 26, with variables
LISTED = """\
:env:.find-links='/of/a/variable'
global.extra-index-url='\\nhttps://a/simple\\nhttps://b/simple'
global.index-url='https://all/simple'
global.timeout='60'
install.index-url='https://install/simple'
install.trusted-host="it's"
user.no-index='true'
"""


def test_settings_of_pip_become_those_of_uv() -> None:
    """Pip's index settings become uv's; settings of the user for uv take precedence."""
    said = indexes.uv_variables(
        {
            "PIP_INDEX_URL": "https://mirror/simple",
            "PIP_EXTRA_INDEX_URL": "https://a/simple https://b/simple",
            "PIP_FIND_LINKS": "/one /two",
            "VIRTUAL_ENV": "/venv",
            "PYTHONPATH": "/somewhere",
        }
    )
    assert said == {
        "PIP_INDEX_URL": "https://mirror/simple",
        "PIP_EXTRA_INDEX_URL": "https://a/simple https://b/simple",
        "PIP_FIND_LINKS": "/one /two",
        "NO_COLOR": "1",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_INDEX": "https://a/simple https://b/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/one,/two",
    }
    own = {"PIP_INDEX_URL": "https://pip", "UV_DEFAULT_INDEX": "https://uv"}
    assert indexes.uv_variables(own)["UV_DEFAULT_INDEX"] == "https://uv"


def test_files_of_pip() -> None:
    """Only package settings are taken, those for ``pip install`` first; listed variables are ignored."""
    assert indexes.parse(LISTED) == {
        "PIP_EXTRA_INDEX_URL": "https://a/simple https://b/simple",
        "PIP_INDEX_URL": "https://install/simple",
        "PIP_TRUSTED_HOST": "it's",
    }


def test_a_variable_goes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables take precedence over files, as for pip itself."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(f"print({LISTED!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    said = indexes.variables()
    assert said["UV_DEFAULT_INDEX"] == "https://variable/simple"
    assert said["UV_INDEX"] == "https://a/simple https://b/simple"


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pip or Python the result is empty, and no error is raised."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text("raise SystemExit('No module named pip')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert indexes.pip_files() == {}
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    assert indexes.pip_files() == {}


@pytest.mark.parametrize(("value", "options"), [("1", ["--no-index"]), ("true", ["--no-index"]), ("0", []), ("", [])])
def test_without_an_index(value: str, options: list[str]) -> None:
    """PIP_NO_INDEX becomes an option, because uv has no such variable."""
    assert indexes.options({"PIP_NO_INDEX": value}) == options
