"""Verdicts and plans, without running a measurement."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host import host
from ado_actuators.sfttrainer.core.measurement.outcome import Outcome, Run
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.measurement.verdict import _device_names, conclude
from ado_actuators.sfttrainer.core.metrics.device_samples import join_hosts

PLAN = make_plan(
    "sfttrainer",
    "finetune_full_benchmark",
    {"model_name": "tiny-llama-5m", "model_max_length": 10, "batch_size": 2, "number_gpus": 0, "number_nodes": 2},
)


def outcome(rank: int = 0, *, steps: int = 5, total_s: float = 7.0, **change: Any) -> Outcome:
    """Return the outcome of a host with one rank, whose steps take a second each."""
    record = {
        "rank": rank,
        "world_size": 2,
        "train_begin_s": 0.0,
        "step_end_s": [float(step) for step in range(1, steps + 1)],
        **{
            name: [20] * steps
            for name in ("samples", "token_slots", "real_tokens", "trained_tokens", "squared_lengths")
        },
        "losses": [40.0] * steps,
        "warmup_steps": 3,
        "steady": True,
        "stopped_by": "max_steps",
        "phases": {"model_load_s": 0.5},
        "facts": {},
        "versions": {},
    }
    device = {
        "properties": {"cpu_memory_peak_gib": 2.0, "cpu_compute_utilization": 100.0},
        "omitted": {},
        "describe": {},
    }
    values = {"cause": None, "startup_s": 3.0, "log": f"/log-{rank}", "hostname": f"node-{rank}", "reused": False}
    return Outcome(**{"records": [record], "device": device, "total_s": total_s, **values, **change})


def test_what_hosts_sampled_is_joined_as_its_name_says() -> None:
    """Energy is summed; minima, maxima, peaks and averages are joined; a property that one host lacks is missing."""
    first = {"energy_joules": 3.0, "gpu_power_watts_min": 100.0, "gpu_power_watts_avg": 200.0, "gpu_power_watts_max": 300.0,
             "gpu_memory_peak_gib": 7.0, "gpu_memory_utilization_peak": 50.0, "gpu_power_percent_avg": 5.0}  # fmt: skip
    second = {"energy_joules": 4.0, "gpu_power_watts_min": 90.0, "gpu_power_watts_avg": 300.0, "gpu_power_watts_max": 400.0,
              "gpu_memory_peak_gib": 6.0, "gpu_memory_utilization_peak": 60.0}  # fmt: skip
    hosts = [
        outcome(0, device={"properties": first, "omitted": {}, "describe": {}}),
        outcome(1, device={"properties": second, "omitted": {"gpu_power_percent_avg": "no limit."}, "describe": {}}),
    ]
    joined, omitted = join_hosts([host.device for host in hosts])
    assert joined == {
        "energy_joules": 7.0, "gpu_power_watts_min": 90.0, "gpu_power_watts_avg": 250.0, "gpu_power_watts_max": 400.0,
        "gpu_memory_peak_gib": 7.0, "gpu_memory_utilization_peak": 60.0,
    }  # fmt: skip
    assert omitted == {"gpu_power_percent_avg": "no limit."}


def test_devices_of_other_hosts_are_reported_where_they_differ() -> None:
    """Equal hosts are described once, different hosts each."""
    described = [{"devices": [{"name": name}]} for name in ("NVIDIA H200", "NVIDIA A30")]
    device: dict[str, Any] = {"properties": {}, "omitted": {}}
    hosts = [outcome(rank, device={**device, "describe": described[rank]}) for rank in (0, 1)]
    verdict = conclude(PLAN, [Run(hosts, 1)], price=None)
    assert verdict.metadata["device_per_host"] == described
    assert _device_names(hosts) == {"NVIDIA H200", "NVIDIA A30"}
    assert "device_per_host" not in conclude(PLAN, [Run([outcome(0), outcome(1)], 1)], price=None).metadata


def test_the_measured_phase_begins_where_warm_up_ends() -> None:
    """The measured phase begins after the last warm-up step, or at the beginning of training."""
    (record,) = outcome(0).records
    assert host.measured_phase([record]) == (3.0, 5.0)
    assert host.measured_phase([record | {"warmup_steps": 0, "train_begin_s": 0.5}]) == (0.5, 5.0)


def test_weights_of_our_own_models_are_random_only() -> None:
    """tiny-llama-5m has no weights, which is reported before a trainer starts."""
    asked = {
        "model_name": "tiny-llama-5m",
        "model_max_length": 8,
        "batch_size": 1,
        "number_gpus": 0,
        "weights": "pretrained",
    }
    with pytest.raises(
        failures.BadInput, match="Model tiny-llama-5m has no weights here; use weights random, or the hub id of a model"
    ):
        make_plan("sfttrainer", "finetune_full_benchmark", asked)


def test_processes_of_all_hosts_count_together() -> None:
    """Memory and CPU time of the training processes are summed over hosts, as over the ranks of one."""
    run = Run([outcome(0), outcome(1)], 1)
    got = conclude(PLAN, [run], price=None).properties
    assert (got["cpu_memory_peak_gib"], got["cpu_compute_utilization"]) == (4.0, 200.0)


def test_the_time_of_a_measurement_is_that_of_the_attempt_that_counts() -> None:
    """total_s is that of the slowest host, without the wait for resources and earlier attempts."""
    run = Run([outcome(0, total_s=7.0), outcome(1, total_s=9.0)], attempts=3)
    assert conclude(PLAN, [run], price=None).properties["total_s"] == 9.0


def test_metadata_stay_small_however_many_steps_there_were() -> None:
    """The first 5000 step times are stored, and a note says so."""
    run = Run([outcome(0, steps=5001), outcome(1, steps=5001)], 1)
    verdict = conclude(PLAN, [run], price=None)
    assert verdict.properties["measured_steps"] == 4998
    assert len(verdict.metadata["step_s"]) == 5000
    assert "step_s holds the first 5000 of 5001 steps." in verdict.metadata["notes"]


def test_the_log_of_a_failure_is_that_of_the_host_that_failed() -> None:
    """The log is that of the failed host, not of the first, whose trainer lost its peer."""
    failed = outcome(1, records=[], cause=failures.OutOfMemory("gpu").cause)
    lost = outcome(0, records=[], cause=None)
    verdict = conclude(PLAN, [Run([lost, failed], 1)], price=None)
    assert (verdict.properties["failure"], verdict.metadata["log"]) == ("gpu_oom", "/log-1")
