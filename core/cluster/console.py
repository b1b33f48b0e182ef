"""Lines in ado's console, through the actor that ado runs for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ..protocol.messages import describe

# makes a console message of a line's identifier, its text and its state, start or stop
Message = Callable[[str, str, str], Any]


def line(identifier: str, message: Message) -> Callable[[str, str], None]:
    """Return a function that shows a text, with a state, in one line of ado's console.

    There is no console under ``execute()`` and ``run_experiment``; then nothing is shown.
    """
    try:
        console = ray.get_actor("RichConsoleQueue")
    except Exception:
        return lambda text, state: None

    def put(text: str, state: str) -> None:
        with contextlib.suppress(Exception):
            console.put.remote(message(identifier, text, state))

    return put


@contextlib.contextmanager
def console_line(identifier: str, label: str, message: Message) -> Iterator[Any]:
    """Show a line in ado's console while the block runs; yields a function that takes a trainer's progress messages."""
    put = line(identifier, message)
    begin = time.monotonic()
    try:
        yield lambda progress: put(f"{label}: {describe(progress)}", "start")
    finally:
        put(f"{label}: done in {time.monotonic() - begin:.1f} s", "stop")
