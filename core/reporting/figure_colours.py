"""Which colour a measurement has in every figure of a report: that of one property, the same in all of them. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from . import tables
from .rows import FIELDS, Row, differing

# colours that colour-blind readers can tell apart (after Okabe and Ito)
SERIES = ("#0067a5", "#d55e00", "#00845f", "#b0468f", "#a67c00", "#454f59")
# the property that gives the colour is the first of these with several values; properties of numbers come last
FIRST = ("actuator", "method", "model_name", "source")
NUMBERS = ("model_max_length", "batch_size", "number_gpus", "number_nodes")


@dataclasses.dataclass(frozen=True)
class Colours:
    """The colours of a report.

    Attributes:
        name: the property or attribute of ``rows.KEYS`` that gives the colour; None: all have the first colour.
        values: its values in the order of ``SERIES``; further values share the last colour.
    """

    name: str | None = None
    values: tuple[Any, ...] = ()

    def index(self, row: Row) -> int:
        """Return the index of a row's colour in ``SERIES``."""
        if self.name is None:
            return 0
        value = row.value(self.name)
        return min(self.values.index(value) if value in self.values else len(SERIES), len(SERIES) - 1)

    def of(self, row: Row) -> str:
        """Return the colour of a row."""
        return SERIES[self.index(row)]

    def groups(self, rows: Iterable[Row]) -> dict[int, list[Row]]:
        """Return rows by the index of their colour."""
        found: dict[int, list[Row]] = {}
        for row in rows:
            found.setdefault(self.index(row), []).append(row)
        return dict(sorted(found.items()))


def colours_of(rows: Sequence[Row]) -> Colours:
    """Return the colours of a report on these rows: of a property in which the measured ones differ, with at most six values."""
    measured = tables.with_throughput(rows) or list(rows)
    varied = [name for name in differing(measured) if name not in (*FIRST, *NUMBERS)]
    texts = [name for name in varied if name in FIELDS and not _numeric(row.value(name) for row in measured)]
    others = [name for name in varied if name not in texts]
    for name in (*FIRST, *texts, *NUMBERS, *others):
        values = _values(measured, name)
        if 1 < len(values) <= len(SERIES):
            # those of failed workloads come last: figures do not need their colours as much
            return Colours(name, tuple(dict.fromkeys((*values, *_values(rows, name)))))
    return Colours()


def _values(rows: Sequence[Row], name: str) -> tuple[Any, ...]:
    """Return the different values in the order of the rows, numbers in ascending order."""
    found: list[Any] = []
    for row in rows:
        if row.value(name) not in found:
            found.append(row.value(name))
    return tuple(sorted(found)) if _numeric(found) else tuple(found)


def _numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
