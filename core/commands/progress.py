"""Shows how far a measurement is, on standard error; lets SIGTERM end it as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..protocol.messages import Progress, describe

if TYPE_CHECKING:
    from rich.console import Console

REPORT_EVERY_S = 30.0


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that its trainers end, too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


class Changes(contextlib.AbstractContextManager["Changes"]):
    """Print a line for each new state and every half minute, where standard error is not a terminal."""

    def __init__(self) -> None:
        self._last = ""
        self._printed_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Print a new state, and the same one again after half a minute."""
        state, now = str(progress.get("state", "")), time.monotonic()
        if state != self._last or now - self._printed_s >= REPORT_EVERY_S:
            self._last, self._printed_s = state, now
            print(describe(progress), file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        """Leave the lines where they are."""


class Bar(contextlib.AbstractContextManager["Bar"]):
    """Show state, steps, rate and the time left at most on a terminal; removed when the block ends."""

    def __init__(self, console: Console | None = None) -> None:
        # imported here: where standard error is not a terminal nothing is drawn
        from rich import console as terminal
        from rich import progress as bars

        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console or terminal.Console(stderr=True),
            transient=True,
            # drawing takes CPU time from trainers on CPUs
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task("", total=None, rate="")

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __call__(self, progress: Progress) -> None:
        """Show the state; with steps also how far it is, at most: a measurement ends earlier once it is precise enough."""
        step, most, rate = progress.get("step"), progress.get("of"), progress.get("tokens_per_second")
        state = str(progress.get("state", ""))
        self._bars.update(
            self._task,
            description=f"{state}, step {step} of at most {most}" if step else state,
            completed=step or 0,
            total=most if step else None,
            rate=f"{rate:.0f} tok/s" if rate else "",
        )

    def __exit__(self, *error: object) -> None:
        """Remove the bar, so that only the report is left."""
        self._bars.stop()
