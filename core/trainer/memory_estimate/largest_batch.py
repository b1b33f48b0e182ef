"""The largest batch that fits, from a few estimates. Standard library only; estimating is the caller's business.

Memory of the passes through the model mostly grows by the same amount with each sample; that of the optimizer's update does not
depend on the batch. So two estimates give the answer, and a third one confirms it. Gradients may be the peak of small batches
and hide that growth, so the floor under the peak, without them, has a line of its own. Where memory grows faster, as with masks of
batches in one row, lines are given up after a while, and what lies between is halved until the answer is near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

MOST_LINES = 6
# an estimate takes seconds: where lines do not help, an answer this near to the first size that does not fit is enough
NEAR = 1 / 16


def largest(batch: int, capacity: int, estimate: Callable[[int], Mapping[str, int]], *, most: int) -> int:
    """Return the largest batch of one device that fits, or nearly that where memory does not grow evenly; 0 if none does.

    Args:
        batch: to begin with.
        capacity: bytes of a device.
        estimate: returns for a batch the peak bytes of each phase, ``passes`` and ``update``, and a ``floor`` below the former.
        most: the largest batch of interest.
    """
    fits = {batch: _fits(estimate(batch), capacity)}
    if estimate(batch)["update"] > capacity or (batch == 1 and not fits[batch]):
        return 0
    other = min(most, 2 * batch) if fits[batch] else max(1, batch // 2)
    lines = MOST_LINES
    while True:
        if other not in fits:
            fits[other] = _fits(estimate(other), capacity)
        good = max((size for size, fit in fits.items() if fit), default=0)
        bad = min((size for size, fit in fits.items() if not fit), default=most + 1)
        if bad - good <= 1:
            return good
        lines -= 1
        guess = min(max(_line(fits, capacity, estimate), good), bad - 1)
        if good > 0 and (guess == good if lines > 0 else bad - good <= NEAR * good):
            return good
        # sizes lie apart by factors
        other = guess if lines > 0 and guess > good else max(good + 1, math.isqrt(good * bad))


def _line(sizes: Mapping[int, bool], capacity: int, estimate: Callable[[int], Mapping[str, int]]) -> int:
    """Return the batch at which the lines through the two largest estimates reach the capacity."""
    low, high = sorted(sizes)[-2:] if len(sizes) > 1 else (min(sizes), min(sizes))
    before, after = estimate(low), estimate(high)
    reached = [
        low + (capacity - before[name]) * (high - low) // (after[name] - before[name])
        for name in ("passes", "floor")
        if after[name] > before[name]
    ]
    return max(0, min(reached)) if reached else 2 * high


def _fits(bytes_of: Mapping[str, int], capacity: int) -> bool:
    return max(bytes_of["passes"], bytes_of["update"]) <= capacity
