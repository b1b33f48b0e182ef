"""Errors whose cause is known where they are raised; each message is shown to the user as it is. Imports no third-party package."""

from __future__ import annotations

from ..protocol.messages import bounded


class _Explained(Exception):
    """An error with one message.

    Args:
        message: what is wrong, what was expected, what to do.
        error: exception of a library that the message quotes: its type and text follow the message, in full.
    """

    def __init__(self, message: str, error: BaseException | None = None) -> None:
        self.quotes = error is not None
        super().__init__(message if error is None else f"{message}: {described(error)}.")


class Refused(_Explained):
    """The workload cannot run in this environment or on this hardware. The measurement is complete, with ``is_valid`` 0."""


class BadInput(_Explained):
    """The user's input cannot be used: a model cannot be read, data is malformed, a package is missing."""


class DataError(BadInput, ValueError):
    """The data set cannot be used. The message names the file, the line or row, and what was expected."""


def described(error: BaseException) -> str:
    """Return an exception of a library as its type and its text on one line, without a full stop at the end."""
    text = bounded(" ".join(str(error).split())).rstrip(".")
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
