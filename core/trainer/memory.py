"""Memory of the trainer process: peak resident set, and giving back what a measurement has used. Trainer room."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

from ..protocol.messages import MemoryInUse

STATUS = Path("/proc/self/status")


def reset_peak_resident() -> bool:
    """Make the kernel forget the peak resident set so far; false where it cannot, so that the peak is no one's measurement."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Return the peak resident set since ``reset_peak_resident``, bytes."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Return the resident set, bytes."""
    return _status_bytes("VmRSS")


def release() -> None:
    """Free what no one refers to: Python's cycles, torch's cache, and the C library's free lists."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def in_use_bytes() -> MemoryInUse:
    """Return ``rss_bytes`` (0 without Linux) and, with CUDA, ``allocated_bytes``: what must be back at its base line afterwards."""
    import torch

    use: MemoryInUse = {"rss_bytes": resident_bytes()}
    if torch.cuda.is_available():
        use["allocated_bytes"] = torch.cuda.memory_allocated()
    return use


def _status_bytes(field: str) -> int:
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        match = None
    return int(match.group(1)) * 1024 if match else 0
