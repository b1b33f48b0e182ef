"""Results of IBM's actuator together with ours, and the export for AutoConf."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.core.commands import compare as command
from ado_actuators.sfttrainer.core.commands import report
from ado_actuators.sfttrainer.core.reporting import autoconf, comparison, read
from ado_actuators.sfttrainer.core.reporting.comparison import Tolerance
from ado_actuators.sfttrainer.core.reporting.rows import Row

CSV = Path(__file__).parents[2] / "recordings" / "ibm" / "measurements.csv"


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    """Two measurements on the CPU that were stopped, one that did not fit two GPUs, and one that did."""
    return read.rows(str(CSV))


def ours(rows: list[Row], factor: float) -> list[Row]:
    """Return rows as one of our actuators would give them after conversion, so much faster."""

    def one(row: Row) -> Row:
        changes = {"weights": "random", "dataset_id": "synthetic-fixed", "stop_after_seconds": 30.0, "max_steps": 10**6}
        workload = {**row.workload, **changes, "fms_hf_tuning_version": "3.1.0", "target_ci_percent": 0.0}
        outputs = {**row.outputs, "throughput_ci95_percent": 1.0}
        if "dataset_tokens_per_second" in outputs:
            outputs["dataset_tokens_per_second"] *= factor
        return dataclasses.replace(row, source="after", actuator="fms_hf_tuning", workload=workload, outputs=outputs)

    return [one(row) for row in rows]


def test_names_and_values_are_ours(measured: list[Row]) -> None:
    """Experiments, properties with IBM's defaults, and outputs; a list in the experiment's name is read, too."""
    on_cpu, _, too_large, on_gpus = measured
    assert (on_cpu.actuator, on_cpu.experiment) == ("SFTTrainer", "finetune_full_benchmark")
    assert on_cpu.value("attn_implementation") == "auto"
    assert on_cpu.value("torch_dtype") == "bfloat16"
    assert on_cpu.value("fms_hf_tuning_version") == "2.8.2"
    assert on_cpu.outputs["train_runtime_s"] == 30.4385
    assert on_gpus.value("fast_kernels") is True
    assert on_gpus.value("gpu_model") == "NVIDIA-A100-SXM4-80GB"
    assert (on_gpus.value("r"), on_gpus.value("target_modules")) == (4, "q_proj,v_proj")
    assert on_gpus.outputs["gpu_memory_utilization_peak"] == 41.2
    assert [row.state for row in measured] == ["measured", "measured", "cannot run", "measured"]
    assert too_large.throughput is None


def test_what_ibm_gets_wrong_is_left_out(measured: list[Row]) -> None:
    """Zeros for GPUs that are not there, and rates of a run that was stopped; both stay where they are right."""
    on_cpu, on_gpus = measured[0].outputs, measured[3].outputs
    assert not [name for name in on_cpu if name.startswith("gpu_")]
    assert "train_samples_per_second" not in on_cpu
    assert on_gpus["train_samples_per_second"] == 20.17
    assert "cpu_memory_utilization" not in on_gpus


def test_a_trace_gives_the_same_rows(measured: list[Row], tmp_path: Path) -> None:
    """What ado's trace says of the first two measurements."""
    names = {"fms_hf_tuning_version": "2.8.2", "stop_after_seconds": 30.0, "flash_attn": False}

    def values(pairs: dict[str, Any]) -> list[Any]:
        return [{"property": {"identifier": name}, "value": value} for name, value in pairs.items()]

    cells = list(csv.DictReader(io.StringIO(CSV.read_text())))[:2]
    requests = [
        {
            "timestamp": number,
            "experimentReference": {
                "actuatorIdentifier": "SFTTrainer",
                "experimentIdentifier": "finetune_full_benchmark-v1.0.0",
                "parameterization": values(names),
            },
            "entities": [
                {
                    "identifier": "one",
                    "constitutive_property_values": values(
                        {
                            "model_name": one["model_name"],
                            "model_max_length": 512.0,
                            "batch_size": int(one["batch_size"]),
                        }
                        | {"number_gpus": 0}
                    ),
                }
            ],
            "measurements": [
                {
                    "uid": str(number),
                    "entityIdentifier": "one",
                    "measurements": [
                        {"property": {"targetProperty": {"identifier": name}}, "value": float(one[name])}
                        for name in list(one)[8:]
                    ],
                }
            ],
        }
        for number, one in enumerate(cells)
    ]
    path = tmp_path / "trace.yaml"
    path.write_text(yaml.safe_dump(requests))
    found = read.rows(str(path))
    assert [(row.workload, row.outputs) for row in found] == [(row.workload, row.outputs) for row in measured[:2]]


def test_before_and_after_a_change_of_actuator_are_joined(measured: list[Row]) -> None:
    """Weights, data, end and release may differ; the tolerance decides, since IBM's actuator has no interval."""
    slower = comparison.compare(measured, ours(measured, 0.9), Tolerance())
    assert [pair.verdict for pair in slower.pairs] == ["regression", "regression", "same", "regression"]
    same = comparison.compare(measured, ours(measured, 0.99), Tolerance())
    assert {pair.verdict for pair in same.pairs} == {"same"}
    assert not same.only_before


def test_no_interval_is_shown_where_there_is_none(measured: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """Nor a kind of failure that IBM's actuator does not give."""
    found = comparison.compare(ours([measured[3]], 1.0), [measured[3]], Tolerance())
    assert (found.pairs[0].verdict, found.pairs[0].ratio and found.pairs[0].ratio.low) == ("same", None)
    fails = dataclasses.replace(measured[3], outputs=measured[2].outputs)
    (pair,) = comparison.compare(ours([measured[3]], 1.0), [fails], Tolerance()).pairs
    assert pair.why == "ran before, cannot run now: the reason is not known."


def test_measurements_that_do_not_count_are_reported(measured: list[Row]) -> None:
    """Releases of the library are not compared, so that measurements with several are the same workload."""
    other = dataclasses.replace(measured[0], workload={**measured[0].workload, "fms_hf_tuning_version": "3.0.0"})
    found = comparison.compare([*measured, other], ours(measured, 1.0), Tolerance())
    assert found.repeated == 1
    assert "1 measurement left out: of equal workloads the last counts." in command.text(found)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("stop_after_seconds.30", "stop_after_seconds.soon", "stop_after_seconds is 'soon'; expected a number."),
        ("smollm2-135m,0,512,1,", "smollm2-135m,0,long,1,", "model_max_length is 'long'; expected a number."),
        ("smollm2-135m,0,512,1,", "smollm2-135m,none,512,1,", "number_gpus is 'none'; expected a number."),
    ],
)
def test_an_impossible_value_is_one_message(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """Whether the experiment's name has it or a column."""
    path = tmp_path / "before.csv"
    path.write_text(CSV.read_text().replace(old, new, 1))
    with pytest.raises(read.Unreadable) as caught:
        read.rows(str(path))
    assert str(caught.value) == f"{path}: {expected}"


def test_a_value_none_is_ibms_default(tmp_path: Path, measured: list[Row]) -> None:
    """ado's tables write None where a property was given without value."""
    path = tmp_path / "before.csv"
    path.write_text(CSV.read_text().replace("stop_after_seconds.30", "stop_after_seconds.None"))
    assert read.rows(str(path))[0].outputs["train_samples_per_second"] == 134.566


@pytest.mark.parametrize("actuator", ["SFTTrainer", "sfttrainer"])
def test_a_byte_order_mark_and_a_column_of_numbers_are_no_output(tmp_path: Path, actuator: str) -> None:
    """A measurement that failed has none, whatever a table program added."""
    experiment = f"{actuator}.finetune_full_benchmark" + ("-v1.0.0" if actuator == "SFTTrainer" else "@1.0.0")
    path = tmp_path / "table.csv"
    head = ",identifier,experiment_id,model_name,number_gpus,model_max_length,batch_size,is_valid\n"
    path.write_text(f"\ufeff{head}3,a,{experiment},smollm2-135m,0,64,1,\n", encoding="utf-8")
    assert [row.state for row in read.rows(str(path))] == ["failed"]


def test_another_workload_is_not_joined(measured: list[Row]) -> None:
    """A default that was not converted is another workload: float32 instead of bfloat16."""
    renamed = [
        dataclasses.replace(row, workload={**row.workload, "torch_dtype": "float32"}) for row in ours(measured, 1.0)
    ]
    assert not comparison.compare(measured, renamed, Tolerance()).pairs


def test_the_command_says_what_is_not_compared(
    measured: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table ends with the properties that a change of actuator changes."""
    sides = iter((measured, ours(measured, 1.0)))
    monkeypatch.setattr(read, "rows", lambda source: next(sides))
    assert command.main("before", "after", by=None, tolerance=3, memory_tolerance=5, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "4 workloads compared: 4 same." in shown
    assert shown.rstrip().endswith("target_ci_percent, cpus_per_process, seed.")


def test_autoconf_gets_its_columns(row: Callable[..., Row], measured: list[Row]) -> None:
    """GPUs only; out of memory is invalid; the device names the GPU where the workload does not."""
    seen = {"device": {"devices": [{"name": "NVIDIA H100 80GB HBM3"}]}}
    rows = [
        *measured,
        row(100.0, gpu_model="L40S"),
        row(oom=True, metadata=seen, experiment="finetune_gptq_lora_benchmark"),
        row(100.0),
        row(failed="it broke"),
        dataclasses.replace(row(oom=True, gpu_model="L40S"), outputs={"is_valid": 0, "failure": "predicted_oom"}),
        row(100.0, gpu_model="L40S", experiment="finetune_qlora_benchmark"),
    ]
    made = autoconf.export(rows)
    assert made.text.splitlines() == [
        "model_name,method,gpu_model,number_gpus,tokens_per_sample,batch_size,is_valid,dataset_tokens_per_second",
        "llama3.2-1b,lora,NVIDIA-A100-SXM4-80GB,2,512,3,0,",
        "llama3.2-1b,lora,NVIDIA-A100-SXM4-80GB,2,512,4,1,10326.5",
        "m,full,L40S,1,1024,8,1,100.0",
        "m,gptq-lora,NVIDIA-H100-80GB-HBM3,1,1024,8,0,",
    ]
    assert made.count == 4
    assert sum(made.left_out.values()) == len(rows) - 4
    assert made.left_out["measured on CPUs"] == 2


def test_the_report_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, and what is not in it; nothing where nothing can be used."""
    assert report.main("sfttrainer", [str(CSV)], output=tmp_path, form="autoconf") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["autoconf.csv"]
    assert capsys.readouterr().out.splitlines()[1:] == ["2 left out: measured on CPUs"]
    recorded = CSV.parents[1] / "operation.csv"
    assert report.main("sfttrainer", [str(recorded)], output=tmp_path / "none", form="autoconf") == 2
    assert not (tmp_path / "none").exists()
