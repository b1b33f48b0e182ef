"""Divides the time of a run among its parts, and ends parts that take too long. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence

# seconds of a run, by default; a longer limit gives each part more
LIMIT_S = 480.0
# parts limit their own measurements; the alarm ends those that hang
GRACE_S = 8.0


class OutOfTime(BaseException):
    """The time of a part is over. Not an ``Exception``, so that it is never taken for a failure of a workload."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The time of a part on a data-centre GPU.

    Attributes:
        name: of the part.
        usual_s: what it takes; later parts are promised theirs.
        least_s: with less left of the total limit it is not begun.
    """

    name: str
    usual_s: float
    least_s: float


BUDGETS = (
    Budget("device", 25, 10),
    Budget("memory", 95, 30),
    Budget("edge", 45, 30),
    Budget("fidelity", 75, 50),
    Budget("rates", 40, 25),
    Budget("energy", 25, 20),
    Budget("adaptive", 80, 75),
    Budget("reuse", 80, 25),
)


def allowance_s(name: str, chosen: Sequence[str], left_s: float, limit_s: float = LIMIT_S) -> float:
    """Return how long a part may take; 0 if what is left is not enough to begin it.

    It may take its usual time, and what is left beyond the usual times of the parts after it, but at most twice its usual time
    if others follow, so that a part that hangs leaves time for them.

    Args:
        name: the part.
        chosen: all parts of the run, in their order.
        left_s: what is left of the total limit, seconds.
        limit_s: the total limit, seconds; beyond ``LIMIT_S`` usual times grow with it, as on slow machines.
    """
    scale = max(1.0, limit_s / LIMIT_S)
    usual_s = {budget.name: scale * budget.usual_s for budget in BUDGETS}
    if left_s < next(budget.least_s for budget in BUDGETS if budget.name == name):
        return 0.0
    later = [usual_s[other] for other in chosen[chosen.index(name) + 1 :]]
    spare_s = max(usual_s[name], left_s - sum(later))
    return min(left_s, spare_s, 2 * usual_s[name] if later else left_s)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the main thread when the block has taken ``seconds`` and ``GRACE_S``."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTime(f"it took longer than its {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        # of whoever had set it before
        signal.setitimer(signal.ITIMER_REAL, *timer)
