"""Messages in the format of ado's console."""

from __future__ import annotations

from typing import Any


def spinner(identifier: str, label: str, state: str) -> Any:
    """Return a message that shows a line on the console from state ``start`` to state ``stop``."""
    from ado.modules.operators.console_output import RichConsoleSpinnerMessage

    return RichConsoleSpinnerMessage(id=identifier, label=label, state=state)
