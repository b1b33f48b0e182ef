"""The messages between host and trainer: jobs as lines, their workload, and progress as text."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from ado_actuators.sfttrainer.core.protocol import messages
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
from ado_actuators.sfttrainer.core.workload.fields import Workload
from ado_actuators.sfttrainer.core.workload.validation import parse


def job() -> Job:
    """Return a job whose values differ from the defaults."""
    values = {
        "model_name": "tiny-llama-5m",
        "model_max_length": 16,
        "batch_size": 8,
        "number_gpus": 4,
        "method": "lora",
    }
    return Job(
        id="t",
        workload=JobWorkload(**parse(values).model_dump()),
        architecture={"model_type": "llama", "rope_scaling": None, "hidden_act": "gelu"},
        rank=3,
        world_size=4,
        capacity_bytes=10**10,
    )


def test_the_workload_of_a_job_has_the_fields_of_workload() -> None:
    """Names and types are equal, so that host and trainer agree on each value."""
    types = typing.get_type_hints(Workload)
    assert typing.get_type_hints(JobWorkload) == {name: types[name] for name in Workload.model_fields}


def test_properties_agree_with_workload() -> None:
    """Host and trainer compute the same number of processes."""
    for gpus, nodes in ((0, 3), (4, 2)):
        values = {
            "model_name": "m",
            "model_max_length": 16,
            "batch_size": 12,
            "number_gpus": gpus,
            "number_nodes": nodes,
        }
        workload = parse(values)
        assert JobWorkload(**workload.model_dump()).processes == workload.processes


def test_a_job_is_written_and_read_unchanged() -> None:
    """A job is one line, and reading it gives an equal job."""
    line = job().to_line()
    assert "\n" not in line
    assert Job.from_line(line) == job()


def test_a_job_with_an_unknown_field_is_rejected() -> None:
    """Host and trainer use the same code, so an unknown field is an error."""
    line = job().to_line().replace('"threads"', '"thread"')
    with pytest.raises(TypeError, match="thread"):
        Job.from_line(line)


def test_a_job_cannot_be_changed() -> None:
    """Jobs are immutable."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        job().rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (messages.progress("starting"), "starting"),
        ({"event": "progress", "state": "training", "step": 0, "of": 9}, "training"),
        (
            {"event": "progress", "state": "training", "step": 3, "of": 9, "tokens_per_second": 12.6},
            "training, step 3 of at most 9, 13 tok/s",
        ),
    ],
)
def test_progress_as_text(message: messages.Progress, text: str) -> None:
    """The text has the state, and the step and the rate if they are known."""
    assert messages.describe(message) == text
