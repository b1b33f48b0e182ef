"""What a stack raises when it knows the cause: each carries the one sentence a user gets. Imports the standard library only."""

from __future__ import annotations


class Refused(Exception):
    """The workload is impossible in this environment or on this hardware; a finished measurement with ``is_valid`` 0."""


class Broken(Exception):
    """The measurement cannot be made as asked: a missing package, an unreadable model, bad data."""
