"""The arithmetic of a report, with exact values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ado_actuators.sfttrainer.core.reporting import tables
from ado_actuators.sfttrainer.core.reporting.rows import Row, differing, grouped_names, label
from ado_actuators.sfttrainer.core.reporting.tables import Frontier, Problem, Scaling

Make = Callable[..., Row]


def test_an_absent_property_equals_its_default(row: Make) -> None:
    """Neither labels nor keys differ by a property that is absent in one row and has its default in the other."""
    assert differing([row(1.0, packing=False), row(1.0), row(1.0, batch_size=4)]) == ["batch_size"]
    assert row(1.0, packing=False).key == row(1.0).key != row(1.0, packing=True).key


def test_labels_are_readable(row: Make) -> None:
    """Names have no prefix; a switch is given by its name, or by no and its name."""
    rows = row(1.0, packing=True, batch_size=4), row(1.0, packing=False, actuator="fms_hf_tuning")
    assert label(rows[0], differing(rows)) == "sfttrainer, batch 4, packing"
    assert label(rows[1], differing(rows)) == "fms_hf_tuning, batch 8, no packing"


def test_the_number_of_groups_is_limited(row: Make) -> None:
    """A property that would make too many groups is not in the labels, but is returned."""
    rows = [row(1.0, batch_size=2**size, packing=packing) for size in range(4) for packing in (False, True)]
    groups, hidden = grouped_names(rows, ["batch_size", "packing"], 6)
    assert list(groups) == ["batch 1", "batch 2", "batch 4", "batch 8"]
    assert hidden == ["packing"]


def test_a_frontier_has_the_largest_batch_that_fits_and_the_smallest_that_does_not(row: Make) -> None:
    """For each length the largest batch that ran and the smallest that ran out of memory."""
    rows = [
        row(1.0, batch_size=4), row(1.0, batch_size=8), row(oom=True, batch_size=16), row(oom=True, batch_size=32),
        row(oom=True, batch_size=4, model_max_length=4096), row(1.0, batch_size=64, model_max_length=128),
    ]  # fmt: skip
    assert tables.frontiers(rows) == [
        Frontier("", 128, 64, None), Frontier("", 1024, 8, 16), Frontier("", 4096, None, 4),
    ]  # fmt: skip


def test_a_predicted_out_of_memory_is_part_of_a_frontier(row: Make) -> None:
    """With skip_predicted_oom such workloads are not run."""
    skipped = row(outputs={"is_valid": 0, "failure": "predicted_oom"}, batch_size=16)
    assert tables.frontiers([row(1.0, batch_size=8), skipped]) == [Frontier("", 1024, 8, 16)]


def test_workloads_that_all_fit_have_no_frontier(row: Make) -> None:
    """A workload that cannot run for another reason than memory gives no frontier."""
    refused = Row("t", "sfttrainer", "e", {"batch_size": 3}, {"is_valid": 0, "failure": "invalid_configuration"})
    assert tables.frontiers([row(1.0), refused]) == []


def test_scaling_is_per_device_against_the_fewest_devices(row: Make) -> None:
    """Strong: the batch stays 16. Weak: 8 on each device."""
    rows = [row(100.0, batch_size=16), row(180.0, number_gpus=2, batch_size=16)]
    rows += [row(90.0, batch_size=8), row(300.0, number_gpus=4, batch_size=32)]
    assert tables.scaling(rows) == [
        Scaling("batch 16 in total", "strong", ((1, 1.0), (2, 0.9))),
        Scaling("batch 8 per device", "weak", ((1, 1.0), (2, 1.0), (4, 300 / 4 / 90))),
    ]


def test_cpus_and_gpus_have_scaling_curves_of_their_own(row: Make) -> None:
    """Throughput on a GPU is not relative to that on a CPU."""
    rows = [row(10.0 * nodes, number_gpus=0, number_nodes=nodes) for nodes in (1, 2)]
    rows += [row(100.0), row(180.0, number_gpus=2)]
    assert [one for one in tables.scaling(rows) if one.kind == "strong"] == [
        Scaling("CPUs, batch 8 in total", "strong", ((1, 1.0), (2, 1.0))),
        Scaling("GPUs, batch 8 in total", "strong", ((1, 1.0), (2, 0.9))),
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_numbers_of_nodes_have_scaling_curves_of_their_own(row: Make, order: int) -> None:
    """Eight GPUs of one node and eight of two nodes are not the same point, whatever the order of the rows."""
    asked = ((1, 4, 100.0), (1, 8, 190.0), (2, 8, 160.0), (2, 16, 240.0))
    rows = [row(tokens, batch_size=16, number_gpus=gpus, number_nodes=nodes) for nodes, gpus, tokens in asked]
    assert {one for one in tables.scaling(rows[::order]) if one.kind == "strong"} == {
        Scaling("1 node, batch 16 in total", "strong", ((4, 1.0), (8, 0.95))),
        Scaling("2 nodes, batch 16 in total", "strong", ((8, 1.0), (16, 0.75))),
    }


def test_nodes_that_grow_with_the_gpus_are_one_curve(row: Make) -> None:
    """With four GPUs per node, no number of GPUs was measured on two numbers of nodes."""
    rows = [row(100.0 * nodes, batch_size=16, number_gpus=4 * nodes, number_nodes=nodes) for nodes in (1, 2)]
    (strong,) = (one for one in tables.scaling(rows) if one.kind == "strong")
    assert strong == Scaling("batch 16 in total", "strong", ((4, 1.0), (8, 1.0)))


def test_the_pareto_front() -> None:
    """Less memory and more throughput are better; of equal points one is kept."""
    points = [(2.0, 10.0), (1.0, 5.0), (3.0, 9.0), (2.0, 8.0), (4.0, 12.0), (4.0, 12.0)]
    assert tables.pareto(points) == [1, 0, 4]


def test_a_ratio_has_the_intervals_of_both_sides(row: Make) -> None:
    """Relative half-widths of 3 and 4 % give 5 %, on a logarithmic scale."""
    found = tables.ratio(row(200.0, 3.0), row(100.0, 4.0))
    assert found is not None
    assert found.value == 2.0
    assert found.low == pytest.approx(2.0 / math.exp(0.05), rel=1e-12)
    assert found.high == pytest.approx(2.0 * math.exp(0.05), rel=1e-12)


def test_a_ratio_without_an_interval(row: Make) -> None:
    """If one side has no interval, the ratio has none."""
    assert tables.ratio(row(200.0, None), row(100.0, 4.0)) == tables.Ratio(2.0)
    assert tables.ratio(row(oom=True), row(100.0)) is None


def test_stacks_are_paired_by_workload(row: Make) -> None:
    """A workload that only one actuator measured is left out."""
    rows = [
        row(1.0), row(2.0, batch_size=4), row(3.0, actuator="fms_hf_tuning"), row(oom=True, actuator="fms_hf_tuning", batch_size=4),
    ]  # fmt: skip
    assert tables.stack_pairs(rows) == [(rows[2], rows[0])]


def test_stacks_in_different_sources_are_paired(row: Make) -> None:
    """One source per stack; the last row of a repeated workload counts."""
    rows = [row(1.0, source="a"), row(2.0, source="b")]
    rows += [row(tokens, source="c", actuator="fms_hf_tuning") for tokens in (3.0, 4.0)]
    assert tables.stack_pairs(rows) == [(rows[3], rows[1])]


def test_stacks_are_paired_within_a_source_first(row: Make) -> None:
    """If one source has both stacks, their rows are a pair even if another source has the workload as well."""
    rows = [row(1.0, source="a"), row(2.0, source="a", actuator="fms_hf_tuning")]
    rows += [row(3.0, source="b"), row(4.0, source="b", batch_size=4)]
    rows += [row(5.0, source="c", actuator="fms_hf_tuning", batch_size=4)]
    assert tables.stack_pairs(rows) == [(rows[1], rows[0]), (rows[4], rows[3])]


def test_problems_are_grouped_by_cause(row: Make, recorded: list[Row]) -> None:
    """The recorded operation has two: a batch that cannot be divided, and an unknown model."""
    assert tables.problems(recorded) == [
        Problem(
            "cannot run", "invalid_configuration", "batch_size 3 is not divisible by 2 processes.",
            tuple(f"{model}, length {length}, batch 3, 2 nodes"
                  for model, length in (("tiny-llama-5m", 32), ("tiny-llama-5m", 64), ("tiny-lama-5m", 32))),
        ),
        Problem(
            "failed", "failed", "model 'tiny-lama-5m' is unknown; close: tiny-llama-5m.",
            ("tiny-lama-5m, length 32, batch 3, 1 node",),
        ),
    ]  # fmt: skip


def test_the_environment_lists_all_values(recorded: list[Row]) -> None:
    """One machine, and a model with and without a wrapper."""
    found = dict(tables.environment(recorded))
    assert found["torch"] == ["2.13.0+cpu"]
    assert found["logical cores"] == ["2"]
    assert found["wrapped by"] == ["none", "DistributedDataParallel"]
