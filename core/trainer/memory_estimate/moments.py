"""Finds the peak of an account for many devices and batch sizes, without a pass over its events for each. Imports numpy.

A table holds the bytes in use at each moment, one column per kind of memory. A device and a batch size only change the weights of the
columns. Sizes are rounded to blocks before they are divided among devices, so a result may differ from that of ``Ledger.peaks``, which
is exact, by a fraction of a block per storage.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from ...protocol.messages import MEMORY_KINDS
from .extrapolation import Grown
from .ledger import LOADING, PART_OF, PASSES, UPDATE, Sharing

USES = tuple(PART_OF)


class Moments:
    """Bytes in use at the moments before a storage is freed."""

    def __init__(self, grown: Grown, block_bytes: int) -> None:
        deltas, phases = _deltas(grown, block_bytes)
        held = deltas.cumsum(axis=1)
        total = held[1].sum(axis=1)
        # a moment that is followed by an allocation is not a peak
        full = numpy.append(total[1:] < total[:-1], True)
        full[:-1] |= phases[1:] != phases[:-1]
        held, update = held[:, full], phases[full]
        # bytes of each use with one batch, and how much more with twice that
        self._of = {
            phase: (held[0, rows], held[1, rows] - held[0, rows])
            for phase, rows in ((PASSES, ~update), (UPDATE, update))
        }

    def parts(self, sharing: Sharing, phase: str, part: float = 1.0) -> dict[str, int]:
        """Return the bytes of each kind at the peak of a phase; all 0 if the account has no such phase.

        Args:
            sharing: the share that a device holds.
            phase: phase of the step.
            part: the batch, relative to that of ``Grown.sizes``; 2 is that of ``Grown.more``.
        """
        extra = sharing.extra_bytes.get(phase, {})
        found = {kind: extra.get(kind, 0) for kind in MEMORY_KINDS}
        once, more = self._of[phase]
        if not len(once):
            return found
        held = (once if part == 1.0 else once + more * (part - 1.0)) * _weights(sharing, phase)
        fullest = held[held.sum(axis=1).argmax()]
        for use, size in zip(USES, fullest, strict=True):
            found[PART_OF[use]] += int(size)
        return found

    def total(self, sharing: Sharing, phase: str, part: float = 1.0) -> int:
        """Return the bytes in use at the peak of a phase."""
        return sum(self.parts(sharing, phase, part).values())


def _weights(sharing: Sharing, phase: str) -> numpy.ndarray:
    shares: Mapping[str, float] = sharing.shares
    weights = [
        sharing.update_share if use == "temporaries" and phase == UPDATE else shares.get(use, 1.0) for use in USES
    ]
    return numpy.array(weights)


def _deltas(grown: Grown, block: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the bytes that each event adds, shape (2 batches, events, uses), and whether it belongs to the update."""
    account = grown.account
    sizes = [(_rounded(one, block), _rounded(two, block)) for one, two in zip(grown.sizes, grown.more, strict=True)]
    uses: dict[int, int] = {}
    # for each change the event, the use and the sign and number of the storage
    changes: list[tuple[int, int, int, int]] = []
    phases = numpy.zeros(len(account.events), dtype=bool)
    phase = PASSES
    # of the model's construction only what exists when it ends counts
    loaded = account.events.index(PASSES) if account.events[:1] == [LOADING] else 0
    for number_of_event, event in enumerate(account.events):
        row = max(number_of_event, loaded)
        if isinstance(event, str):
            phase = event
        else:
            first, second = event
            turned = isinstance(second, str)
            number = first if turned else second
            known = number in uses
            if known:
                changes.append((row, uses.pop(number), -1, number))
            if known if turned else first:
                use = USES.index(second if turned else account.kinds.get(number, "temporaries"))
                changes.append((row, use, 1, number))
                uses[number] = use
        phases[number_of_event] = phase == UPDATE
    deltas = numpy.zeros((2, len(account.events), len(USES)))
    rows, columns, signs, numbers = numpy.array(changes, dtype=numpy.int64).reshape(-1, 4).T
    changed = numpy.array(sizes, dtype=float).reshape(-1, 2)[numbers] * signs[:, None]
    for batch in (0, 1):
        numpy.add.at(deltas[batch], (rows, columns), changed[:, batch])
    return deltas, phases


def _rounded(size: int, block: int) -> int:
    return -(-size // block) * block
