"""The CPUs, the address and the visible GPUs of this node. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket


def visible_mask(gpus: int) -> str:
    """Return CUDA_VISIBLE_DEVICES for trainers that use the first ``gpus`` of what this process may see."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mine is None:
        return ",".join(str(index) for index in range(gpus))
    return ",".join([entry.strip() for entry in mine.split(",")][:gpus])


def cpu_count() -> int:
    """Return the CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node_address() -> str:
    """Return the address at which other nodes reach this one; loopback without a network."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET: nothing is sent, the kernel only chooses the interface
        return str(probe.getsockname()[0])
    return "127.0.0.1"
