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
def test_exceptions_of_a_trace_become_one_message(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names model and class; the text of the exception is in the log only."""
    message = "finetune_memory_estimate cannot trace model tiny: its code ended with .*Error; the log has the traceback"
    with pytest.raises(Refused, match=message) as caught, explained("tiny"):
        raise error
    assert str(error) not in str(caught.value)
    assert str(error) in capsys.readouterr().err


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
