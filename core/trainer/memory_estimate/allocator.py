"""Simulates PyTorch's caching allocator for CUDA: the memory it reserves for a sequence of allocations and frees.

Imports the standard library only.

Rules and sizes are those of ``c10/cuda/CUDACachingAllocator.cpp`` with default settings:

- Sizes are rounded up to 512 bytes. Up to 1 MiB comes from segments of 2 MiB, less than 10 MiB from segments of 20 MiB, more from
  segments of its own size, rounded up to 2 MiB. Small and large blocks have separate pools, and each stream its own blocks.
- The smallest free block that is large enough is used. Its rest becomes a free block if it has at least 512 bytes (small pool) or more
  than 1 MiB (large pool); a smaller rest stays unused in the block.
- A freed block is merged with free neighbours. Segments stay reserved. Only when the device has no memory left are segments without
  any used block released.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable

from .ledger import Change

BLOCK = 512
MIB = 2**20
SMALL, SMALL_SEGMENT, LARGE_SEGMENT, OWN_SEGMENT, SEGMENT_STEP = MIB, 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB


@dataclasses.dataclass(frozen=True)
class Reserved:
    """Peaks of the allocator's memory.

    Attributes:
        most: most bytes reserved at a time on a device with enough memory.
        needed: most bytes of segments with a used block. With less memory the allocator fails, even after releasing all other segments.
        allocated: most bytes of used blocks, unused rests included.
    """

    most: int
    needed: int
    allocated: int


class _Block:
    __slots__ = ("after", "before", "place", "segment", "size", "used")

    def __init__(self, size: int, place: int, segment: _Segment) -> None:
        self.size = size
        self.place = place
        self.segment = segment
        self.used = False
        self.before: _Block | None = None
        self.after: _Block | None = None


class _Segment:
    __slots__ = ("pool", "size", "used_blocks")

    def __init__(self, size: int, pool: _Pool) -> None:
        self.size = size
        self.pool = pool
        self.used_blocks = 0


class _Pool:
    """Free blocks of one stream and size class, ordered by size, then place."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[tuple[int, int], _Block] = {}

    def add(self, block: _Block) -> None:
        key = (block.size, block.place)
        bisect.insort(self._keys, key)
        self._blocks[key] = block

    def remove(self, block: _Block) -> None:
        key = (block.size, block.place)
        del self._keys[bisect.bisect_left(self._keys, key)]
        del self._blocks[key]

    def take(self, size: int) -> _Block | None:
        """Remove and return the smallest block that is large enough; None if there is none."""
        index = bisect.bisect_left(self._keys, (size, -1))
        if index == len(self._keys):
            return None
        return self._blocks.pop(self._keys.pop(index))


class Allocator:
    """Blocks of one device."""

    def __init__(self) -> None:
        self._pools: dict[tuple[bool, int], _Pool] = {}
        self._end = 0
        self.reserved = 0
        self.needed = 0
        self.allocated = 0

    def allocate(self, size: int, stream: int = 0) -> _Block:
        """Return a block of at least ``size`` bytes for use on a stream."""
        size = max(BLOCK, -(-size // BLOCK) * BLOCK)
        pool = self._pools.setdefault((size <= SMALL, stream), _Pool(small=size <= SMALL))
        block = pool.take(size) or self._segment(size, pool)
        left = block.size - size
        if left >= BLOCK if pool.small else left > SMALL:
            rest = _Block(left, block.place + size, block.segment)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            pool.add(rest)
        block.used = True
        if not block.segment.used_blocks:
            self.needed += block.segment.size
        block.segment.used_blocks += 1
        self.allocated += block.size
        return block

    def free(self, block: _Block) -> None:
        """Free a block."""
        block.used = False
        self.allocated -= block.size
        block.segment.used_blocks -= 1
        if not block.segment.used_blocks:
            self.needed -= block.segment.size
        pool = block.segment.pool
        before, after = block.before, block.after
        if before is not None and not before.used:
            pool.remove(before)
            block.place, block.size, block.before = before.place, block.size + before.size, before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and not after.used:
            pool.remove(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block
        pool.add(block)

    def _segment(self, size: int, pool: _Pool) -> _Block:
        if size <= SMALL:
            whole = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            whole = LARGE_SEGMENT
        else:
            whole = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        block = _Block(whole, self._end, _Segment(whole, pool))
        # segments do not touch, so their blocks are never merged
        self._end += whole + BLOCK
        self.reserved += whole
        return block


def replay(changes: Iterable[Change], constant: Iterable[int] = ()) -> Reserved:
    """Return the peaks of the allocator's memory.

    Args:
        changes: allocations and frees, in order.
        constant: sizes of blocks that are never freed, such as workspaces, in bytes.
    """
    allocator = Allocator()
    for size in constant:
        allocator.allocate(size)
    blocks: dict[int, _Block] = {}
    most = needed = allocated = 0
    for change in changes:
        if change.size < 0 or change.number in blocks:
            allocator.free(blocks.pop(change.number))
        if change.size > 0:
            blocks[change.number] = allocator.allocate(change.size, change.stream)
            most = max(most, allocator.reserved)
            needed = max(needed, allocator.needed)
            allocated = max(allocated, allocator.allocated)
    return Reserved(most, needed, allocated)
