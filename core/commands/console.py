"""Printing results. Standard library only."""

from __future__ import annotations

import sys


def show(text: str) -> None:
    """Print ``text``. It is not an error if the reader, for example ``head``, has closed the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would flush the stream again at exit, and fail
        sys.stdout = None
