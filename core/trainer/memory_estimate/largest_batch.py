"""Searches for the largest batch that fits, with few estimates. The caller estimates. Imports the standard library only.

Memory of the passes through the model mostly grows by the same amount with each sample; that of the optimizer's update does not
depend on the batch. So a line through two estimates gives the answer, and a third estimate confirms it. The peak of small batches
may be at the gradients and hide that growth, so a second line goes through the memory without gradients, the *floor*. If memory grows
faster, as with masks for batches in one row, the search uses lines for ``MOST_LINES`` estimates and then bisects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

MOST_LINES = 6
# bisection ends when the smallest batch that does not fit is larger by at most this share, since an estimate takes seconds
NEAR = 1 / 16


def largest(batch: int, capacity: int, estimate: Callable[[int], Mapping[str, int]], *, most: int) -> int:
    """Return the largest batch per device that fits; up to ``NEAR`` less if memory does not grow linearly; 0 if none fits.

    Args:
        batch: the first batch to estimate.
        capacity: bytes of a device.
        estimate: returns for a batch the peak bytes of each phase, ``passes`` and ``update``, and the ``floor`` of the passes.
        most: upper bound of the result.
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
        # the geometric mean, since sizes may differ by orders of magnitude
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
