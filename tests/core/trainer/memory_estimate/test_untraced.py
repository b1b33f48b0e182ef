"""Exceptions of a trace, and the messages that users get."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from ado_actuators.sfttrainer.core.trainer.errors import BadInput, DataError, Refused
from ado_actuators.sfttrainer.core.trainer.memory_estimate.untraced import explained

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "error", [IndexError("tuple index out of range"), RuntimeError("size of tensor a"), KeyError("x")]
)
def test_exceptions_of_a_trace_become_one_message(error: Exception) -> None:
    """The message names model, class and text of the exception; the log gets the traceback of its cause."""
    with pytest.raises(Refused) as caught, explained("tiny"):
        raise error
    said = f"{type(error).__name__}: {error}"
    assert str(caught.value) == f"finetune_memory_estimate cannot trace model tiny: its code failed: {said}."
    assert caught.value.__cause__ is error


def test_faults_of_input_and_machine_keep_their_messages() -> None:
    """They are no faults of the model."""
    for error in (
        BadInput("no such file"),
        DataError("line 3"),
        Refused("not here"),
        OSError("disk full"),
        MemoryError(),
    ):
        with pytest.raises(type(error)) as caught, explained("tiny"):
            raise error
        assert caught.value is error
