"""A measurement that must fail is refused before its trainers are started."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host import host, preflight
from ado_actuators.sfttrainer.core.measurement import distribution
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
from ado_actuators.sfttrainer.core.workload.validation import parse


def job(**change: object) -> Job:
    """Return a job of a tiny model."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 1, "number_gpus": 0, **change}
    return Job(id="t", workload=JobWorkload(**parse(values).model_dump()))


def test_a_missing_data_file_starts_no_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome has the message, and no process was started."""
    monkeypatch.setattr(host, "TrainerProcess", None)
    spec = host.HostSpec("managed", None, processes=1, gpus=0, threads=1, state_dir=str(tmp_path))
    outcome = host.Host(spec).measure(job(dataset_id="/nowhere/data.jsonl"), 10.0)
    assert outcome.cause is not None
    assert outcome.cause.message.startswith("Data set '/nowhere/data.jsonl' does not exist; use synthetic-fixed, ")


def test_an_estimate_reads_no_data() -> None:
    """It traces tensors without values."""
    asked = Job(id="t", workload=job(dataset_id="/nowhere/data.jsonl").workload, task="memory_estimate")
    preflight.check(asked, "managed")


def test_the_missing_packages_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the Python of this process is looked at: another environment reports what it lacks itself."""
    monkeypatch.setattr(preflight, "lacking", lambda plugin, extra: ["torch", "trl"])
    monkeypatch.setattr(preflight, "install_command", lambda plugin, extra: f"pip install './{plugin}[{extra}]'")
    with pytest.raises(failures.BadInput) as refused:
        preflight.check(job(), "current")
    assert str(refused.value) == (
        "The training stack is not installed (torch, trl): pip install './sfttrainer[train]' installs it."
    )
    preflight.check(job(), "/some/python")


def test_packages_that_cannot_be_imported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the extra only; a plugin that is not installed says nothing about its extras."""
    asked = ["psutil", 'no-such-package>=1; extra == "train"', 'psutil; extra == "train"', 'other; extra == "report"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert distribution.lacking("sfttrainer", "train") == ["no-such-package"]

    def unknown(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert distribution.lacking("sfttrainer", "train") == []


def test_the_command_names_the_directory_that_pip_installed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is still there and its path is short; else the directory in a clone."""

    class Installed:
        def __init__(self, text: str | None) -> None:
            self._text = text

        def read_text(self, name: str) -> str | None:
            return self._text

    (tmp_path / "p").mkdir()
    for text, expected in [
        (f'{{"url": "file://{tmp_path}/p"}}', "pip install './sfttrainer[train]'"),
        (None, "pip install './sfttrainer[train]'"),
        ("no JSON", "pip install './sfttrainer[train]'"),
    ]:
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name, text=text: Installed(text))
        assert distribution.install_command("sfttrainer", "train") == expected
    (tmp_path / "p" / "pyproject.toml").write_text("")
    monkeypatch.setattr(distribution, "_LONGEST_PATH", 1000)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed(f'{{"url": "file://{tmp_path}/p"}}'))
    assert distribution.install_command("sfttrainer", "train") == f"pip install '{tmp_path}/p[train]'"
    assert distribution.beside("sfttrainer", "q") == "./q"
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "pyproject.toml").touch()
    assert distribution.beside("sfttrainer", "q") == f"{tmp_path}/q", "the other plugin's directory, from anywhere"
