"""The largest batch that fits, from a few estimates. Standard library only; estimating is the caller's business.

Memory of the passes through the model grows by the same amount with each sample; that of the optimizer's update does not
depend on the batch. So two estimates give the answer, and a third one confirms it. Gradients may be the peak of small batches
and hide that growth, so the floor under the peak, without them, has a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

MOST_CONFIRMATIONS = 4


def largest(batch: int, capacity: int, estimate: Callable[[int], Mapping[str, int]], *, most: int) -> int:
    """Return the largest batch of one device that fits, 0 if none does.

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
    for _ in range(MOST_CONFIRMATIONS):
        if other not in fits:
            fits[other] = _fits(estimate(other), capacity)
        good = max((size for size, fit in fits.items() if fit), default=0)
        bad = min((size for size, fit in fits.items() if not fit), default=most + 1)
        guess = min(max(_line(fits, capacity, estimate), good), bad - 1)
        if guess == good or bad - good <= 1:
            return good
        other = guess
    return good


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
