"""Numbers and lists in words, the same in every output. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable


def rounded(value: float) -> str:
    """Return a value with three digits, or without decimals from 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plus_minus(percent: float | None) -> str:
    """Return the half-width of an interval in words, such as `` ± 3.2 %``; empty for None."""
    if percent is None:
        return ""
    return f" ± {percent:.0f} %" if percent >= 10 else f" ± {percent:.2g} %"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Return words as a list in a sentence: ``a, b and c``; empty for none."""
    *before, end = [*words] or [""]
    return f"{', '.join(before)} {last} {end}" if before else end
