"""Rows from what ado exports."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.reporting import read, tables
from ado_actuators.sfttrainer.core.reporting.rows import THROUGHPUT, Row, experiment_of

from .conftest import RECORDINGS

pytestmark = pytest.mark.ray

HEADS = "identifier,experiment_id,model_name,model_max_length,batch_size,number_gpus,is_valid"
FULL = "sfttrainer.finetune_full_benchmark@1.0.0"


def test_the_recorded_operation_has_its_states(recorded: list[Row]) -> None:
    """What ran, what cannot run and what failed are told apart."""
    assert [row.state for row in recorded] == [
        "measured", "cannot run", "measured", "measured", "measured", "cannot run", "measured", "measured", "failed", "cannot run",
    ]  # fmt: skip


def test_a_csv_and_a_trace_of_one_operation_say_the_same(recorded: list[Row]) -> None:
    """Workloads and outputs are equal to the last digit, whichever way they were exported."""
    exported = read.rows(str(RECORDINGS / "operation.csv"))
    assert [(row.key, row.outputs) for row in exported] == [(row.key, row.outputs) for row in recorded]


def test_only_a_trace_has_metadata(recorded: list[Row]) -> None:
    """Raw step times and the message of a refusal come with it."""
    assert len(recorded[0].metadata["step_s"]) == 36
    assert recorded[1].message == "batch_size 3 is not divisible by 2 processes."
    exported = read.rows(str(RECORDINGS / "operation.csv"))
    assert (exported[0].metadata, exported[1].message) == ({}, "")
    assert exported[8].message == "model 'tiny-lama-5m' is unknown; close: tiny-llama-5m."


def test_parameters_are_read_from_the_experiments_name() -> None:
    """Values with dots and hyphens stay whole, and each has its property's type."""
    name = "sfttrainer.finetune_lora_benchmark@1.0.0-dataset_id./a-b/c.jsonl-packing.1-r.16-target_ci_percent.2.5"
    assert experiment_of(name) == (
        "sfttrainer",
        "finetune_lora_benchmark",
        {"dataset_id": "/a-b/c.jsonl", "packing": True, "r": 16, "target_ci_percent": 2.5},
    )


@pytest.mark.parametrize(
    "dataset", ["/d/train-r.jsonl", "long-packing.jsonl", "/d/x-r.8-packing.jsonl", "/d/run-seed.1-v2/a.jsonl"]
)
def test_a_path_that_looks_like_a_parameter_stays_whole(dataset: str) -> None:
    """What no property can have as its value belongs to the value before it."""
    _, _, parameters = experiment_of(f"sfttrainer.x@1.0.0-packing.1-dataset_id.{dataset}-mixed_precision.no-seed.7")
    assert parameters == {"packing": True, "dataset_id": dataset, "mixed_precision": "no", "seed": 7}


def test_a_method_that_was_given_is_part_of_the_workload(tmp_path: Path) -> None:
    """An estimate is told its method; a benchmark has it in its name."""
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
    """ado's word for it, and an empty cell, are no values."""
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
        ("absent.csv", None, "is no file; export one with"),
        ("other.csv", "a,b\n1,2\n", "is no export of ado's measurements: it lacks the column experiment_id"),
        ("empty.csv", "identifier,experiment_id\n", "holds no measurement of fine-tuning."),
        ("space.yaml", "spaces: [a]\n", "is no trace of ado's measurements"),
        ("broken.yaml", "a: [", "is neither a CSV nor a YAML trace"),
        (
            "property.csv",
            f"identifier,experiment_id,{THROUGHPUT}\ne,{FULL},5\n",
            "has rows without model_name, model_max_length, batch_size, number_gpus: export it again without --property.",
        ),
        ("short.csv", f"{HEADS}\ne,{FULL},m,8,3,0,1\ne,x.y@1,m,8\n", "line 3 of "),
        (
            "long.csv",
            f"{HEADS}\ne,{FULL},m,8,3,0,1,7\n",
            "has not as many cells as its header: the file is incomplete.",
        ),
        ("cut.csv", f'{HEADS}\ne,{FULL},m,8,3,0,"1', "cannot be read as CSV: unexpected end of data."),
        (
            "negative.csv",
            f"{HEADS},{THROUGHPUT}\ne,{FULL},m,8,3,0,1,-5\n",
            "holds a dataset_tokens_per_second of -5; every rate is",
        ),
        ("nothing.yaml", "- entities: []\n", "is an incomplete trace of ado's measurements; write it again with"),
        ("number.yaml", "- entities: 3\n", "is an incomplete trace of ado's measurements; write it again with"),
    ],
)
def test_a_source_without_rows_is_answered_with_a_message(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    """The message names the file and says what was expected."""
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(read.Unreadable, match=name) as raised:
        read.rows(str(file))
    assert message in str(raised.value)


def test_rows_are_in_the_order_of_their_requests(recorded: list[Row], tmp_path: Path) -> None:
    """A space has several operations, whose identifiers say nothing about which was first."""
    first, last = (RECORDINGS / "operation.yaml").read_text().split("\n- entities:")[1:3]
    file = tmp_path / "turned.yaml"
    file.write_text(f"- entities:{last}\n- entities:{first}\n")
    assert [row.key for row in read.rows(str(file))] == [row.key for row in recorded[:2]]


def test_a_trace_that_ends_early_is_answered_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy that broke off is valid YAML at every end of a line; no row of it is taken for the whole."""
    whole = (RECORDINGS / "operation.yaml").read_text()
    file = tmp_path / "cut.yaml"
    file.write_text(whole[: whole.rindex("  experimentReference:")])
    assert main(["report", str(file), "-o", str(tmp_path / "report")]) == 2
    message = f"{file} is an incomplete trace of ado's measurements; {read.HOW_TO_TRACE}.\n"
    assert capsys.readouterr().err == message


def test_an_identifier_that_ado_does_not_know_is_answered_with_a_message() -> None:
    """ado's real store is asked, and says no."""
    with pytest.raises(read.Unreadable, match="random_walk-none is neither a file nor an operation or a space"):
        read.rows("random_walk-none")


def test_what_other_actuators_measured_is_left_out(tmp_path: Path) -> None:
    """A space may hold any experiment; where none is of fine-tuning there is nothing to show."""
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
        ("dataset_tokens_per_second", "0", "a dataset_tokens_per_second of 0; every rate is positive."),
        ("dataset_tokens_per_second", "1e308", "a dataset_tokens_per_second of 1e+308, which no measurement gives."),
        ("dataset_tokens_per_second", "abc", "a dataset_tokens_per_second of 'abc', which no measurement gives."),
        ("cpu_memory_peak_gib", "0", "a cpu_memory_peak_gib of 0; every process takes some memory."),
        ("is_valid", "7", "an is_valid of 7; it is 0 or 1."),
        (
            "failure",
            "exploded",
            "a failure 'exploded'; there are none, gpu_oom, host_oom, predicted_oom, invalid_configuration.",
        ),
        ("batch_size", "two", "a batch_size of 'two', which is no number of them."),
        ("throughput_ci95_percent", "-1", "a throughput_ci95_percent of -1; no interval is negative."),
        ("number_gpus", "x", "a number_gpus of 'x', which is no number of them."),
        ("number_nodes", "1e-320", "a number_nodes of 1e-320, which is no number of them."),
    ],
)
def test_what_cannot_be_is_a_message(column: str, value: str, said: str, tmp_path: Path) -> None:
    """A number that no measurement gives ends in a message, not in a division by it."""
    with (RECORDINGS / "operation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    with (tmp_path / "wrong.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(line | {column: value} for line in table)
    with pytest.raises(read.Unreadable) as raised:
        read.rows(str(tmp_path / "wrong.csv"))
    assert str(raised.value) == f"{tmp_path / 'wrong.csv'} holds {said}"


def test_an_interval_of_any_width_has_a_ratio() -> None:
    """No width is too large for a float."""
    (one, *_) = [row for row in read.rows(str(RECORDINGS / "operation.csv")) if row.throughput]
    wide = dataclasses.replace(one, outputs=one.outputs | {"throughput_ci95_percent": 1e300})
    assert tables.ratio(wide, wide) is not None


def test_the_same_source_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An operation and its space hold the same measurements."""
    source = str(RECORDINGS / "operation.yaml")
    lines = []
    for sources in ([source], [source, source]):
        assert main(["report", *sources, "-o", str(tmp_path), "--format", "html"]) == 0
        page = (tmp_path / "report.html").read_text()
        assert "<b>6</b><span>of 10 workloads measured" in page
        lines.append(page.count("<tr"))
    assert lines[0] == lines[1] > 10
    capsys.readouterr()
