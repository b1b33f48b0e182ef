"""Records when each storage of a traced step was allocated and freed, and its kind; finds the peak. Imports the standard library only.

The recorded events are the *account* of the step. The kind of a storage is often known only later (a tensor becomes a gradient when it
is stored in ``.grad``), so the peak is found in a second pass over the events.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...protocol.messages import MEMORY_KINDS

PASSING = ("activations", "temporaries")
# what FSDP holds in full temporarily: parameters of the current units, gradients that are not reduced yet
GATHERED, UNREDUCED = "gathered", "unreduced"
# buffers, which FSDP does not shard
WHOLE = "whole"
PART_OF = {**{kind: kind for kind in MEMORY_KINDS}, GATHERED: "parameters", UNREDUCED: "gradients", WHOLE: "parameters"}
GATHERS, REDUCES = 1, 2
# phases of a training step: passes through the model, and the optimizer's update. Before them the model is made (``LOADING``)
PASSES, UPDATE = "passes", "update"
LOADING = "loading"


@dataclasses.dataclass(frozen=True)
class Sharing:
    """The share of the traced memory that a single device holds.

    Attributes:
        shares: for each kind the fraction of it that a device holds; a missing kind is held in full.
        update_share: the fraction of the update's temporaries that a device holds.
        extra_bytes: for each phase and kind additional bytes of a device, such as buffers of the wrapper.
        block_bytes: sizes are rounded up to a multiple of this number, as by the device's allocator.
        constant_blocks: sizes of the blocks that contain ``extra_bytes``.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    update_share: float = 1.0
    extra_bytes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    block_bytes: int = 1
    constant_blocks: tuple[int, ...] = ()

    def bytes_of(self, size: int, kind: str, phase: str) -> int:
        """Return the bytes that a device holds of a storage of ``size`` bytes that is allocated in ``phase``."""
        share = self.shares.get(kind, 1.0)
        if kind == "temporaries" and phase == UPDATE:
            share = self.update_share
        return _rounded(math.ceil(size * share), self.block_bytes)


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of a phase with most bytes in use.

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


class Change(NamedTuple):
    """A storage is allocated on a device (``size`` above 0) or freed (below 0).

    Attributes:
        number: number of the storage.
        kind: one of ``MEMORY_KINDS``.
        size: bytes on the device.
        phase: phase of the step.
        stream: the device's stream: FSDP gathers and reduces on separate streams.
    """

    number: int
    kind: str
    size: int
    phase: str
    stream: int = 0


@dataclasses.dataclass
class Account:
    """The events of a traced step.

    Attributes:
        sizes: bytes of each storage, by number.
        makers: operation that allocated each storage, by number.
        kinds: kind of each storage, where it is known.
        events: in order: ``(True, number)`` an allocation, ``(False, number)`` a free, ``(number, kind)`` a change of kind, a string the
            beginning of a phase.
    """

    sizes: list[int]
    makers: list[str]
    kinds: dict[int, str]
    events: list[Any]


class Ledger:
    """Records allocations and frees of numbered storages."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._makers: list[str] = []
        self._kinds: dict[int, str] = {}
        # see Account.events
        self._events: list[Any] = []
        self._alive: set[int] = set()
        self._ended = False

    @classmethod
    def of(cls, account: Account) -> Ledger:
        """Return a ledger of a complete account; do not add events to it."""
        made = cls()
        made._bytes, made._makers = account.sizes, account.makers
        made._kinds, made._events = account.kinds, account.events
        return made

    def account(self) -> Account:
        """Return the account, not a copy of it."""
        return Account(self._bytes, self._makers, self._kinds, self._events)

    def allocate(self, size: int, maker: str = "") -> int:
        """Record a new storage of ``size`` bytes that the operation ``maker`` allocated; return its number."""
        number = len(self._bytes)
        self._bytes.append(size)
        self._makers.append(maker)
        if not self._ended:
            self._events.append((True, number))
            self._alive.add(number)
        return number

    def free(self, number: int) -> None:
        """Record that a storage is freed."""
        if not self._ended:
            self._events.append((False, number))
            self._alive.discard(number)

    def name(self, number: int, kind: str) -> None:
        """Set the kind of a storage, unless it is already set."""
        self._kinds.setdefault(number, kind)

    def turn(self, number: int, kind: str) -> None:
        """Record that a storage has another kind from now on."""
        self._events.append((number, kind))

    def end_forward(self) -> None:
        """Record the start of the backward pass: live storages without a kind are activations."""
        for number in self._alive:
            self.name(number, "activations")

    def begin(self, phase: str) -> None:
        """Record the start of a phase; an account starts with ``PASSES``. Of ``LOADING`` only storages that are live at its end count."""
        self._events.append(phase)

    def end(self) -> None:
        """End the account: what is freed from now on, when Python destroys what was traced, is no part of it."""
        self._ended = True

    def changes(self, sharing: Sharing) -> Iterator[Change]:
        """Yield the allocations and frees on one device, in order."""
        kinds, sizes, bytes_of = self._kinds, self._bytes, functools.lru_cache(maxsize=None)(sharing.bytes_of)
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
                comes, stream = number in held, REDUCES
            else:
                number, comes = second, bool(first)
                kind = kinds.get(number, "temporaries")
                stream = GATHERS if kind == GATHERED else 0
            if number in held:
                was, size = held.pop(number)
                if size and phase != LOADING:
                    yield Change(number, was, -size, phase)
            if comes:
                part, size = PART_OF[kind], bytes_of(sizes[number], kind, phase)
                held[number] = part, size
                if size and phase != LOADING:
                    yield Change(number, part, size, phase, stream)

    def peaks(self, sharing: Sharing) -> dict[str, Peak]:
        """Return the peak of each phase on one device."""
        walks = {phase: _Walk(sharing, phase) for phase in (PASSES, UPDATE)}
        held = dict.fromkeys(MEMORY_KINDS, 0)
        total = passing = 0
        for _, kind, size, phase, _ in self.changes(sharing):
            held[kind] += size
            total += size
            if kind in PASSING:
                passing += size
            walks[phase].look(held, total, passing)
        return {phase: walk.peak() for phase, walk in walks.items()}


class _Walk:
    """Keeps the moment with most bytes in use."""

    def __init__(self, sharing: Sharing, phase: str) -> None:
        extra = sharing.extra_bytes.get(phase, {})
        self._extra = {kind: extra.get(kind, 0) for kind in MEMORY_KINDS}
        self._most = self._passing = -1
        self._fullest: dict[str, int] = {}

    def look(self, held: dict[str, int], total: int, passing: int) -> None:
        if passing > self._passing:
            self._passing = passing
        if total > self._most:
            self._most, self._fullest = total, held.copy()

    def peak(self) -> Peak:
        if not self._fullest:
            # the phase has no change
            return Peak(dict.fromkeys(MEMORY_KINDS, 0))
        passing = self._passing + sum(self._extra[kind] for kind in PASSING)
        return Peak({kind: size + self._extra[kind] for kind, size in self._fullest.items()}, passing)


def _rounded(size: int, block: int) -> int:
    return -(-size // block) * block
