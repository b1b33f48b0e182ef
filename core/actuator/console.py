"""The messages that ado's console understands."""

from __future__ import annotations

from typing import Any


def spinner(identifier: str, label: str, state: str) -> Any:
    """Return a line of the console that is shown from state ``start`` to state ``stop``."""
    from ado.modules.operators.console_output import RichConsoleSpinnerMessage

    return RichConsoleSpinnerMessage(id=identifier, label=label, state=state)
