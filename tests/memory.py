"""Memory that PyTorch's profiler has seen allocated on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def held(profile: Any) -> Iterator[tuple[int, int]]:
    """Yield after each allocation and release its time, ns, and the bytes held then of all blocks allocated while profiling.

    Blocks of earlier profiles, which garbage collection may free at any time, do not count.
    """
    total = 0
    inside: set[int] = set()
    for begin_ns, address, size in sorted(_changes(profile.profiler.kineto_results.experimental_event_tree())):
        if size < 0 and address not in inside:
            continue
        (inside.add if size > 0 else inside.discard)(address)
        total += size
        yield begin_ns, total


def _changes(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Yield of each allocation and release its time, ns, its address and its size, negative for a release, bytes."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _changes(event.children)
