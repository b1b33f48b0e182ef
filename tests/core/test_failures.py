"""Groups of causes: what cannot run, what may work when repeated, what is broken; and the message each gives."""

from __future__ import annotations

import pickle
import re
from typing import Literal

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.protocol.messages import FailureMessage

REPORTED: FailureMessage = {"event": "failure", "kind": "exception", "type": "RuntimeError", "text": "odd"}


@pytest.mark.parametrize(
    ("type_name", "text", "group", "what"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "cannot run", "gpu_oom"),
        ("RuntimeError", "CUDA error: out of memory", "cannot run", "gpu_oom"),
        (
            "RuntimeError",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cannot run",
            "gpu_oom",
        ),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "cannot run", "gpu_oom"),
        ("MemoryError", "", "cannot run", "host_oom"),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory",
            "cannot run",
            "host_oom",
        ),
        ("OSError", "[Errno 12] Cannot allocate memory", "cannot run", "host_oom"),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", "broken", "broken"),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp, remote process exited", "transient", "transient"),
        (
            "RuntimeError",
            "[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1",
            "transient",
            "transient",
        ),
        (
            "RuntimeError",
            "The server socket has failed to listen: EADDRINUSE, address already in use",
            "transient",
            "transient",
        ),
        ("ModuleNotFoundError", "No module named 'trl'", "broken", "bad_input"),
        ("ValueError", "the file says: CUDA out of memory", "broken", "broken"),
        ("ImportError", "libgomp.so.1: cannot allocate memory in static TLS block", "broken", "broken"),
        ("OSError", "/data/gloo/m is not a local folder and is not a valid model identifier", "broken", "bad_input"),
    ],
)
def test_exceptions_are_classified(type_name: str, text: str, group: str, what: str) -> None:
    """By type and text, as torch, CUDA and the transports word them."""
    cause = failures.classify_exception(type_name, text)
    assert (cause.group, cause.what) == (group, what)


@pytest.mark.parametrize(
    ("code", "tail", "oom_killed", "group", "what"),
    [
        (-9, "", True, "cannot run", "host_oom"),
        (-9, "", False, "transient", "transient"),
        (137, "", True, "cannot run", "host_oom"),
        (-11, "", False, "transient", "transient"),
        (
            -6,
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
            False,
            "cannot run",
            "host_oom",
        ),
        (
            1,
            "Traceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried",
            False,
            "cannot run",
            "gpu_oom",
        ),
        (3, "", False, "transient", "transient"),
    ],
)
def test_exits_are_classified(code: int, tail: str, oom_killed: bool, group: str, what: str) -> None:
    """By exit code, signal, what was written last, and whether the kernel killed for memory."""
    cause = failures.from_exit(code, tail, oom_killed=oom_killed).cause
    assert (cause.group, cause.what) == (group, what)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No reason was given."),
        ("two\n  lines", "two lines."),
        ("\x1b[31mred\x1b[0m", "red."),
        ("see https://user:secret@host/simple", "see https://***@host/simple."),
        ("token hf_abcdefghijklmnop was refused", "token hf_*** was refused."),
    ],
)
def test_messages_are_plain(text: str, message: str) -> None:
    """One line, without colours and without secrets, ending like a message."""
    assert str(failures.Broken(text)) == message


def test_messages_are_short() -> None:
    """However much a library says, 200 characters are kept."""
    assert len(str(failures.Broken("word " * 1000))) == 200


@pytest.mark.parametrize(
    "failure",
    [
        failures.OutOfMemory("gpu"),
        failures.OutOfMemory("host"),
        failures.InvalidConfiguration("no."),
        failures.Transient("again."),
        failures.Broken("never."),
    ],
)
def test_failures_travel_between_processes(failure: failures.Failure) -> None:
    """Pickled, or as plain values and back, a failure is the same."""
    assert pickle.loads(pickle.dumps(failure)).cause == failure.cause
    assert failures.raised(failure.cause).cause == failure.cause


def test_an_unknown_exception_says_what_the_measurement_did() -> None:
    """What it did, type and text in full, also after its way between processes."""
    text = "first line\nwith 'quotes' " + "and more " * 40 + "and an end"
    found = failures.from_message({**REPORTED, "type": "ValueError", "text": text, "doing": "building the model"})
    assert str(found) == f"While building the model: ValueError: {' '.join(text.split())}."
    assert str(failures.raised(found.cause)) == str(found)
    assert found.cause.group == "broken"


def test_an_unexplained_exception_names_its_log() -> None:
    """The log has the traceback; a message with a known cause stays as it is."""
    found = failures.from_message({**REPORTED, "text": "odd 'text' " * 900, "doing": "training step 3"}).cause
    named = found.with_log("/state/logs/1.log")
    text = ("odd 'text' " * 900).strip()
    assert named.message == f"While training step 3: RuntimeError: {text}; log: /state/logs/1.log"
    assert str(failures.raised(named)) == f"{named.message}."
    assert named.with_log("/other.log") == named
    known = failures.from_message({**REPORTED, "kind": "bad_input", "text": "No file."}).cause
    assert known.with_log("/state/logs/1.log") == known


@pytest.mark.parametrize("kind", ["bad_input", "refused"])
def test_a_known_cause_that_quotes_a_library(kind: Literal["bad_input", "refused"]) -> None:
    """Its text is whole, also after its way between processes, and the message names the log."""
    text = f"Line 3 cannot be tokenised: ValueError: {'no such token, ' * 100}and an end."
    found = failures.from_message({**REPORTED, "kind": kind, "text": text, "quotes": True})
    assert str(found) == str(pickle.loads(pickle.dumps(found))) == str(failures.raised(found.cause)) == text
    assert found.cause.with_log("/state/1.log").message == f"{text[:-1]}; log: /state/1.log"
    assert found.cause.group == {"bad_input": "broken", "refused": "cannot run"}[kind]


@pytest.mark.parametrize(
    ("type_name", "text", "begin"),
    [
        (
            "DistBackendError",
            "NCCL error in: x.cpp:1\nremote process exited",
            "The connection between processes failed: ",
        ),
        ("RuntimeError", "gloo/pair.cc\nConnection closed by peer", "The connection between processes failed: "),
        ("ConnectionResetError", "", "The connection between processes failed: "),
        ("RuntimeError", "ncclInvalidUsage\nThis usually reflects invalid usage", "NCCL rejected its configuration: "),
    ],
)
def test_lost_connections_are_quoted_in_full(type_name: str, text: str, begin: str) -> None:
    """Their type and all lines of their text."""
    quoted = ": ".join(part for part in (type_name, " ".join(text.split())) if part)
    assert failures.classify_exception(type_name, text).message == f"{begin}{quoted}."


def test_megabytes_of_text_lose_their_middle() -> None:
    """The message says how much is left out, and cuts no word, which could be a part of a secret."""
    found = failures.classify_exception("ValueError", "first " + "word " * 1_000_000 + "last")
    assert len(found.message) < 21_000
    assert re.fullmatch(r"ValueError: first (word )+\[4,980,\d{3} characters left out\] (word )+last\.", found.message)


def test_a_traceback_in_the_log_is_quoted_with_all_lines() -> None:
    """Of a process that ended without a message."""
    tail = "Traceback (most recent call last):\n  ...\npkg.OddError: first line\nsecond 'line'\n"
    assert str(failures.from_exit(1, tail, oom_killed=False)) == "OddError: first line second 'line'."


@pytest.mark.parametrize(
    "log",
    [
        "libgomp: Thread creation failed: Resource temporarily unavailable\n",
        "Traceback\nRuntimeError: can't start new thread\n",
        "Traceback\nBlockingIOError: [Errno 11] Resource temporarily unavailable\n",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2: Resource temporarily unavailable\n",
        "sh: 1: Cannot fork\n",
    ],
)
@pytest.mark.parametrize("code", [1, -6, -11])
def test_a_process_limit(log: str, code: int) -> None:
    """It is not repeated: OpenMP ends the process without a traceback, others crash afterwards."""
    if "BlockingIOError" in log and code != 1:
        return
    failure = failures.from_exit(code, log, oom_killed=False)
    assert isinstance(failure, failures.Broken)
    assert str(failure) == failures.PROCESS_LIMIT_MESSAGE
    assert len(str(failure)) <= 200


def test_a_template_that_cannot_be_interrupted() -> None:
    """SIGPROF is what ends it, also as a shell reports it."""
    for code in (-27, 155):
        failure = failures.from_exit(code, "", oom_killed=False)
        assert isinstance(failure, failures.BadInput)
        assert "The chat template did not end" in str(failure)


@pytest.mark.parametrize(
    "text",
    [
        "ncclSystemError. Last error:\nError while creating shared memory segment /dev/shm/nccl-BQ, error: No space left on device",
        "killed by signal: Bus error. This might be caused by insufficient shared memory (shm).",
    ],
)
def test_a_full_shared_memory_is_no_full_disk(text: str) -> None:
    """Nor a lost connection, which would be repeated."""
    cause = failures.classify_exception("DistBackendError", text)
    assert (cause.group, cause.message[:23]) == ("broken", "/dev/shm is full or too")
    assert "which happens if /dev/shm" in str(failures.from_exit(-7, "", oom_killed=False))
