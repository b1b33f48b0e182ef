"""The procedure of a measurement, driven with scripted outcomes: the steps that it yields, and its verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.measurement.attempts import (
    Attempt,
    Backoff,
    KnownOutOfMemory,
    backoff_s,
    procedure,
)
from ado_actuators.sfttrainer.core.measurement.outcome import Outcome
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict
from ado_actuators.sfttrainer.core.workload.fields import Workload
from ado_actuators.sfttrainer.core.workload.validation import parse

VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 128,
    "batch_size": 8,
    "number_gpus": 2,
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
}
TRANSIENT = failures.Transient("The trainer process died.").cause
BROKEN = failures.Broken("The trainer took too long.").cause
OUT_OF_MEMORY = failures.OutOfMemory("gpu").cause


@dataclasses.dataclass
class Settings:
    """The parameters of an actuator configuration that the procedure reads."""

    max_retries: int = 2
    retry_backoff_s: float = 5.0
    price_usd_per_device_hour: float | None = None
    skip_predicted_oom: bool = False


def outcome(cause: failures.Cause | None, *, hostname: str = "node", **change: Any) -> Outcome:
    """Return the result of a host that failed with ``cause``."""
    device: dict[str, Any] = {"properties": {}, "omitted": {}, "describe": {}}
    given = {"records": [], "device": device, "total_s": 1.0, "startup_s": 0.0, "log": "", "reused": False}
    return Outcome(**{**given, "cause": cause, "hostname": hostname, **change})


def make(experiment: str = "finetune_full_benchmark", **change: Any) -> Plan:
    """Return a plan."""
    return make_plan("sfttrainer", experiment, {**VALUES, **change})


def drive(
    plan: Plan, causes: list[failures.Cause | None], settings: Settings, known: KnownOutOfMemory | None = None
) -> tuple[Verdict, list[str | float]]:
    """Answer each attempt with the next cause; return the verdict and the steps: experiments, and pauses in seconds."""
    steps = procedure(plan, settings, known or KnownOutOfMemory(), same_gpus=True)
    asked: list[str | float] = []
    answer: list[Outcome] | None = None
    script = iter(causes)
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value, asked
        answer = None
        if isinstance(step, Attempt):
            asked.append(step.plan.experiment)
            answer = [outcome(next(script))]
        else:
            assert isinstance(step, Backoff)
            asked.append(step.seconds)


def test_a_transient_failure_is_retried_with_back_off_until_retries_are_used() -> None:
    """Two retries, the pause doubles, and the last failure is the verdict."""
    verdict, asked = drive(make(), [TRANSIENT] * 3, Settings())
    benchmark = "finetune_full_benchmark"
    assert asked == [benchmark, 5.0, benchmark, 10.0, benchmark]
    assert verdict.properties == {}
    assert verdict.message == "The trainer process died."
    assert verdict.metadata["attempts"] == 3


@pytest.mark.parametrize(("cause", "failure"), [(BROKEN, None), (OUT_OF_MEMORY, "gpu_oom")])
def test_other_failures_are_not_retried(cause: failures.Cause, failure: str | None) -> None:
    """A broken measurement and an out-of-memory are asked for once."""
    verdict, asked = drive(make(), [cause], Settings())
    assert len(asked) == 1
    assert verdict.properties.get("failure") == failure


def test_a_stability_experiment_counts_a_crash_and_retries_a_lost_host() -> None:
    """In a stability experiment a crash of the trainer is a result, and only the loss of a host is retried."""
    plan = make("finetune_full_stability")
    verdict, asked = drive(plan, [TRANSIENT, OUT_OF_MEMORY, BROKEN, BROKEN, BROKEN], Settings())
    assert asked == ["finetune_full_stability"] * 5
    assert (verdict.properties["f_gpu_oom"], verdict.properties["f_other_error"]) == (0.2, 0.8)
    steps = procedure(plan, Settings(), KnownOutOfMemory(), same_gpus=True)
    next(steps)
    assert isinstance(steps.send([outcome(TRANSIENT, host_lost=True)]), Backoff)


def test_invalid_input_ends_a_stability_experiment_at_its_first_run() -> None:
    """A stability experiment ends after an error in the input."""
    verdict, asked = drive(make("finetune_full_stability"), [failures.BadInput("No such model.").cause], Settings())
    assert len(asked) == 1
    assert verdict.message == "No such model."


def test_a_predicted_out_of_memory_is_not_run() -> None:
    """With skip_predicted_oom the estimate comes first; if the workload does not fit, nothing else runs."""
    steps = procedure(make(), Settings(skip_predicted_oom=True), KnownOutOfMemory(), same_gpus=True)
    step = next(steps)
    assert isinstance(step, Attempt)
    assert step.plan.experiment == "finetune_memory_estimate"
    parts = {"parameters": 200 * 2**30, "gradients": 0, "optimizer": 0, "activations": 0, "temporaries": 0}
    with pytest.raises(failures.PredictedOutOfMemory, match=r"predicted not to fit: 200\.0 GiB"):
        steps.send([outcome(None, records=[{"peaks_bytes": {"update": parts}}])])


def test_a_larger_workload_than_one_that_ran_out_of_memory_is_not_run() -> None:
    """A workload larger than a known out-of-memory is neither estimated nor run; without skip_predicted_oom it runs."""
    known = KnownOutOfMemory()
    drive(make(), [OUT_OF_MEMORY], Settings(), known)
    with pytest.raises(failures.PredictedOutOfMemory, match="batch_size 8 and model_max_length 128"):
        drive(make(batch_size=16), [], Settings(skip_predicted_oom=True), known)
    _, asked = drive(make(batch_size=16), [OUT_OF_MEMORY], Settings(), known)
    assert asked == ["finetune_full_benchmark"]


def test_on_gpus_of_several_types_an_out_of_memory_says_nothing_about_others() -> None:
    """If GPU types differ, the next device may have more memory, so the workload is estimated."""
    known = KnownOutOfMemory()
    known.add(make().workload)
    settings = Settings(skip_predicted_oom=True)
    step = next(procedure(make(batch_size=16), settings, known, same_gpus=False))
    assert isinstance(step, Attempt)


@pytest.mark.parametrize("cause", [None, failures.OutOfMemory("host").cause, BROKEN])
def test_only_running_out_of_gpu_memory_is_remembered(cause: failures.Cause | None) -> None:
    """Other outcomes do not exclude larger workloads."""
    known = KnownOutOfMemory()
    if cause is not None:
        drive(make(), [cause], Settings(max_retries=0), known)
    assert known.message_for(workload(batch_size=16)) is None


def workload(**change: Any) -> Workload:
    """Return a workload."""
    return parse({**VALUES, **change})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"batch_size": 16}, True),
        ({"model_max_length": 256}, True),
        ({"batch_size": 16, "model_max_length": 64}, False),
        ({"batch_size": 6}, False),
        ({"batch_size": 16, "gradient_checkpointing": True}, False),
        ({"batch_size": 16, "number_gpus": 4}, False),
        ({"batch_size": 16, "method": "lora"}, False),
    ],
)
def test_what_did_not_fit_does_not_fit_when_larger(change: dict[str, Any], expected: bool) -> None:
    """A workload is excluded if batch and length are equal or larger and everything else is equal."""
    known = KnownOutOfMemory()
    known.add(workload())
    message = known.message_for(workload(**change))
    assert (message is not None) == expected
    assert message is None or "batch_size 8 and model_max_length 128" in message


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5.0), (2, 10.0), (4, 40.0), (7, 300.0), (100, 300.0)])
def test_the_pause_before_a_retry_doubles_up_to_a_limit(attempt: int, seconds: float) -> None:
    """No pause is longer than five minutes, for any number of retries."""
    assert backoff_s(5.0, attempt) == seconds
