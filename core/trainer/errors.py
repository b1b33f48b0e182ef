"""Errors whose cause is known where they are raised; each message is shown to the user as it is. Imports no third-party package."""

from __future__ import annotations

import textwrap

from ..protocol.messages import LONGEST_MESSAGE


class Refused(Exception):
    """The workload cannot run in this environment or on this hardware. The measurement is complete, with ``is_valid`` 0."""


class BadInput(Exception):
    """The user's input cannot be used: a model cannot be read, data is malformed, a package is missing."""


class DataError(BadInput, ValueError):
    """The data set cannot be used. The message names the file, the line or row, and what was expected."""


def described(error: BaseException, longest: int) -> str:
    """Return an exception of a library as type and text, in at most ``longest`` characters, cut between words."""
    text = " ".join(str(error).split()).rstrip(".")
    kind = type(error).__name__
    return textwrap.shorten(f"{kind}: {text}" if text else kind, max(longest, len(kind) + 4), placeholder=" …")


def because(head: str, error: BaseException) -> str:
    """Return one message: ``head``, and an exception of a library as far as there is space."""
    return f"{head}: {described(error, LONGEST_MESSAGE - len(head) - 3)}."
