"""The packages that a job installs, and the files that are missing from a wheel."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
HERE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


def load() -> Any:
    """Import the tool, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("ray_jobs", ROOT / "tools" / "ray_jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ray_jobs"] = module
    spec.loader.exec_module(module)
    return module


ray_jobs = load()


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Write two wheels with metadata; the first has an extra."""
    made = []
    for name, extra in (("ado_sfttrainer-1-py3-none-any", "Provides-Extra: train\n"), ("ado_other-2-py3-none-any", "")):
        made.append(tmp_path / f"{name}.whl")
        with zipfile.ZipFile(made[-1], "w") as file:
            file.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.4\nName: x\n{extra}\ntext\n")
    return made


def test_plain_wheels(tmp_path: Path, wheels: list[Path]) -> None:
    """Each wheel is one entry of Ray's list."""
    assert ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions()) == {
        "pip": [f"{HERE}/ado_sfttrainer-1-py3-none-any.whl", f"{HERE}/ado_other-2-py3-none-any.whl"],
        "env_vars": {"COLUMNS": "200"},
    }


def test_extras_go_to_the_wheels_that_offer_them(tmp_path: Path, wheels: list[Path]) -> None:
    """A plugin without the extra is installed without it."""
    environment = ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions(extras=("train",)))
    assert environment["pip"] == [
        f"{HERE}/ado_sfttrainer-1-py3-none-any.whl[train]",
        f"{HERE}/ado_other-2-py3-none-any.whl",
    ]


def test_an_extra_that_nobody_offers_is_refused(tmp_path: Path, wheels: list[Path]) -> None:
    """An unknown extra is an error, although pip would only warn."""
    with pytest.raises(ray_jobs.Refused) as caught:
        ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions(extras=("trian",)))
    assert str(caught.value) == "No wheel has the extra 'trian'; available: train."


def test_constraints_are_named_after_their_content(tmp_path: Path, wheels: list[Path]) -> None:
    """Ray caches by line, so different constraints need different file names; the file is in the directory of the wheels."""
    lines = []
    for content in ("torch==2.13.0\n", "torch==2.12.0\n", "torch==2.13.0\n"):
        (tmp_path / "given.txt").write_text(content)
        lines.append(
            ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions(constraint=tmp_path / "given.txt"))["pip"][0]
        )
        assert (tmp_path / lines[-1].removeprefix(f"--constraint {HERE}/")).read_text() == content
    assert lines[0] == lines[2] != lines[1]


def test_lines_and_options_of_pip(tmp_path: Path, wheels: list[Path]) -> None:
    """Additional lines come before the wheels; options are added to Ray's own."""
    given = ray_jobs.JobOptions(lines=("--find-links /wheels",), options=("--no-build-isolation",))
    assert ray_jobs.runtime_env(tmp_path, wheels[1:], given)["pip"] == {
        "packages": ["--find-links /wheels", f"{HERE}/ado_other-2-py3-none-any.whl"],
        "pip_install_options": ["--disable-pip-version-check", "--no-cache-dir", "--no-build-isolation"],
    }


def test_variables_of_the_job(tmp_path: Path, wheels: list[Path]) -> None:
    """Variables are added to COLUMNS and may override it; one without a value is rejected."""
    given = ray_jobs.JobOptions(variables=("COLUMNS=99", "UV_FIND_LINKS=/a=b"))
    environment = ray_jobs.runtime_env(tmp_path, wheels, given)
    assert environment["env_vars"] == {"COLUMNS": "99", "UV_FIND_LINKS": "/a=b"}
    with pytest.raises(ray_jobs.Refused, match="--env UV-OFFLINE is not valid; expected NAME=VALUE or NAME"):
        ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions(variables=("UV-OFFLINE=1",)))


def test_a_variable_without_value_is_taken_from_the_nodes(tmp_path: Path, wheels: list[Path]) -> None:
    """The value is neither in the file nor in the job's metadata, because Ray inserts it on the node."""
    environment = ray_jobs.runtime_env(tmp_path, wheels, ray_jobs.JobOptions(variables=("HF_TOKEN",)))
    assert environment["env_vars"]["HF_TOKEN"] == "${HF_TOKEN}"


def test_secrets_that_the_metadata_would_show_are_found() -> None:
    """The warning names the option, not the secret."""
    additions = ray_jobs.JobOptions(
        variables=("HF_TOKEN=hf_0123456789abcdef", "COLUMNS=99", "WANDB_API_KEY"),
        lines=("numpy<3", "--extra-index-url https://me:password123@example.org/simple"),
        options=("--index-url=https://${USER}:${TOKEN}@example.org/simple",),
    )
    assert ray_jobs.exposed_secrets(additions) == ["--env HF_TOKEN", "--pip"]


def test_the_runtime_environment_is_its_owners(tmp_path: Path) -> None:
    """A file with other permissions, or a link, is replaced."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    path = tmp_path / "ray_runtime_env.yaml"
    path.symlink_to(elsewhere)
    ray_jobs._write_private(path, "pip: []")
    assert path.stat().st_mode & 0o777 == 0o600
    assert (path.read_text(), elsewhere.read_text()) == ("pip: []", "kept")


def test_files_that_git_does_not_know(tmp_path: Path) -> None:
    """Data below a plugin or the core is missing from wheels, Python files are included anyway; files that git ignores are not reported."""
    for name in ("core/a.csv", "core/b.py", "core/c.tmp", "sfttrainer/src/x/d.yaml", "sfttrainer/e.txt", "tests/f.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content\n")
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert ray_jobs.not_added(["sfttrainer"], tmp_path) == ["core/a.csv", "core/b.py", "sfttrainer/src/x/d.yaml"]
    subprocess.run(["git", "add", "core/a.csv", "core/b.py"], cwd=tmp_path, check=True)
    assert ray_jobs.not_added(["sfttrainer"], tmp_path) == ["sfttrainer/src/x/d.yaml"]


def test_without_git_nothing_is_known_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported archive builds where git is not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ray_jobs.not_added(["sfttrainer"], ROOT) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "http://127.0.0.1:1"], "Give the command after --, such as: -- ado get actuators --details"),
        (["--address", "http://127.0.0.1:1", "--file", "absent", "--", "ls"], "absent is not a file."),
    ],
)
def test_bad_use_of_submit(arguments: list[str], message: str) -> None:
    """One message and exit status 2, before anything is built."""
    tool = [sys.executable, str(ROOT / "tools" / "ray_jobs.py"), "submit", *arguments]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", message)


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    """Without a cluster at the address, one message names it."""
    with pytest.raises(ray_jobs.Refused) as caught:
        ray_jobs.submit("http://127.0.0.1:1", tmp_path, {}, ["ls"])
    assert str(caught.value).startswith("http://127.0.0.1:1 does not accept the job: ")
    assert len(str(caught.value)) <= 200


class Cluster:
    """A client whose log is interrupted, and which returns ``answers`` one per call, the last one repeatedly."""

    def __init__(self, *answers: Any, log: Exception | None = None) -> None:
        self.answers = list(answers)
        self.log = log

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """Return two lines, then raise."""
        yield "one\n"
        yield "two\n"
        if self.log:
            raise self.log

    def get_job_info(self, job: str) -> Any:
        """Return or raise the next answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def state(status: str, message: str | None = None, code: int | None = None) -> SimpleNamespace:
    """Return the status of a job as a cluster returns it."""
    return SimpleNamespace(status=JobStatus(status), message=message, driver_exit_code=code)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pause between two calls."""
    monkeypatch.setattr(ray_jobs, "POLL_S", 0.0)
    monkeypatch.setattr(ray_jobs, "RETRY_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_log_that_breaks_off_does_not_end_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is requested until the job ends, also after failed calls; the result is its exit status."""
    lost = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    answers = (state("RUNNING"), ConnectionError("refused"), RuntimeError(""), state("RUNNING"), state("SUCCEEDED"))
    assert ray_jobs.follow(Cluster(*answers, log=lost), "job_1", "http://here") == 0
    printed = capsys.readouterr()
    assert printed.out == "one\ntwo\n"
    assert printed.err == (
        "The log is interrupted (WebSocket connection closed unexpectedly with close code 1006); the job continues. "
        "For the complete log: ray job logs --address http://here job_1\n"
    )


@pytest.mark.usefixtures("at_once")
def test_a_cluster_that_answers_no_more() -> None:
    """After several attempts one message has the last reason and the command for the status."""
    with pytest.raises(ray_jobs.Refused) as caught:
        ray_jobs.follow(Cluster(state("RUNNING"), ConnectionError("refused\nat length")), "job_1", "http://here")
    assert str(caught.value) == (
        "http://here does not answer: refused. Check the job later with: ray job status --address http://here job_1"
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (state("FAILED", "exit code 7\nlog", 7), 7, "job job_1 failed: exit code 7\n"),
        (state("FAILED", ""), 1, "job job_1 failed: no reason given\n"),
        (
            state(
                "FAILED",
                "runtime_env setup failed: Failed to set up runtime environment.\nTraceback\n/usr/bin/python3: No module named pip\n",
            ),
            1,
            "job job_1 failed: runtime_env setup failed: Failed to set up runtime environment. … /usr/bin/python3: No module named pip\n",
        ),
        (state("STOPPED"), 1, "job job_1 stopped: no reason given\n"),
    ],
)
def test_a_job_that_fails(capsys: pytest.CaptureFixture[str], answer: Any, code: int, said: str) -> None:
    """The exit status of the job, or 1 if it has none, and the first line of its message; of a failed environment the last, too."""
    assert ray_jobs.follow(Cluster(answer), "job_1", "http://here") == code
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("at_once")
def test_a_job_that_is_being_installed_is_mentioned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its log begins; a call that fails is left out."""
    monkeypatch.setattr(ray_jobs, "HEARTBEAT_S", 0.01)
    answers = [state("PENDING"), ConnectionError("refused"), state("PENDING"), state("SUCCEEDED")]

    class Installing(Cluster):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            while len(self.answers) > 1:
                await asyncio.sleep(0.01)
            yield "one\n"

    assert ray_jobs.follow(Installing(*answers), "job_1", "http://here") == 0
    printed = capsys.readouterr()
    assert printed.out == "one\n"
    assert printed.err.splitlines() == 2 * ["job job_1: installing its packages on the cluster, 0 s"]
