"""How a host handles the failure of one of several ranks: the reported cause, and the other trainers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import descendants, job, measure, note

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(120)]


def test_one_of_two_processes_out_of_memory(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """Out of memory on one rank is the cause; the host does not wait for the other rank."""
    outcome, seconds = measure(faulty, tmp_path, make_host, "oom@1", processes=2)
    assert outcome.cause.what == "gpu_oom"
    assert seconds < 15
    assert descendants() == []
    note(record_property, tmp_path, "one rank of two out of GPU memory", outcome, seconds)


def test_a_rank_out_of_memory_among_ranks_that_wait_for_it(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """Out of memory is the cause, with the log of that rank, although its peer may report a lost connection first."""
    host = make_host(2)
    made = dataclasses.replace(job(faulty, tmp_path, "oom among peers", host, 2), world_size=2, local_world_size=2)
    outcome = host.measure(made, 60)
    assert outcome.cause.what == "gpu_oom", outcome.cause
    assert "CUDA out of memory" in Path(outcome.log).read_text()
    note(
        record_property, tmp_path, "one rank of two out of GPU memory, the other in an all-reduce", outcome,
        outcome.total_s - outcome.startup_s,
    )  # fmt: skip


def test_a_ranks_own_error_is_reported_and_not_the_lost_connection_of_its_peer(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """In either order of the reports, the failure is not transient, and the log is that of the rank with the error."""
    host = make_host(2)
    made = dataclasses.replace(job(faulty, tmp_path, "error among peers", host, 2), world_size=2, local_world_size=2)
    outcome = host.measure(made, 60)
    expected = f"While starting: ValueError: rank 1 has no data; log: {outcome.log}"
    assert (outcome.cause.group, outcome.cause.message) == ("broken", expected)
    assert "rank 1 has no data" in Path(outcome.log).read_text()
    seconds = outcome.total_s - outcome.startup_s
    note(record_property, tmp_path, "one rank of two raises an error, the other in an all-reduce", outcome, seconds)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_ranks_that_fail_together_the_one_with_an_error_of_its_own_counts(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, order: tuple[int, int]
) -> None:
    """In either order of the reports."""
    host = make_host(2)
    host._trainers = [None, None]
    said = [
        {"event": "failure", "kind": "exception", "type": "RuntimeError", "text": "Gloo: Connection closed by peer"},
        {
            "event": "failure",
            "kind": "exception",
            "type": "RuntimeError",
            "text": "CUDA error: an illegal memory access",
        },
    ]
    first, second = order
    host._messages.put((second, said[second]))
    attempt = faulty.host._Attempt(host, job(faulty, tmp_path, "none", host, 2), 60, lambda message: None)
    failed = attempt._first_cause(host._failure(first, said[first]))
    assert (failed.failure.cause.group, failed.local_rank) == ("broken", 1)
    host._trainers = []


def test_one_of_two_processes_killed(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, record_property: Any
) -> None:
    """A killed rank fails the measurement in under 15 s and frees everything."""
    outcome, seconds = measure(faulty, tmp_path, make_host, "kill@1", processes=2)
    assert outcome.cause.group == "transient"
    assert seconds < 15
    assert descendants() == []
    note(record_property, tmp_path, "one rank of two killed", outcome, seconds)


def test_ranks_that_report_apart_keep_their_trainers(
    faulty: SimpleNamespace, tmp_path: Path, make_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ``Idle`` message of a rank that finished early is kept, so that the host does not wait for it again."""
    monkeypatch.setattr(faulty.host, "RELEASE_TIMEOUT_S", 20.0)
    host = make_host(2)
    outcome = host.measure(job(faulty, tmp_path, "late@1", host, 2), 60)
    assert outcome.cause is None
    assert host.measure(job(faulty, tmp_path, "none", host, 2), 60).reused
