"""PyTorch's caching allocator, replayed: exact numbers."""

from __future__ import annotations

from ado_actuators.sfttrainer.core.trainer.memory_estimate.allocator import MIB, Allocator, Reserved, replay
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES, Change


def change(number: int, size: int, stream: int = 0) -> Change:
    """Return a change of a temporary."""
    return Change(number, "temporaries", size, PASSES, stream)


def test_small_blocks_share_a_segment_of_two_mib() -> None:
    """Sizes are rounded up to 512 bytes; a MiB is still small."""
    assert replay([change(0, 1), change(1, MIB), change(2, 513)]) == Reserved(2 * MIB, 2 * MIB, MIB + 512 + 1024)


def test_blocks_below_ten_mib_share_a_segment_of_twenty() -> None:
    """Two of 9 MiB fit one, the third needs another."""
    assert replay([change(0, 9 * MIB), change(1, 9 * MIB)]).most == 20 * MIB
    assert replay([change(number, 9 * MIB) for number in range(3)]).most == 40 * MIB


def test_large_blocks_have_segments_of_their_own() -> None:
    """Rounded up to 2 MiB; what is left, up to a MiB, counts as allocated."""
    assert replay([change(0, 11 * MIB + 512)]) == Reserved(12 * MIB, 12 * MIB, 12 * MIB)
    assert replay([change(0, 10 * MIB + 512)]) == Reserved(12 * MIB, 12 * MIB, 10 * MIB + 512)


def test_the_smallest_block_that_fits_is_taken() -> None:
    """30 MiB free: 25 go there rather than into the 40 that are free too."""
    allocator = Allocator()
    blocks = [allocator.allocate(size * MIB) for size in (40, 30)]
    for block in blocks:
        allocator.free(block)
    assert allocator.allocate(25 * MIB).segment is blocks[1].segment
    assert allocator.reserved == 70 * MIB


def test_free_neighbours_are_one_block_again() -> None:
    """Three adjacent blocks of 10 MiB, freed in any order, serve one request of 30 MiB."""
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1)):
        allocator = Allocator()
        allocator.free(allocator.allocate(30 * MIB))
        blocks = [allocator.allocate(10 * MIB) for _ in range(3)]
        for index in order:
            allocator.free(blocks[index])
        allocator.allocate(30 * MIB)
        assert (allocator.reserved, allocator.allocated) == (30 * MIB, 30 * MIB)


def test_what_no_longer_fits_into_a_gap_needs_a_segment() -> None:
    """Fragmentation: 20 MiB are free in two places, and 15 fit neither."""
    changes = [change(0, 30 * MIB), change(0, -30 * MIB), *(change(number, 10 * MIB) for number in (1, 2, 3))]
    changes += [change(1, -10 * MIB), change(3, -10 * MIB), change(4, 15 * MIB)]
    assert replay(changes) == Reserved(30 * MIB + 16 * MIB, 46 * MIB, 30 * MIB)


def test_a_segment_without_used_blocks_could_be_given_back() -> None:
    """It is reserved, and not needed."""
    changes = [change(0, 30 * MIB), change(0, -30 * MIB), change(1, 40 * MIB)]
    assert replay(changes) == Reserved(70 * MIB, 40 * MIB, 40 * MIB)


def test_streams_share_no_blocks() -> None:
    """What one has freed another cannot use."""
    changes = [change(0, 30 * MIB), change(0, -30 * MIB), change(1, 30 * MIB, stream=1)]
    assert replay(changes).most == 60 * MIB


def test_constant_blocks_are_there_from_the_beginning() -> None:
    """Such as workspaces."""
    assert replay([change(0, 2 * MIB)], [8 * MIB, 8 * MIB]) == Reserved(20 * MIB, 20 * MIB, 18 * MIB)
