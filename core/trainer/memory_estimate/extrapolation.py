"""The account of a deep model and of any batch from accounts of shallow models and of two batches. Standard library only.

Layers of one kind do the same, so the account of a model with one more of them differs from that of the model without it by blocks of
events that repeat what stands before them: one in the forward pass, one in the backward pass, one for each list that the optimizer
goes through. An account of many layers has each block as often as there are more layers. Moments are reproduced, not only peaks.

With the batch the storages grow, each by the same number of bytes a sample, and a loss that is computed in pieces has more pieces. A
piece leaves nothing behind, so their number does not matter for what lives beside them; the last one, which is smaller, is taken as
full. What does not follow these rules raises ``Irregular``, and the caller traces it in full.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any

from .ledger import Account, Ledger

# insertions tried before the search is given up
MOST_TRIALS = 1000


class Irregular(Exception):
    """Accounts do not differ by repetitions; the message says where."""


@dataclasses.dataclass(frozen=True)
class Insertion:
    """A repeated block.

    Attributes:
        before: position in the shorter account that the block stands before.
        at: where the block begins in the longer account.
        length: events of the block.
    """

    before: int
    at: int
    length: int


@dataclasses.dataclass
class Grown:
    """An account whose storages grow with the batch: ``sizes`` at one batch, ``more`` at another."""

    account: Account
    sizes: list[int]
    more: list[int]

    def at(self, part: Fraction) -> Ledger:
        """Return the account at a batch: 1 is that of ``sizes``, 2 that of ``more``."""
        sizes = [
            size + math.ceil((later - size) * (part - 1)) for size, later in zip(self.sizes, self.more, strict=True)
        ]
        return Ledger.of(dataclasses.replace(self.account, sizes=sizes))

    def tokens(self) -> list[Hashable]:
        """Return for each event what it is, equal for events that do the same."""
        return _tokens(self.account, lambda number: (self.sizes[number], self.more[number]))


def batches(small: Ledger, large: Ledger) -> Grown:
    """Return the account of ``small`` with the sizes its storages have in ``large``, whose batch is twice as large.

    Raises:
        Irregular: the accounts differ by more than the pieces of a loss, or memory grows faster than the batch.
    """
    one, two = small.account(), large.account()
    try:
        return _batches(one, two)
    except Irregular:
        return _batches(_in_order(one), _in_order(two))


def _batches(one: Account, two: Account) -> Grown:
    blocks = _insertions(_tokens(one), _tokens(two))
    partner = _partners(one, two, blocks)
    sizes = list(one.sizes)
    more = [two.sizes[partner[number]] if number in partner else size for number, size in enumerate(sizes)]
    for block in blocks:
        _check_leaves_nothing(two, block)
        _fill_last_piece(one, block, sizes, more)
    for number, (size, later) in enumerate(zip(sizes, more, strict=True)):
        if later < size:
            # the order of the samples, of which there are fewer where a batch is larger: the larger list is counted
            more[number] = size
        if later > 2 * size:
            raise Irregular(
                f"{one.makers[number] or 'a storage'} grows from {size} to {later} bytes with twice the batch."
            )
    return Grown(one, sizes, more)


def _check_leaves_nothing(account: Account, block: Insertion) -> None:
    left = 0
    for event in account.events[block.at : block.at + block.length]:
        if isinstance(event, tuple) and isinstance(event[0], bool):
            left += account.sizes[event[1]] if event[0] else -account.sizes[event[1]]
    if left > 0:
        raise Irregular("the pieces of the loss leave memory behind.")


def _fill_last_piece(account: Account, block: Insertion, sizes: list[int], more: list[int]) -> None:
    """Give the last piece, which stands before the inserted block, the sizes of a full one: those of the pieces before it."""

    def made(length: int) -> list[int]:
        events = account.events[max(0, block.before - length) : block.before]
        return [event[1] for event in events if isinstance(event, tuple) and event[0] is True]

    full = {(account.makers[one], sizes[one]) for one in made(2 * block.length) if sizes[one] == more[one]}
    for number in made(block.length):
        if (account.makers[number], more[number]) in full:
            sizes[number] = more[number]


def deeper(shallow: Grown, deep: Grown, layers: int) -> Grown:
    """Return the account of a model that has ``layers`` times what ``deep`` has more than ``shallow``.

    Raises:
        Irregular: the accounts do not differ by repeated blocks.
    """
    try:
        return _deeper(shallow, deep, layers)
    except Irregular:
        return _deeper(_grown_in_order(shallow), _grown_in_order(deep), layers)


def _deeper(shallow: Grown, deep: Grown, layers: int) -> Grown:
    ours, theirs = shallow.tokens(), deep.tokens()
    # lists of one number a layer have another size in each account
    shared = set(ours) & set(theirs)
    blocks = _insertions([_of_any_size(one, shared) for one in ours], [_of_any_size(one, shared) for one in theirs])
    partner = _partners(shallow.account, deep.account, blocks)
    growing = {theirs: ours for ours, theirs in partner.items() if shallow.sizes[ours] != deep.sizes[theirs]}
    return _Repeated(shallow, deep, blocks, growing, layers).grown()


def _of_any_size(token: Hashable, shared: set[Hashable]) -> Hashable:
    return token if token in shared or isinstance(token, str) else (*token[:3], None)  # type: ignore[index]


class _Repeated:
    """Writes the events of ``deep``, its inserted blocks ``times``; events name storages by their place among those alike."""

    def __init__(
        self, shallow: Grown, deep: Grown, blocks: list[Insertion], growing: dict[int, int], times: int
    ) -> None:
        self._shallow = shallow
        self._deep = deep
        self._growing = growing
        self._times = times
        self._ends = {block.at + block.length: block for block in blocks}
        self._account = Account([], [], {}, [])
        self._sizes: list[int] = []
        self._more: list[int] = []
        self._alike: dict[Hashable, list[int]] = defaultdict(list)
        self._places = _places(deep)

    def grown(self) -> Grown:
        """Return the account of the deep model."""
        events = self._deep.account.events
        for position in range(len(events) + 1):
            block = self._ends.get(position)
            for _ in range(self._times - 1 if block else 0):
                for again in range(block.at, block.at + block.length):  # type: ignore[union-attr]
                    self._write(again)
            if position < len(events):
                self._write(position)
        return Grown(self._account, self._sizes, self._more)

    def _write(self, position: int) -> None:
        event = self._deep.account.events[position]
        if isinstance(event, str):
            self._account.events.append(event)
        elif event[0] is True:
            self._allocate(event[1])
        else:
            self._refer(event, self._places[position])

    def _allocate(self, template: int) -> None:
        number = len(self._sizes)
        account = self._deep.account
        self._account.events.append((True, number))
        for sizes, mine, shallow in (
            (self._deep.sizes, self._sizes, self._shallow.sizes),
            (self._deep.more, self._more, self._shallow.more),
        ):
            size = sizes[template]
            if template in self._growing:
                size += (self._times - 1) * (size - shallow[self._growing[template]])
            mine.append(size)
        self._account.sizes.append(self._sizes[-1])
        self._account.makers.append(account.makers[template])
        if (kind := account.kinds.get(template)) is not None:
            self._account.kinds[number] = kind
        self._alike[_class(self._deep, template)].append(number)

    def _refer(self, event: Any, place: tuple[Hashable, int, bool]) -> None:
        """Write an event of a living storage."""
        key, distance, from_first = place
        alive = self._alike[key]
        distance = min(distance, len(alive) - 1)
        index = distance if from_first else len(alive) - 1 - distance
        if event[0] is False:
            self._account.events.append((False, alive.pop(index)))
        else:
            self._account.events.append((alive[index], event[1]))


def _places(grown: Grown) -> list[Any]:
    """Return for each event that frees or renames a storage its class, and its place among those alike from the end that is nearer.

    A list of tensors goes from the first on, what the backward pass needs from the last on.
    """
    alive: dict[Hashable, list[int]] = defaultdict(list)
    from_first: dict[Hashable, bool] = {}
    places: list[Any] = []
    for event in grown.account.events:
        if isinstance(event, str):
            places.append(None)
        elif event[0] is True:
            alive[_class(grown, event[1])].append(event[1])
            places.append(None)
        else:
            number = event[1] if event[0] is False else event[0]
            key = _class(grown, number)
            older = alive[key].index(number)
            newer = len(alive[key]) - 1 - older
            if older != newer:
                from_first[key] = older < newer
            places.append((key, min(older, newer), from_first.get(key, False)))
            if event[0] is False:
                del alive[key][older]
    return places


def _class(grown: Grown, number: int) -> Hashable:
    account = grown.account
    return (grown.sizes[number], grown.more[number], account.kinds.get(number), account.makers[number])


# -- alignment -------------------------------------------------------------------------------------------------


def _in_order(account: Account, size: Any = lambda number: None) -> Account:
    """Return the account with storages that go one after the other in an order of their own.

    Which of them goes first makes no difference; where a library forgets a table of tensors, it is accidental.
    """
    events: list[Any] = []
    pairs = zip(account.events, _tokens(account, size), strict=True)
    for freed, group in itertools.groupby(pairs, key=lambda pair: pair[0][0] is False):
        events += [event for event, _ in (sorted(group, key=lambda pair: str(pair[1])) if freed else group)]
    return dataclasses.replace(account, events=events)


def _grown_in_order(grown: Grown) -> Grown:
    account = _in_order(grown.account, lambda number: (grown.sizes[number], grown.more[number]))
    return dataclasses.replace(grown, account=account)


def _tokens(account: Account, size: Any = lambda number: None) -> list[Hashable]:
    def token(event: Any) -> Hashable:
        if isinstance(event, str):
            return event
        turned = not isinstance(event[0], bool)
        number = event[0] if turned else event[1]
        return (event[1] if turned else event[0], account.kinds.get(number), account.makers[number], size(number))

    return [token(event) for event in account.events]


def _insertions(short: Sequence[Hashable], long: Sequence[Hashable]) -> list[Insertion]:
    """Return what ``long`` has more than ``short``; each block repeats the events before it.

    Where several blocks would do, the one after which most events are equal is tried first.
    """
    found: list[Insertion] = []
    # for each insertion made so far the other blocks that would do
    open_: list[list[Insertion]] = []
    i = j = 0
    for _ in range(MOST_TRIALS):
        equal = _run(short, long, i, j)
        i, j = i + equal, j + equal
        if i == len(short) and j == len(long):
            return found
        open_.append(_repetitions(short, long, i, j))
        while open_ and not open_[-1]:
            open_.pop()
            found = found[: max(0, len(open_) - 1)]
        if not open_:
            break
        found = [*found[: len(open_) - 1], open_[-1].pop()]
        i, j = found[-1].before, found[-1].at + found[-1].length
    raise Irregular(f"event {i} of the smaller account has no counterpart.")


def _repetitions(short: Sequence[Hashable], long: Sequence[Hashable], i: int, j: int) -> list[Insertion]:
    """Return the blocks that may have been inserted here, the likeliest last."""
    more = (len(long) - j) - (len(short) - i)
    at_end = i == len(short)
    lengths = [more] if at_end else [length for length in range(1, more + 1) if long[j + length] == short[i]]
    fitting = [length for length in lengths if _repeats(long, j, length)]
    fitting.sort(key=lambda length: (_run(short, long, i, j + length), -length))
    return [Insertion(i, j, length) for length in fitting]


def _repeats(events: Sequence[Hashable], at: int, length: int) -> bool:
    """Whether a block is one or several copies of what stands before it."""
    periods = (length // count for count in range(1, length + 1) if length % count == 0)
    return any(
        events[at : at + length] == events[at - period : at + length - period] for period in periods if period <= at
    )


def _run(short: Sequence[Hashable], long: Sequence[Hashable], i: int, j: int) -> int:
    most = min(len(short) - i, len(long) - j)
    length = 0
    while length < most and short[i + length] == long[j + length]:
        length += 1
    return length


def _partners(one: Account, two: Account, blocks: list[Insertion]) -> dict[int, int]:
    """Return for each storage of ``one`` its number in ``two``."""
    partner: dict[int, int] = {}
    j = 0
    inserted = {block.before: block.length for block in blocks}
    for i, event in enumerate(one.events):
        j += inserted.get(i, 0)
        if isinstance(event, tuple) and event[0] is True:
            partner[event[1]] = int(two.events[j][1])
        j += 1
    return partner
