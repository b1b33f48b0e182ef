"""Memory of the trainer process: its resident set, that set's peak, and the release of memory after a measurement. Imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

from ..protocol.messages import MemoryInUse

STATUS = Path("/proc/self/status")


def reset_peak_resident() -> bool:
    """Reset the kernel's peak resident set of this process; return False where that is impossible and the peak covers its whole life."""
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
    """Release unused memory: Python's reference cycles, the cache of PyTorch's CUDA allocator, and the C library's free lists."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def in_use_bytes() -> MemoryInUse:
    """Return the memory in use, which must return to its baseline after a measurement; ``rss_bytes`` is 0 on other systems than Linux."""
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
