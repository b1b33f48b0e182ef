"""How a host handles faults of a trainer, with real processes of a stack that misbehaves as a job's ``dataset_text_field`` says."""

from __future__ import annotations

import dataclasses
import importlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from .conftest import alive, descendants, job, measure, note

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_quiet_measurement(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """Without a fault there is a record and no cause."""
    outcome, _ = measure(faulty, tmp_path, make_host, "none")
    assert outcome.cause is None
    assert len(outcome.records[0]["step_end_s"]) == 25


def test_an_error_after_training_says_so(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """Reading the trained model back is a part of its own; the message does not name the last step."""
    outcome, _ = measure(faulty, tmp_path, make_host, "error while reporting")
    assert outcome.cause.message.startswith("While reading back what was trained: ValueError: no configuration; log: ")


# the injected fault; the expected group of its cause; its name in docs/reliability.md
FAULTS = {
    "kill while loading": ("transient", "trainer killed while it loads the model"),
    "kill in step 1": ("transient", "trainer killed in step 1"),
    "kill in step 20": ("transient", "trainer killed in step 20"),
    "kill while reporting": ("transient", "trainer killed while it reports"),
    "segfault": ("transient", "segmentation fault"),
    "garbage": ("broken", "garbage where a record is expected"),
    "oom": ("cannot run", "CUDA out of memory (its text)"),
    "address space": ("cannot run", "host out of memory (address-space limit)"),
}


@pytest.fixture(scope="module")
def lasting(faulty: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return one host for all these faults, one after the other."""
    state = tmp_path_factory.mktemp("state")
    host = faulty.host.Host(faulty.host.HostSpec("current", None, processes=1, gpus=0, threads=1, state_dir=str(state)))
    yield host
    host.close()


@pytest.mark.parametrize("what", FAULTS)
def test_a_trainer_that_fails_is_noticed_at_once(
    faulty: SimpleNamespace, tmp_path: Path, lasting: Any, what: str, record_property: Any
) -> None:
    """Killed, crashed, invalid output or out of memory: the right group, one message, within seconds, and no process or file is left."""
    group, name = FAULTS[what]
    outcome = lasting.measure(job(faulty, tmp_path, what, lasting), 60)
    seconds = outcome.total_s - outcome.startup_s
    assert outcome.cause is not None
    assert outcome.cause.group == group, outcome.cause
    assert 0 < len(outcome.cause.message) <= 200
    assert seconds < 15
    assert descendants() == []
    assert not (tmp_path / "run").exists()
    note(record_property, tmp_path, name, outcome, seconds)


def test_the_host_of_all_these_faults_still_measures(faulty: SimpleNamespace, tmp_path: Path, lasting: Any) -> None:
    """After many failures of its trainers, the same host still measures."""
    assert lasting.measure(job(faulty, tmp_path, "none", lasting), 60).cause is None
    lasting.close()


def test_a_trainer_killed_while_importing(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """A trainer that ends while starting is noticed at once, and the next measurement starts another."""
    monkeypatch.setenv("FAULTY_IMPORT", "1")
    host = make_host()
    outcome = host.measure(job(faulty, tmp_path, "none", host), 60)
    assert outcome.cause.group == "transient"
    assert descendants() == []
    note(record_property, tmp_path, "trainer killed while it imports", outcome, outcome.total_s)
    monkeypatch.delenv("FAULTY_IMPORT")
    assert host.measure(job(faulty, tmp_path, "none", host), 60).cause is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 256 kB; skip where that is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_costs_the_log_only(
    faulty: SimpleNamespace, tmp_path: Path, small_disk: Path, record_property: Any
) -> None:
    """When the disk is full, the log stops and the measurement succeeds."""
    spec = faulty.host.HostSpec("current", None, processes=1, gpus=0, threads=1, state_dir=str(small_disk))
    host = faulty.host.Host(spec)
    outcome = host.measure(job(faulty, tmp_path, "flood", host), 60)
    host.close()
    assert outcome.cause is None
    assert shutil.disk_usage(small_disk).free == 0
    note(record_property, tmp_path, "disk full in the log", outcome, outcome.total_s - outcome.startup_s)


def test_a_full_disk_in_the_environment_cache(
    faulty: SimpleNamespace, small_disk: Path, tmp_path: Path, record_property: Any
) -> None:
    """A full disk during a build gives a message, and no directory that counts as an environment."""
    requirements = tmp_path / "list.txt"
    requirements.write_text("six==1.17.0\nidna==3.10\n")
    begin = time.perf_counter()
    with pytest.raises(faulty.uv.EnvironmentProblem, match=r"[Nn]o space left on device") as problem:
        faulty.environment.resolve(
            "managed", requirements=requirements, cache_dir=small_disk, progress=lambda line: None, timeout_s=60
        )
    assert len(str(problem.value)) <= 200
    assert [path for path in small_disk.iterdir() if path.is_dir()] == []
    assert descendants() == []
    cause = SimpleNamespace(cause=SimpleNamespace(group="broken"))
    note(record_property, tmp_path, "disk full in the environment cache", cause, time.perf_counter() - begin)


def test_a_trainer_that_hangs_meets_the_limit(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """A stopped process is killed at run_timeout_s."""
    outcome, seconds = measure(faulty, tmp_path, make_host, "hang", limit_s=4)
    assert outcome.cause.message == "The measurement took longer than run_timeout_s 4 s; raise it, or lower min_steps."
    assert 4 <= seconds < 10
    assert descendants() == []
    note(record_property, tmp_path, "trainer hangs (SIGSTOP), run_timeout_s 4", outcome, seconds)


def test_children_of_a_trainer_end_with_it(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """The whole process group is killed."""
    (faulty.root / "child").unlink(missing_ok=True)
    measure(faulty, tmp_path, make_host, "child", limit_s=4)
    child = int((faulty.root / "child").read_text())
    assert not psutil.pid_exists(child) or not alive(psutil.Process(child))
    assert descendants() == []


def test_a_flood_of_output_is_cut(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """1 GB of output gives a log of a few MB, and the measurement succeeds."""
    host = make_host()
    outcome = host.measure(job(faulty, tmp_path, "flood", host), 60)
    host.close()
    assert outcome.cause is None
    assert Path(outcome.log).stat().st_size < 10 * 2**20
    assert b"bytes left out" in Path(outcome.log).read_bytes()
    note(record_property, tmp_path, "trainer floods its output (1 GB)", outcome, outcome.total_s - outcome.startup_s)


def test_a_closed_progress_pipe_does_not_end_the_measurement(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any
) -> None:
    """When the reader of the progress pipe has closed it, the measurement continues."""

    def broken(message: dict[str, Any]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    host = make_host()
    assert host.measure(job(faulty, tmp_path, "none", host), 60, broken).cause is None


def test_a_record_that_is_none_is_a_failure(
    faulty: SimpleNamespace, make_host: Any, tmp_path: Path, record_property: Any
) -> None:
    """A line of JSON without an event gives a message, and the trainers are replaced."""
    host = make_host()
    outcome = host.measure(job(faulty, tmp_path, "empty record", host), 60)
    assert outcome.cause.group == "broken"
    assert host._trainers == []
    note(record_property, tmp_path, "JSON without an event", outcome, outcome.total_s - outcome.startup_s)


def test_a_trainer_that_leaks_is_replaced(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """A trainer that has grown by 900 MiB since its first measurement is replaced before the next."""
    host = make_host()
    assert host.measure(job(faulty, tmp_path, "leak", host), 60).cause is None
    after = host.measure(job(faulty, tmp_path, "none", host), 60)
    assert (after.cause, after.reused) == (None, False)
    assert host.measure(job(faulty, tmp_path, "none", host), 60).reused


def test_a_python_that_is_none_is_a_message(faulty: SimpleNamespace, tmp_path: Path) -> None:
    """An interpreter that cannot be started is named in the message."""
    with pytest.raises(
        faulty.failures.Broken, match=r"The trainer cannot be started with /dev/null: Permission denied\."
    ):
        importlib.import_module("ado_actuators.faulty.core.host.trainer_process").TrainerProcess(
            python=Path("/dev/null"), local_rank=0, threads=1, mask="", log=tmp_path / "log",
            messages=queue.Queue(), own_environment=True,
        )  # fmt: skip


def test_a_host_goes_on_after_a_failure(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """The trainer is replaced, and the next measurement succeeds."""
    host = make_host()
    assert host.measure(job(faulty, tmp_path, "kill", host), 60).cause is not None
    after = host.measure(job(faulty, tmp_path, "none", host), 60)
    assert after.cause is None
    assert not after.reused
    assert host.measure(job(faulty, tmp_path, "none", host), 60).reused


def test_a_job_that_is_refused_before_it_needs_a_trainer_costs_none(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any
) -> None:
    """The trainers of the host go on; the refusal has no log."""
    host = make_host()
    good = job(faulty, tmp_path, "none", host)
    assert host.measure(good, 60).cause is None
    trainers = descendants()
    refused = host.measure(
        dataclasses.replace(good, workload=dataclasses.replace(good.workload, dataset_id=str(tmp_path / "a.csv"))), 60
    )
    assert refused.cause is not None
    assert (refused.cause.what, refused.log) == ("bad_input", "")
    assert descendants() == trainers
    assert host.measure(job(faulty, tmp_path, "none", host), 60).reused


def test_a_trainer_that_ends_while_idle_is_replaced(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """The next measurement uses a new trainer and counts as a first attempt."""
    host = make_host()
    assert host.measure(job(faulty, tmp_path, "none", host), 60).cause is None
    (trainer,) = descendants()
    trainer.kill()
    psutil.wait_procs([trainer], timeout=10)
    after = host.measure(job(faulty, tmp_path, "none", host), 60)
    assert (after.cause, after.reused) == (None, False)


@pytest.mark.parametrize("what", ["child", "busy child", "hang"])
def test_what_a_killed_host_leaves_is_ended(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, what: str, record_property: Any
) -> None:
    """After SIGKILL a host leaves no trainer (sleeping, busy or stopped), no child of one and no run directory."""
    made = job(faulty, tmp_path, what, make_host())
    code = (
        "import sys; import ado_actuators.faulty.core.host.host as h\n"
        f"s = h.HostSpec('current', None, processes=1, gpus=0, threads=1, state_dir={str(tmp_path)!r})\n"
        "host = h.Host(s); host.start(); print(host._trainers[0].pid, flush=True)\n"
        "host.measure(h.Job.from_line(sys.argv[1]), 60)"
    )
    paths = os.pathsep.join([str(faulty.root), *sys.path])
    keeper = subprocess.Popen(
        [sys.executable, "-c", code, made.to_line()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert keeper.stdout is not None
    trainer = psutil.Process(int(keeper.stdout.readline()))
    deadline = time.monotonic() + 60
    while not is_under_way(trainer, what) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = [trainer, *trainer.children(recursive=True)]
    assert len(processes) == (1 if what == "hang" else 2)
    assert (tmp_path / "run").exists()
    begin = time.perf_counter()
    keeper.kill()
    keeper.wait()
    gone, left = psutil.wait_procs(processes, timeout=10)
    while (tmp_path / "run").exists() and time.perf_counter() - begin < 10:
        time.sleep(0.1)
    for process in left:
        process.kill()
    assert len(gone) == len(processes)
    assert not (tmp_path / "run").exists()
    if what == "busy child":
        ended = SimpleNamespace(cause=SimpleNamespace(group="its trainer and what that started are ended"))
        note(
            record_property, tmp_path, "host killed, its trainer busy, with a child", ended, time.perf_counter() - begin
        )


def is_under_way(trainer: psutil.Process, what: str) -> bool:
    """Whether a trainer has reached the requested fault."""
    return trainer.status() == psutil.STATUS_STOPPED if what == "hang" else bool(trainer.children())


def test_a_host_can_be_closed_while_it_measures(faulty: SimpleNamespace, tmp_path: Path, make_host: Any) -> None:
    """Killing the trainers from another thread ends the measurement instead of hanging it."""
    host = make_host()
    host.start()
    trainer = psutil.Process(host._trainers[0].pid)

    def kill() -> None:
        while trainer.status() != psutil.STATUS_STOPPED:
            time.sleep(0.1)
        os.killpg(trainer.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    outcome = host.measure(job(faulty, tmp_path, "hang", host), 60)
    assert outcome.cause.group == "transient"


def test_building_an_environment_is_no_late_start(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit for starting counts from the start of the trainers and excludes the build of their environment."""
    resolve = faulty.host.environment.resolve

    def slowly(*given: Any, **named: Any) -> Path:
        begin = time.perf_counter()
        monkeypatch.setattr(faulty.host.time, "perf_counter", lambda: time_of() + 3600)
        assert begin < time.perf_counter()
        return resolve(*given, **named)

    time_of = time.perf_counter
    monkeypatch.setattr(faulty.host.environment, "resolve", slowly)
    host = make_host()
    assert host.measure(job(faulty, tmp_path, "none", host), 60).cause is None
