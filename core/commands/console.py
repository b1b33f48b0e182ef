"""Printing results. Standard library only."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Print ``text``. It is not an error if the reader, for example ``head``, has closed the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would flush the stream again at exit, and fail
        sys.stdout = None


def open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller has closed.

    Python has None for such a stream, and its descriptor would go to the next file or pipe that is opened.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def in_no_directory() -> bool:
    """Return whether the current directory has been removed."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False
