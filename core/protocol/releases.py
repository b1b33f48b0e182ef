"""Versions of packages as numbers that can be compared. Standard library only."""

from __future__ import annotations


def release_of(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (4, 57) for ``4.57.1``; empty for an unknown version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
