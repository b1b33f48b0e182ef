"""Printing results. Standard library only."""

from __future__ import annotations

import sys


def show(text: str) -> None:
    """Print ``text``. A reader that has closed the pipe, for example ``head``, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # without a stream Python does not try to flush it again at exit
        sys.stdout = None  # type: ignore[assignment]
