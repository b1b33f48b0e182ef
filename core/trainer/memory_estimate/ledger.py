"""The account of a traced step: which storage lived when, what it was for, and the peak of it all. Standard library only.

Storages are written down as they come and go. What a storage was for is often known only later (a gradient becomes one
when it is stored in ``.grad``), so the peak is found afterwards, by going through the account once more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...protocol.messages import MEMORY_KINDS

PASSING = ("activations", "temporaries")
# what FSDP holds whole for a while: parameters of units at work, gradients that are not reduced yet
GATHERED, UNREDUCED = "gathered", "unreduced"
# buffers, which FSDP does not share
WHOLE = "whole"
PART_OF = {**{kind: kind for kind in MEMORY_KINDS}, GATHERED: "parameters", UNREDUCED: "gradients", WHOLE: "parameters"}
GATHERS, REDUCES = 1, 2
# a training step is in one of two phases: passes through the model, or the optimizer's update; before training a model is made
PASSES, UPDATE = "passes", "update"
LOADING = "loading"


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What of the account a single device holds.

    Attributes:
        shares: for each kind the part of it that a device holds; kinds left out are held whole.
        update_share: the part of the update's temporaries that a device holds.
        extra_bytes: for each phase and kind what a device holds besides, such as buffers of the wrapper.
        block_bytes: sizes are rounded up to a multiple of it, as the device's allocator does.
        constant_blocks: sizes of the blocks that ``extra_bytes`` are in.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    update_share: float = 1.0
    extra_bytes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    block_bytes: int = 1
    constant_blocks: tuple[int, ...] = ()

    def bytes_of(self, size: int, kind: str, phase: str) -> int:
        """Return what a device holds of a storage of ``size`` bytes that is made in ``phase``."""
        share = self.shares.get(kind, 1.0)
        if kind == "temporaries" and phase == UPDATE:
            share = self.update_share
        return _rounded(math.ceil(size * share), self.block_bytes)


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


@dataclasses.dataclass(frozen=True)
class Change:
    """A storage comes to a device (``size`` above 0) or goes.

    Attributes:
        number: of the storage.
        kind: of ``MEMORY_KINDS``.
        size: bytes on the device.
        phase: of the step.
        stream: of the device: FSDP gathers and reduces on streams of their own.
    """

    number: int
    kind: str
    size: int
    phase: str
    stream: int = 0


@dataclasses.dataclass
class Account:
    """What a ledger has written down.

    Attributes:
        sizes: bytes of each storage, by number.
        makers: the operation that made it.
        kinds: what it was for, where that is known.
        events: what came, went, or began, in order.
    """

    sizes: list[int]
    makers: list[str]
    kinds: dict[int, str]
    events: list[Any]


class Ledger:
    """Storages by number, in the order in which they came and went."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._makers: list[str] = []
        self._kinds: dict[int, str] = {}
        # a storage came or went, became of another kind, or a phase began
        self._events: list[Any] = []
        self._alive: set[int] = set()

    @classmethod
    def of(cls, account: Account) -> Ledger:
        """Return a ledger that reads what has been written down, to which nothing is to be added."""
        made = cls()
        made._bytes, made._makers = account.sizes, account.makers
        made._kinds, made._events = account.kinds, account.events
        return made

    def account(self) -> Account:
        """Return what has been written down; it is not a copy."""
        return Account(self._bytes, self._makers, self._kinds, self._events)

    def allocate(self, size: int, maker: str = "") -> int:
        """Write down a new storage of ``size`` bytes that the operation ``maker`` made; return its number."""
        number = len(self._bytes)
        self._bytes.append(size)
        self._makers.append(maker)
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

    def turn(self, number: int, kind: str) -> None:
        """Say that a storage is for something else from now on."""
        self._events.append((number, kind))

    def end_forward(self) -> None:
        """Say that the backward pass begins: what lives now and has no name was kept for it."""
        for number in self._alive:
            self.name(number, "activations")

    def begin(self, phase: str) -> None:
        """Say that a phase begins; an account starts with passes. Of ``LOADING`` only what is left at its end counts."""
        self._events.append(phase)

    def changes(self, sharing: Sharing) -> Iterator[Change]:
        """Return what comes and goes on one device, in order."""
        kinds = {number: self._kinds.get(number, "temporaries") for number in range(len(self._bytes))}
        held: dict[int, tuple[str, int]] = {}
        phase = PASSES
        for event in self._events:
            if isinstance(event, str):
                if phase == LOADING:
                    yield from (Change(number, part, size, event) for number, (part, size) in held.items() if size)
                phase = event
                continue
            first, second = event
            if isinstance(second, str):
                number, kind = first, second
                comes = number in held
            else:
                number, comes = second, bool(first)
                kind = kinds[number]
            stream = REDUCES if isinstance(second, str) else GATHERS if kind == GATHERED else 0
            if number in held:
                was, size = held.pop(number)
                if size and phase != LOADING:
                    yield Change(number, was, -size, phase)
            if comes:
                part, size = PART_OF[kind], sharing.bytes_of(self._bytes[number], kind, phase)
                held[number] = part, size
                if size and phase != LOADING:
                    yield Change(number, part, size, phase, stream)

    def peaks(self, sharing: Sharing) -> dict[str, Peak]:
        """Return the fullest moment of each phase on one device."""
        walk = {phase: _Walk(sharing, phase) for phase in (PASSES, UPDATE)}
        held = dict.fromkeys(MEMORY_KINDS, 0)
        for change in self.changes(sharing):
            held[change.kind] += change.size
            walk[change.phase].look(held)
        return {phase: Peak(walked.parts, walked.passing) for phase, walked in walk.items()}


class _Walk:
    """Remembers the fullest moment it has seen."""

    def __init__(self, sharing: Sharing, phase: str) -> None:
        extra = sharing.extra_bytes.get(phase, {})
        self._extra = {kind: extra.get(kind, 0) for kind in MEMORY_KINDS}
        self._most = -1
        self.parts: dict[str, int] = dict.fromkeys(MEMORY_KINDS, 0)
        self.passing = 0

    def look(self, held: Mapping[str, int]) -> None:
        passing = sum(held[kind] + self._extra[kind] for kind in PASSING)
        self.passing = max(self.passing, passing)
        total = sum(held.values())
        if total > self._most:
            self._most = total
            self.parts = {kind: held[kind] + self._extra[kind] for kind in MEMORY_KINDS}


def _rounded(size: int, block: int) -> int:
    return -(-size // block) * block
