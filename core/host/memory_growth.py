"""Decides whether a trainer has kept memory of a measurement. Standard library only."""

from __future__ import annotations

from ..protocol.messages import MemoryInUse

# a trainer whose memory is larger than its baseline by more than this after a measurement leaks and is replaced
RSS_GROWTH_BYTES = 768 * 2**20
ALLOCATED_GROWTH_BYTES = 128 * 2**20


def leaks(now: MemoryInUse, baseline: MemoryInUse) -> bool:
    """Return whether a trainer uses more memory than its baseline (``MemoryInUse``) allows after a measurement."""
    if now["rss_bytes"] - baseline["rss_bytes"] > RSS_GROWTH_BYTES:
        return True
    # only with CUDA
    allocated = now.get("allocated_bytes", 0) - baseline.get("allocated_bytes", 0)
    return "allocated_bytes" in baseline and allocated > ALLOCATED_GROWTH_BYTES
