"""The account of a traced step: which storage lived when, what it was for, and the peak of it all. Standard library only.

Storages are written down as they come and go. What a storage was for is often known only later (a gradient becomes one
when it is stored in ``.grad``), so the peak is found afterwards, by going through the account once more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ...protocol.messages import MEMORY_KINDS

PASSING = ("activations", "temporaries")
# a training step is in one of two phases: passes through the model, or the optimizer's update
PASSES, UPDATE = "passes", "update"


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What of the account a single device holds.

    Attributes:
        shares: for each kind the part of it that a device holds; kinds left out are held whole.
        update_share: the part of the update's temporaries that a device holds.
        extra_bytes: for each phase and kind what a device holds besides, such as buffers of the wrapper.
        block_bytes: sizes are rounded up to a multiple of it, as the device's allocator does.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    update_share: float = 1.0
    extra_bytes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    block_bytes: int = 1


@dataclasses.dataclass(frozen=True)
class Peak:
    """The fullest moment of a phase.

    Attributes:
        parts: bytes by kind at that moment.
        passing: most bytes of activations and temporaries at any moment of the phase.
    """

    parts: Mapping[str, int]
    passing: int = 0

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.parts.values())


class Ledger:
    """Storages by number, in the order in which they came and went."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._kinds: dict[int, str] = {}
        self._events: list[tuple[bool, int] | str] = []
        self._alive: set[int] = set()

    def allocate(self, size: int) -> int:
        """Write down a new storage of ``size`` bytes; return its number."""
        number = len(self._bytes)
        self._bytes.append(size)
        self._events.append((True, number))
        self._alive.add(number)
        return number

    def free(self, number: int) -> None:
        """Write down that a storage has gone."""
        self._events.append((False, number))
        self._alive.discard(number)

    def name(self, number: int, kind: str) -> None:
        """Say what a storage is for; the first answer stands."""
        self._kinds.setdefault(number, kind)

    def end_forward(self) -> None:
        """Say that the backward pass begins: what lives now and has no name was kept for it."""
        for number in self._alive:
            self.name(number, "activations")

    def begin(self, phase: str) -> None:
        """Say that a phase begins; an account starts with passes."""
        self._events.append(phase)

    def peaks(self, sharing: Sharing) -> dict[str, Peak]:
        """Return the fullest moment of each phase on one device."""
        sizes = [_rounded(size, sharing.block_bytes) for size in self._bytes]
        kinds = [self._kinds.get(number, "temporaries") for number in range(len(sizes))]
        walk = {phase: _Walk(sharing, phase) for phase in (PASSES, UPDATE)}
        held = dict.fromkeys(MEMORY_KINDS, 0)
        phase = PASSES
        for event in self._events:
            if isinstance(event, str):
                phase = event
            else:
                comes, number = event
                held[kinds[number]] += sizes[number] if comes else -sizes[number]
                walk[phase].look(held)
        return {phase: Peak(walked.parts, walked.passing) for phase, walked in walk.items()}


class _Walk:
    """Remembers the fullest moment it has seen."""

    def __init__(self, sharing: Sharing, phase: str) -> None:
        self._shares = {kind: sharing.shares.get(kind, 1.0) for kind in MEMORY_KINDS}
        if phase == UPDATE:
            self._shares["temporaries"] = sharing.update_share
        self._extra = {kind: sharing.extra_bytes.get(phase, {}).get(kind, 0) for kind in MEMORY_KINDS}
        self._most = -1.0
        self.parts: dict[str, int] = dict.fromkeys(MEMORY_KINDS, 0)
        self.passing = 0

    def look(self, held: Mapping[str, int]) -> None:
        total = sum(held[kind] * self._shares[kind] for kind in MEMORY_KINDS)
        passing = sum(math.ceil(held[kind] * self._shares[kind]) + self._extra[kind] for kind in PASSING)
        self.passing = max(self.passing, passing)
        if total > self._most:
            self._most = total
            self.parts = {kind: math.ceil(held[kind] * self._shares[kind]) + self._extra[kind] for kind in MEMORY_KINDS}


def _rounded(size: int, block: int) -> int:
    return -(-size // block) * block
