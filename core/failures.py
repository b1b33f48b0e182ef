"""Causes of failure: an exception class for each, its group, and the message for the user. Standard library only.

The group decides what is stored:

- ``cannot run``: a finished measurement with ``is_valid`` 0; never retried.
- ``transient``: retried in a fresh process; failed when the retries are used.
- ``broken``: failed at once.

Only this module turns exceptions, exit codes and log texts of other programs into messages.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import signal
from collections.abc import Iterable
from typing import Any, Literal, get_args

from . import redaction
from .protocol.messages import LONGEST_MESSAGE, LONGEST_QUOTED, FailureMessage, bounded

# ordered: a failure of an earlier group explains failures of later groups
Group = Literal["cannot run", "broken", "transient"]
What = Literal["gpu_oom", "host_oom", "predicted_oom", "invalid_configuration", "bad_input", "transient", "broken"]
# longest message on a terminal, which may list all accepted values
LONGEST_ON_TERMINAL = 1000
# longest message that quotes a library's exception, with the path of the log
LONGEST_QUOTING = LONGEST_QUOTED + 5 * LONGEST_MESSAGE
# an abort writes its reason last; earlier errors in the log did not end the process
TAIL_CHARACTERS = 8000

GPU_OOM_MESSAGE = (
    "The workload does not fit: the GPU ran out of memory; reduce batch_size or model_max_length, or use more GPUs."
)
HOST_OOM_MESSAGE = (
    "The workload does not fit: the host ran out of memory; reduce the model, batch_size or model_max_length."
)


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why there is no measurement; plain values, so that it travels between processes.

    Attributes:
        group: ``cannot run``, ``transient`` or ``broken``.
        what: ``gpu_oom``, ``host_oom``, ``predicted_oom`` or ``invalid_configuration`` if the workload cannot run;
            ``bad_input`` if the user's input cannot be used; else the group.
        message: the message for the user, at most 200 characters, not counting a library's exception that it quotes.
        quotes: whether the message contains type and text of a library's exception.
    """

    group: Group
    what: What
    message: str
    quotes: bool = False

    def with_log(self, log: str) -> Cause:
        """Return the cause; one that quotes an exception names the log, because the reader needs the traceback."""
        if not self.quotes or not log or "; log: " in self.message:
            return self
        return dataclasses.replace(self, message=f"{self.message.rstrip('.')}; log: {log}")


class Failure(Exception):
    """A measurement without properties. Raise a subclass; ``cause`` has the details.

    Args:
        message: the message for the user.
        quotes: whether it contains type and text of a library's exception, which are kept in full.
    """

    group: Group = "broken"
    what: What = "broken"

    def __init__(self, message: str, *, quotes: bool = False) -> None:
        super().__init__(plain_message(message, LONGEST_QUOTING if quotes else LONGEST_MESSAGE))
        self.quotes = quotes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle both arguments; the default passes only the message."""
        return functools.partial(type(self), quotes=self.quotes), (str(self),)

    @property
    def cause(self) -> Cause:
        """The failure as plain values."""
        return Cause(self.group, self.what, str(self), self.quotes)


class CannotRun(Failure):
    """The workload is impossible on this hardware or by its own properties."""

    group: Group = "cannot run"
    what: What = "invalid_configuration"


class InvalidConfiguration(CannotRun):
    """A property value, or a combination, that is impossible."""


class OutOfMemory(CannotRun):
    """A device or the host has too little memory.

    Args:
        where: ``gpu`` or ``host``.
        message: replaces the standard message.
    """

    def __init__(self, where: Literal["gpu", "host"], message: str = "") -> None:
        super().__init__(message or (GPU_OOM_MESSAGE if where == "gpu" else HOST_OOM_MESSAGE))
        self.where = where
        self.what = "gpu_oom" if where == "gpu" else "host_oom"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle both arguments; the default passes only the message."""
        return type(self), (self.where, str(self))


class PredictedOutOfMemory(CannotRun):
    """The workload was not run, because it is predicted not to fit."""

    what: What = "predicted_oom"


class Transient(Failure):
    """A failure that may not occur again: a dead worker, a lost node, a connection, a port in use."""

    group: Group = "transient"
    what: What = "transient"


class Broken(Failure):
    """A failure that a retry cannot fix: a time-out, an exception, anything unknown."""


class BadInput(Broken):
    """The user's input cannot be used: an unknown model, bad data, a missing package or environment."""

    what: What = "bad_input"


def raised(cause: Cause) -> Failure:
    """Return the exception that stands for ``cause``."""
    if cause.what in ("gpu_oom", "host_oom"):
        return OutOfMemory("gpu" if cause.what == "gpu_oom" else "host", cause.message)
    classes: dict[str, type[Failure]] = {"cannot run": InvalidConfiguration, "transient": Transient, "broken": Broken}
    kind = BadInput if cause.what == "bad_input" else classes[cause.group]
    return kind(cause.message, quotes=cause.quotes)


def root_cause(causes: Iterable[Cause]) -> Cause | None:
    """Return the cause that explains the others: when one rank fails, its peers report only a lost connection."""
    return min(causes, key=lambda cause: get_args(Group).index(cause.group), default=None)


# -- patterns of texts -----------------------------------------------------------------------------------------

GPU_OOM = re.compile(
    r"(CUDA|HIP|MPS|XPU|GPU)\b[^.\n]{0,40}out of memory"
    r"|CU(BLAS|SPARSE|SOLVER|DNN)_STATUS_\w*ALLOC\w*|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|Tried to allocate [\d.]+ [KMGT]iB\. GPU|Failed to CUDA [cm]alloc",
    re.IGNORECASE,
)
HOST_OOM = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc|cannot allocate memory|\bENOMEM\b"
    r"|\[Errno 12\]"
    r"|Unable to allocate [\d.]+ [KMGTPE]?i?B|malloc of size \d+ failed|low on memory|alloc_cpu\.cpp",
    re.IGNORECASE,
)
# a kernel used a wrong address: not an out-of-memory
ILLEGAL_ACCESS = re.compile(
    r"illegal memory access|misaligned address|illegal address|device-side assert", re.IGNORECASE
)
# what Python, OpenMP, OpenBLAS, libuv and shells say where a process or thread cannot be started; some then end without a traceback
PROCESS_LIMIT = re.compile(
    r"can't start new thread|Thread creation failed: Resource temporarily|pthread_create.{0,80}Resource temporarily|[Cc]annot fork"
    r"|^fork: .{0,40}Resource temporarily",
    re.MULTILINE,
)
PROCESS_LIMIT_MESSAGE = (
    "No more processes or threads may be started here: raise ulimit -u or the container's pids limit, or end others."
)
NCCL_MISUSE = re.compile(r"ncclInvalid(Usage|Argument)|Duplicate GPU detected", re.IGNORECASE)
TRANSPORT = re.compile(
    r"\bNCCL\b.*(error|timeout|timed out|abort)|nccl\w*Error|ProcessGroup\w*.*(timeout|timed out)"
    r"|\bgloo\b.{0,200}(error|fail|timed? ?out|closed|reset|refused|abort)"
    r"|Watchdog caught collective"
    r"|TCPStore|c10d.*socket|client socket has (timed out|failed)|pair closure"
    r"|Connection (closed|reset) by (remote )?peer"
    r"|address already in use|EADDRINUSE|\[Errno 98\]|failed to listen on",
    re.IGNORECASE | re.DOTALL,
)
TRANSPORT_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionResetError", "BrokenPipeError")
# these exceptions quote the user's input, so their text does not indicate memory or network problems
QUOTING_TYPES = (
    "ValueError",
    "KeyError",
    "TypeError",
    "FileNotFoundError",
    "AttributeError",
    "NotImplementedError",
    "JSONDecodeError",
    # "cannot allocate memory in static TLS block" of the dynamic loader is not an out-of-memory
    "ImportError",
    "ModuleNotFoundError",
)
TRACEBACK_END = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Refused|BadInput))(?:: (.*))?$", re.MULTILINE
)
NATIVE_ABORT = re.compile(r"terminate called.*|what\(\):.*", re.DOTALL)


def classify_exception(type_name: str, text: str, doing: str = "") -> Cause:
    """Return the cause of an exception another process or library raised.

    Args:
        type_name: the class's name, without its module.
        text: ``str(exception)``.
        doing: what was being done, such as ``starting the trainer``.
    """
    return _failure_of_exception(type_name.rpartition(".")[2], text, doing).cause


def from_message(message: FailureMessage) -> Failure:
    """Return the failure that a trainer reported."""
    quotes = message.get("quotes", False)
    if message["kind"] == "refused":
        return InvalidConfiguration(message["text"], quotes=quotes)
    if message["kind"] == "bad_input":
        return BadInput(message["text"], quotes=quotes)
    missing = message.get("missing")
    if message["kind"] == "import" and missing:
        return _missing_package(missing)
    return _failure_of_exception(message["type"], message["text"], message.get("doing", ""))


def from_exit(returncode: int, log_tail: str, *, oom_killed: bool) -> Failure:
    """Return the failure of a process that ended without a record.

    Args:
        returncode: as ``subprocess`` gives it: negative for a signal; 128 + signal, as shells report it, is accepted too.
        log_tail: the end of its output.
        oom_killed: whether the kernel's out-of-memory killer has ended a process of this node meanwhile.
    """
    number = -returncode if returncode < 0 else returncode - 128 if 128 < returncode < 128 + signal.NSIG else 0
    tail = log_tail[-TAIL_CHARACTERS:]
    if number == signal.SIGKILL:
        return (
            OutOfMemory("host") if oom_killed else Transient("The trainer process was killed from outside (SIGKILL).")
        )
    if number == signal.SIGPROF:  # set by trainer.tokens only
        return BadInput(
            "The chat template did not end, and could not be interrupted, so the trainer was ended; "
            "use another template in the model's tokenizer, or rows of text."
        )
    if number != signal.SIGKILL and PROCESS_LIMIT.search(tail):
        return Broken(PROCESS_LIMIT_MESSAGE)
    if number:
        aborted = NATIVE_ABORT.search(tail) if number == signal.SIGABRT else None
        reason = _by_text(aborted.group(0)) if aborted else None
        hint = ", which happens if /dev/shm or the disk of a mapped file is full" if number == signal.SIGBUS else ""
        return reason or Transient(f"The trainer process died ({_signal_name(number)}){hint}; see the log.")
    ends = list(TRACEBACK_END.finditer(tail))
    if ends:
        # the text of an exception may have further lines
        return _failure_of_exception(ends[-1].group(1), (ends[-1].group(2) or "") + tail[ends[-1].end() :])
    return Transient(f"The trainer process ended with exit code {returncode} and gave no reason; see the log.")


def _failure_of_exception(type_name: str, text: str, doing: str = "") -> Failure:
    if type_name == "MemoryError":
        return OutOfMemory("host")
    if type_name == "OutOfMemoryError" and not HOST_OOM.search(text):
        return OutOfMemory("gpu")
    known = _known_problem(type_name, text)
    failure = known or (None if type_name in QUOTING_TYPES else _by_text(text, type_name))
    if failure is not None:
        return failure
    if type_name in TRANSPORT_TYPES:
        return _lost_connection(text, type_name)
    return Broken(f"While {doing}: {_quoted(text, type_name)}" if doing else _quoted(text, type_name), quotes=True)


def _quoted(text: str, type_name: str) -> str:
    text = bounded(text.strip())
    return ": ".join(part for part in (type_name, text) if part)


def _lost_connection(text: str, type_name: str) -> Transient:
    return Transient(f"The connection between processes failed: {_quoted(text, type_name)}", quotes=True)


def _by_text(text: str, type_name: str = "") -> Failure | None:
    if ILLEGAL_ACCESS.search(text):
        return Broken(
            "A GPU kernel failed (illegal memory access or assertion), which is not an out-of-memory; see the log."
        )
    if GPU_OOM.search(text):
        return OutOfMemory("gpu")
    if HOST_OOM.search(text):
        return OutOfMemory("host")
    if NCCL_MISUSE.search(text):
        return Broken(f"NCCL rejected its configuration: {_quoted(text, type_name)}", quotes=True)
    if re.search(r"address already in use|EADDRINUSE|\[Errno 98\]|failed to listen on", text, re.IGNORECASE):
        return Transient("The port for the rendezvous of the processes was already in use.")
    if TRANSPORT.search(text):
        return _lost_connection(text, type_name)
    return None


def _known_problem(type_name: str, text: str) -> Failure | None:
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing:
        return _missing_package(missing.group(1).partition(".")[0])
    # no process can be forked; non-blocking pipes and sockets raise it, too, but this code has none
    if type_name == "BlockingIOError" or PROCESS_LIMIT.search(text):
        return Broken(PROCESS_LIMIT_MESSAGE)
    if re.search(r"/dev/shm\b.*No space left|insufficient shared memory|shared memory segment", text, re.DOTALL):
        return Broken(
            "/dev/shm is full or too small for NCCL: give the container more (docker run --shm-size=8g or --ipc=host)."
        )
    if re.search(r"No space left on device", text):
        return Broken(
            "The disk is full where the measurement writes (no space left on device); free some space, or set state_dir."
        )
    unknown = re.search(r"^(\S+) is not a local folder and is not a valid model identifier", text)
    if unknown:
        return BadInput(f"Model {unknown.group(1)!r} is neither a directory nor a model on the hub; check model_name.")
    if type_name == "GatedRepoError" or re.search(r"gated repo|401 Client Error|403 Client Error", text):
        return BadInput("The model hub refuses access to this model: log in on the nodes, or use a local directory.")
    if re.search(r"Target modules .* not found in the base model", text, re.DOTALL):
        return InvalidConfiguration(
            "target_modules matches no module of this model; use all-linear or the model's own module names."
        )
    if "no kernel image is available" in text:
        return Broken(
            "The installed torch was not built for this GPU (no kernel image); install a build that supports it."
        )
    return None


def _missing_package(name: str) -> BadInput:
    return BadInput(
        f"The training environment lacks the package {name!r}: install it there, or choose another environment."
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- messages --------------------------------------------------------------------------------------------------


def plain_message(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return ``text`` as one line of at most ``longest`` characters that ends with punctuation, without secrets."""
    text = redaction.hide_in_message(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))
    text = " ".join(text.split()) or "No reason was given"
    # control characters and unpaired surrogates: terminals interpret them, and some stores cannot keep them
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) > longest:
        return text[: longest - 1].rstrip() + "…"
    return text if text[-1] in ".!?…" or len(text) == longest else text + "."
