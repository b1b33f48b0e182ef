"""The state directory: unusable ones, and one that two users share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.host import environment, state_dir, trainer_process
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(120)]

WORKLOAD = {"model_name": "tiny-llama-5m", "model_max_length": 16, "batch_size": 1, "number_gpus": 0}
NOBODY = 65534


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in place of the directory gives a message that names it, and no second attempt."""
    state = tmp_path / "state"
    state.write_text("")
    plan = make_plan("sfttrainer", "finetune_full_benchmark", WORKLOAD)
    with Local(SFTTrainer.plugin(), SFTTrainerParameters(), state) as local:
        verdict = local.measure(plan)
    message = f"The state directory {state} is not writable: Not a directory. Set state_dir to another directory."
    assert verdict.message == message
    assert verdict.metadata["attempts"] == 1


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make a directory that all users of this machine can read and only this one can write."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory(prefix="shared-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        (Path(name) / "list.txt").write_text("six==1.17.0\n")
        yield Path(name)


def as_nobody(shared: Path) -> str:
    """Resolve the shared list in a child process of another user; return the interpreter or the message."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            answer = str(resolve(shared))
        except BaseException as problem:
            answer = str(problem)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answers:
        return answers.read()


def resolve(shared: Path) -> Path:
    """Return the interpreter of the shared list's environment."""
    return environment.resolve(
        "managed", requirements=shared / "list.txt", cache_dir=shared / "cache", progress=lambda line: None
    )


def test_two_users_share_a_built_environment(shared: Path) -> None:
    """An environment built by one user is used by another without write access."""
    python = Path(os.path.realpath(sys.executable))
    if not all(place.stat().st_mode & 0o001 for place in (python, *python.parents)):
        pytest.skip("this Python is its owner's alone, so an environment made of it is too")
    built = resolve(shared)
    assert as_nobody(shared) == str(built)


def test_another_user_cannot_build_where_he_may_not_write(shared: Path) -> None:
    """A missing environment in another user's cache gives a message."""
    (shared / "cache").mkdir(mode=0o755)
    assert as_nobody(shared) == f"The environment cannot be built in {shared / 'cache'}: Permission denied."


@pytest.mark.parametrize(("mode", "expected"), [(0o755, 0o700), (0o775, 0o1777), (0o1777, 0o1777)])
def test_files_of_measurements_are_private(mode: int, expected: int, tmp_path: Path) -> None:
    """Logs and run files belong to their user; in a shared state directory every user can write."""
    tmp_path.chmod(mode)
    made = state_dir.make_subdirectory(tmp_path, "logs")
    assert made.stat().st_mode & 0o7777 == expected
    assert state_dir.make_subdirectory(tmp_path, "logs") == made


def test_a_link_of_another_user_is_rejected(shared: Path, tmp_path: Path) -> None:
    """A link of another user is rejected, because logs would overwrite its target."""
    (shared / "logs").symlink_to(tmp_path)
    os.lchown(shared / "logs", NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="logs is a symbolic link of another user"):
        state_dir.make_subdirectory(shared, "logs")


def test_a_log_is_a_new_file(tmp_path: Path) -> None:
    """An existing link or file with the name of a log is not changed, and a log has mode 0600."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (tmp_path / "planted").symlink_to(kept)
    for name in ("planted", "new"):
        read, write = os.pipe()
        os.write(write, b"output")
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            trainer_process.LogWriter(tmp_path / name).pump(stream)
    assert kept.read_text() == "kept"
    assert (tmp_path / "new").read_text() == "output"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
