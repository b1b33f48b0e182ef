"""Rows from CSV files and traces that ado exports."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import yaml

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.reporting import read, tables
from ado_actuators.sfttrainer.core.reporting.rows import THROUGHPUT, Row, experiment_of

from .conftest import RECORDINGS

pytestmark = pytest.mark.ray

HEADS = "identifier,experiment_id,model_name,model_max_length,batch_size,number_gpus,is_valid"
FULL = "sfttrainer.finetune_full_benchmark@1.0.0"


def test_states_of_the_recorded_operation(recorded: list[Row]) -> None:
    """Measured, cannot run, and failed."""
    assert [row.state for row in recorded] == [
        "measured", "cannot run", "measured", "measured", "measured", "cannot run", "measured", "measured", "failed", "cannot run",
    ]  # fmt: skip


def test_a_csv_and_a_trace_give_equal_rows(recorded: list[Row]) -> None:
    """Workloads and outputs of one operation are equal to the last digit."""
    exported = read.rows(str(RECORDINGS / "operation.csv"))
    assert [(row.key, row.outputs) for row in exported] == [(row.key, row.outputs) for row in recorded]


def test_only_a_trace_has_metadata(recorded: list[Row]) -> None:
    """Step times and the message of a workload that cannot run are in the metadata."""
    assert len(recorded[0].metadata["step_s"]) == 36
    assert recorded[1].message == "batch_size 3 is not divisible by 2 processes."
    exported = read.rows(str(RECORDINGS / "operation.csv"))
    assert (exported[0].metadata, exported[1].message) == ({}, "")
    assert exported[8].message == "model 'tiny-lama-5m' is unknown; close: tiny-llama-5m."


def test_parameters_are_read_from_the_experiments_name() -> None:
    """Values may contain dots and hyphens, and get the type of their property."""
    name = "sfttrainer.finetune_lora_benchmark@1.0.0-dataset_id./a-b/c.jsonl-packing.1-r.16-target_ci_percent.2.5"
    assert experiment_of(name) == (
        "sfttrainer",
        "finetune_lora_benchmark",
        {"dataset_id": "/a-b/c.jsonl", "packing": True, "r": 16, "target_ci_percent": 2.5},
    )


@pytest.mark.parametrize(
    "dataset", ["/d/train-r.jsonl", "long-packing.jsonl", "/d/x-r.8-packing.jsonl", "/d/run-seed.1-v2/a.jsonl"]
)
def test_a_path_may_look_like_a_parameter(dataset: str) -> None:
    """-r in a path is not the property r: its text is not a valid value, so it belongs to the value before."""
    _, _, parameters = experiment_of(f"sfttrainer.x@1.0.0-packing.1-dataset_id.{dataset}-mixed_precision.no-seed.7")
    assert parameters == {"packing": True, "dataset_id": dataset, "mixed_precision": "no", "seed": 7}


def test_a_given_method_is_part_of_the_workload(tmp_path: Path) -> None:
    """An estimate has the method as a property; a benchmark has it in its name."""
    file = tmp_path / "out.csv"
    file.write_text(
        f"{HEADS},method\n"
        "e,sfttrainer.finetune_memory_estimate@1.0.0,m,32,4,0,1,lora\n"
        "e,sfttrainer.finetune_lora_benchmark@1.0.0,m,32,4,0,1,not_measured\n"
    )
    estimate, benchmark = read.rows(str(file))
    assert (estimate.method, estimate.workload) == ("memory_estimate of lora", {**benchmark.workload, "method": "lora"})
    assert (benchmark.method, "method" in benchmark.workload) == ("lora", False)


def test_a_value_that_was_not_measured_is_absent(tmp_path: Path) -> None:
    """not_measured, nan and an empty cell are not values."""
    file = tmp_path / "out.csv"
    file.write_text(
        f"{HEADS},packing,loss_first,mfu_percent,energy_joules\n"
        "e,sfttrainer.finetune_full_benchmark@1.0.0,m,32,4.0,0,1.0,0,,not_measured,nan\n"
    )
    (row,) = read.rows(str(file))
    assert row.workload == {
        "model_name": "m", "model_max_length": 32, "batch_size": 4, "number_gpus": 0, "packing": False,
    }  # fmt: skip
    assert row.outputs == {"is_valid": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "is not a file; export one with"),
        ("other.csv", "a,b\n1,2\n", "is not an export of ado's measurements: the column experiment_id is missing"),
        ("empty.csv", "identifier,experiment_id\n", "holds no measurement of fine-tuning."),
        ("space.yaml", "spaces: [a]\n", "is not a trace of ado's measurements"),
        ("broken.yaml", "a: [", "is neither a CSV nor a YAML trace"),
        (
            "property.csv",
            f"identifier,experiment_id,{THROUGHPUT}\ne,{FULL},5\n",
            "has rows without model_name, model_max_length, batch_size, number_gpus: export it again without --property.",
        ),
        (
            "short.csv",
            f"{HEADS}\ne,{FULL},m,8,3,0,1\ne,x.y@1,m,8\n",
            "is incomplete: line 3 has not as many cells as the header. Export the file again.",
        ),
        (
            "long.csv",
            f"{HEADS}\ne,{FULL},m,8,3,0,1,7\n",
            "is incomplete: line 2 has not as many cells as the header. Export the file again.",
        ),
        ("cut.csv", f'{HEADS}\ne,{FULL},m,8,3,0,"1', "cannot be read as CSV: unexpected end of data."),
        (
            "negative.csv",
            f"{HEADS},{THROUGHPUT}\ne,{FULL},m,8,3,0,1,-5\n",
            ": dataset_tokens_per_second is -5; expected a number above 0.",
        ),
        ("nothing.yaml", "- entities: []\n", "is an incomplete trace of ado's measurements; write it again with"),
        ("number.yaml", "- entities: 3\n", "is an incomplete trace of ado's measurements; write it again with"),
    ],
)
def test_an_unreadable_source_is_an_error(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    """The message names the file, says what is wrong and what to do."""
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(read.Unreadable, match=name) as raised:
        read.rows(str(file))
    assert message in str(raised.value)


def test_rows_are_in_the_order_of_their_requests(recorded: list[Row], tmp_path: Path) -> None:
    """Requests are ordered by time: the identifiers of a space's operations have no order."""
    first, last = (RECORDINGS / "operation.yaml").read_text().split("\n- entities:")[1:3]
    file = tmp_path / "turned.yaml"
    file.write_text(f"- entities:{last}\n- entities:{first}\n")
    assert [row.key for row in read.rows(str(file))] == [row.key for row in recorded[:2]]


def test_a_truncated_trace_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that ends after any line is valid YAML; it must not be read as a complete trace."""
    whole = (RECORDINGS / "operation.yaml").read_text()
    file = tmp_path / "cut.yaml"
    file.write_text(whole[: whole.rindex("  experimentReference:")])
    assert main(["report", str(file), "-o", str(tmp_path / "report")]) == 2
    message = f"{file} is an incomplete trace of ado's measurements; {read.HOW_TO_TRACE}.\n"
    assert capsys.readouterr().err == message


def test_an_unknown_identifier_is_an_error() -> None:
    """Looked up in ado's real store."""
    with pytest.raises(read.Unreadable, match="random_walk-none is neither a file nor an operation or a space"):
        read.rows("random_walk-none")


def test_measurements_of_other_actuators_are_left_out(tmp_path: Path) -> None:
    """A space may hold any experiment; if none is of fine-tuning that is an error."""
    path = tmp_path / "out.csv"
    head = "identifier,experiment_id,model_name,model_max_length,batch_size,number_gpus,wall,is_valid\n"
    ours, other = "e,sfttrainer.finetune_full_benchmark@1.0.0,m,32,4,0,,1\n", "e,mock.test_experiment@1.0.0,,,,,3,1\n"
    path.write_text(head + ours + other)
    assert [row.actuator for row in read.rows(str(path))] == ["sfttrainer"]
    path.write_text(head + other)
    with pytest.raises(read.Unreadable, match=r"holds no measurement of fine-tuning\."):
        read.rows(str(path))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("dataset_tokens_per_second", "0", "dataset_tokens_per_second is 0; expected a number above 0."),
        ("dataset_tokens_per_second", "1e308", "dataset_tokens_per_second is 1e+308; expected a number up to 1e+15."),
        ("dataset_tokens_per_second", "abc", "dataset_tokens_per_second is 'abc'; expected a finite number."),
        ("cpu_memory_peak_gib", "0", "cpu_memory_peak_gib is 0; expected a number above 0."),
        ("is_valid", "7", "is_valid is 7; expected 0 or 1."),
        (
            "failure",
            "exploded",
            "failure is 'exploded'; expected one of: none, gpu_oom, host_oom, predicted_oom, invalid_configuration.",
        ),
        ("batch_size", "two", "batch_size is 'two'; expected a whole number from 1."),
        ("throughput_ci95_percent", "-1", "throughput_ci95_percent is -1; expected a number from 0."),
        ("number_gpus", "x", "number_gpus is 'x'; expected a whole number from 0."),
        ("number_nodes", "1e-320", "number_nodes is 1e-320; expected a whole number from 0."),
    ],
)
def test_an_impossible_value_is_rejected(column: str, value: str, said: str, tmp_path: Path) -> None:
    """The message names the file, the value and what was expected."""
    with (RECORDINGS / "operation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "wrong.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(line | {column: value} for line in table)
    with pytest.raises(read.Unreadable) as raised:
        read.rows(str(tmp_path / "wrong.csv"))
    assert str(raised.value) == f"{tmp_path / 'wrong.csv'}: {said}"


def test_an_interval_of_any_width_has_a_ratio() -> None:
    """Even if its bounds would overflow a float."""
    (one, *_) = [row for row in read.rows(str(RECORDINGS / "operation.csv")) if row.throughput]
    wide = dataclasses.replace(one, outputs=one.outputs | {"throughput_ci95_percent": 1e300})
    assert tables.ratio(wide, wide) is not None


def test_the_same_source_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sources with the same measurements, such as an operation and its space, give one row for each."""
    source = str(RECORDINGS / "operation.yaml")
    lines = []
    for sources in ([source], [source, source]):
        assert main(["report", *sources, "-o", str(tmp_path), "--format", "html"]) == 0
        page = (tmp_path / "report.html").read_text()
        assert "<b>6</b><span>of 10 workloads measured" in page
        lines.append(page.count("<tr"))
    assert lines[0] == lines[1] > 10
    capsys.readouterr()


def test_a_stored_measurement_that_ado_shows_again_is_replayed(tmp_path: Path) -> None:
    """By the request's name, in a trace and in a CSV file; not where the operation that measured it is read, too."""
    requests = yaml.safe_load((RECORDINGS / "operation.yaml").read_text())[:2]
    path = tmp_path / "trace.yaml"
    again = {**requests[0], "requestid": "replayed-measurement-9c54a7"}
    for content, expected in (([again, requests[1]], [True, False]), ([again, *requests], [False, False])):
        path.write_text(yaml.safe_dump(content))
        assert [one.replayed for one in read.rows(str(path))] == expected
    table = (RECORDINGS / "operation.csv").read_text().splitlines()
    exported = tmp_path / "operation.csv"
    identifier = next(csv.DictReader(table))["request_id"]
    exported.write_text(
        "\n".join(line.replace(identifier, f"replayed-measurement-{identifier}") for line in table) + "\n"
    )
    assert [one.replayed for one in read.rows(str(exported))][:2] == [True, False]
