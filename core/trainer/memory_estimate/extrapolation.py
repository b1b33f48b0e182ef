"""Computes the account of a deep model from two shallow ones, and that of any batch from two. Imports the standard library only.

Layers of the same kind allocate the same. The account of a model with one more layer therefore has additional blocks of events, each of
which repeats the events before it: one in the forward pass, one in the backward pass, one for each list that the optimizer iterates
over. In the account of a deep model each block is repeated once per additional layer. Every moment is reproduced, not only the peak.

With the batch each storage grows by a constant number of bytes per sample, and a loss that is computed in chunks has more chunks. A
chunk frees all that it allocates, so the number of chunks does not affect the peak; the last chunk, which is smaller, counts as a full
one. Accounts that do not follow these rules raise ``Irregular``, and the caller traces the workload in full.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any

from .ledger import Account, Ledger

# attempts before the search for inserted blocks ends
MOST_TRIALS = 1000


class Irregular(Exception):
    """Two accounts differ by more than repeated blocks; the message says where."""


@dataclasses.dataclass(frozen=True)
class Insertion:
    """A repeated block.

    Attributes:
        before: position in the shorter account at which the block is inserted.
        at: position of the block in the longer account.
        length: number of events.
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
        """Return the ledger of a batch, relative to that of ``sizes``; 2 is that of ``more``."""
        over, of = part.numerator - part.denominator, part.denominator
        # rounded up, in integers: fractions are slow
        sizes = [size - (size - later) * over // of for size, later in zip(self.sizes, self.more, strict=True)]
        return Ledger.of(dataclasses.replace(self.account, sizes=sizes))

    def tokens(self) -> list[Hashable]:
        """Return a value for each event that is equal for events of the same kind."""
        return _tokens(self.account, lambda number: (self.sizes[number], self.more[number]))


def batches(small: Ledger, large: Ledger) -> Grown:
    """Return the account of ``small`` with the sizes its storages have in ``large``, whose batch is twice as large.

    Raises:
        Irregular: the accounts differ by more than the chunks of a loss, or memory grows faster than the batch.
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
            # the order of the samples, a list that is shorter with a larger batch: the longer list counts
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
        raise Irregular("The chunks of the loss do not free all of their memory.")


def _fill_last_piece(account: Account, block: Insertion, sizes: list[int], more: list[int]) -> None:
    """Set the sizes of the last chunk, which ends where the block is inserted, to those of the full chunks before it."""

    def made(length: int) -> list[int]:
        events = account.events[max(0, block.before - length) : block.before]
        return [event[1] for event in events if isinstance(event, tuple) and event[0] is True]

    full = {(account.makers[one], sizes[one]) for one in made(2 * block.length) if sizes[one] == more[one]}
    for number in made(block.length):
        if (account.makers[number], more[number]) in full:
            sizes[number] = more[number]


def grown_like(shallow: Grown, deep: Ledger) -> Grown:
    """Return the account of a model with more layers than ``shallow``, traced at one batch, whose storages grow as those of ``shallow``.

    Raises:
        Irregular: the accounts do not differ by repeated blocks, or a storage grows with the batch and the number of layers.
    """
    account = deep.account()
    try:
        return _grown_like(shallow, account)
    except Irregular:
        sizes = shallow.account.sizes
        ours = dataclasses.replace(shallow, account=_in_order(shallow.account, sizes.__getitem__))
        return _grown_like(ours, _in_order(account, account.sizes.__getitem__))


def _grown_like(shallow: Grown, deep: Account) -> Grown:
    known = shallow.account.sizes
    ours, theirs = _tokens(shallow.account, known.__getitem__), _tokens(deep, deep.sizes.__getitem__)
    shared = set(ours) & set(theirs)
    theirs = [_of_any_size(one, shared) for one in theirs]
    blocks = _insertions([_of_any_size(one, shared) for one in ours], theirs)
    alike = {mine: other for other, mine in _partners(shallow.account, deep, blocks).items()}
    for block in blocks:
        period = _period(theirs, block.at, block.length)
        assert period is not None
        for position in range(block.at, block.at + block.length):
            event = deep.events[position]
            if isinstance(event, tuple) and event[0] is True:
                alike[event[1]] = alike[deep.events[position - period][1]]
    sizes, more = list(deep.sizes), list(deep.sizes)
    for mine, other in alike.items():
        if deep.sizes[mine] == known[other]:
            sizes[mine], more[mine] = shallow.sizes[other], shallow.more[other]
        elif shallow.more[other] != shallow.sizes[other]:
            raise Irregular(f"{deep.makers[mine] or 'a storage'} grows with the batch and the number of layers.")
    return Grown(deep, sizes, more)


def deeper(shallow: Grown, deep: Grown, layers: int) -> Grown:
    """Return the account of a deeper model: ``shallow`` with ``layers`` times the layers that ``deep`` has in addition.

    Raises:
        Irregular: the accounts do not differ by repeated blocks.
    """
    try:
        return _deeper(shallow, deep, layers)
    except Irregular:
        return _deeper(_grown_in_order(shallow), _grown_in_order(deep), layers)


def _deeper(shallow: Grown, deep: Grown, layers: int) -> Grown:
    ours, theirs = shallow.tokens(), deep.tokens()
    # lists with one number per layer have a different size in each account
    shared = set(ours) & set(theirs)
    blocks = _insertions([_of_any_size(one, shared) for one in ours], [_of_any_size(one, shared) for one in theirs])
    partner = _partners(shallow.account, deep.account, blocks)
    growing = {theirs: ours for ours, theirs in partner.items() if shallow.sizes[ours] != deep.sizes[theirs]}
    return _Repeated(shallow, deep, blocks, growing, layers).grown()


def _of_any_size(token: Hashable, shared: set[Hashable]) -> Hashable:
    return token if token in shared or isinstance(token, str) else (*token[:3], None)  # type: ignore[index]


class _Repeated:
    """Writes the events of ``deep`` with each inserted block repeated ``times`` times.

    An event identifies its storage by the position among the live storages of the same class.
    """

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
        """Write an event of a live storage."""
        key, distance, from_first = place
        alive = self._alike[key]
        distance = min(distance, len(alive) - 1)
        index = distance if from_first else len(alive) - 1 - distance
        if event[0] is False:
            self._account.events.append((False, alive.pop(index)))
        else:
            self._account.events.append((alive[index], event[1]))


def _places(grown: Grown) -> list[Any]:
    """Return, for each event that frees a storage or changes its kind, its class and position among the live storages of that class.

    The position is counted from the nearer end: a list of tensors is freed from the first on, saved activations from the last on.
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
    """Return the account with consecutive frees in a fixed order.

    Their order does not change the peak. It is arbitrary where a library drops a dictionary of tensors.
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
    """Return the blocks that ``long`` has in addition to ``short``; each repeats the events before it.

    Of several possible blocks, the one that is followed by most equal events is tried first.
    """
    found: list[Insertion] = []
    # for each insertion so far, the other possible blocks
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
    raise Irregular(f"Event {i} of the smaller account has no counterpart in the larger one.")


def _repetitions(short: Sequence[Hashable], long: Sequence[Hashable], i: int, j: int) -> list[Insertion]:
    """Return the blocks that may have been inserted here, the most likely one last."""
    more = (len(long) - j) - (len(short) - i)
    at_end = i == len(short)
    lengths = [more] if at_end else [length for length in range(1, more + 1) if long[j + length] == short[i]]
    fitting = [length for length in lengths if _period(long, j, length) is not None]
    fitting.sort(key=lambda length: (_run(short, long, i, j + length), -length))
    return [Insertion(i, j, length) for length in fitting]


def _period(events: Sequence[Hashable], at: int, length: int) -> int | None:
    """Return the largest divisor of ``length`` with which the events before the block repeat in it; None if there is none."""
    periods = (length // count for count in range(1, length + 1) if length % count == 0)
    same = (
        period
        for period in periods
        if period <= at and events[at : at + length] == events[at - period : at + length - period]
    )
    return next(same, None)


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
