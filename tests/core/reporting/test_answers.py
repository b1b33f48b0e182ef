"""What a report says in words, and what a budget of tokens takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.commands import report
from ado_actuators.sfttrainer.core.reporting import answers, page
from ado_actuators.sfttrainer.core.reporting.rows import Row

from .conftest import RECORDINGS

Make = Callable[..., Row]


def test_the_fastest_is_named_with_those_that_may_be_as_fast(row: Make) -> None:
    """118 with 5 % may be faster than 120 with 5 %; 60 may not."""
    rows = [row(60.0, 5.0, batch_size=2), row(118.0, 5.0, batch_size=4), row(120.0, 5.0, batch_size=8, memory=7.25)]
    assert answers.summary(rows) == [
        "Fastest steady workload: batch 8, with 120 tokens/s ± 5 %.",
        "These may be faster: batch 4 (118 tokens/s ± 5 %).",
        "Least memory: batch 8, with 7.25 GiB, peak memory of a GPU.",
    ]


def test_a_single_step_is_never_the_fastest_without_a_word(row: Make) -> None:
    """One step of a slow model, or a rate that was not steady, is named as such."""
    short = row(500.0, None, batch_size=2, outputs={"measured_steps": 1, "steady": 0})
    shaky = row(400.0, 30.0, batch_size=4, outputs={"measured_steps": 20, "steady": 0})
    good = row(100.0, 2.0, batch_size=8, outputs={"measured_steps": 20, "steady": 1})
    assert answers.summary([short, shaky, good])[:2] == [
        "Fastest steady workload: batch 8, with 100 tokens/s ± 2 %.",
        ("These may be faster: batch 2 (500 tokens/s, 1 step, not steady); batch 4 (400 tokens/s ± 30 %, not steady)."),
    ]
    assert answers.summary([short])[0].startswith("Fastest workload, none of them steady: ")
    near = dataclasses.replace(shaky, workload={**shaky.workload, "batch_size": 16}, outputs={**shaky.outputs})
    near.outputs["dataset_tokens_per_second"] = 350.0
    assert answers.summary([shaky, near])[1].startswith(
        "These may be faster: batch 16 (350 tokens/s ± 30 %, not steady)"
    )


def test_models_are_not_compared_by_their_rates(row: Make) -> None:
    """Each of up to three models has its own fastest workload: of two models the smaller one would always be the fastest."""
    rows = [row(rate, model_name=name, batch_size=at) for name, rate in (("s", 900.0), ("l", 9.0)) for at in (2, 4)]
    assert [line for line in answers.summary(rows) if line.startswith("Fastest")] == [
        "Fastest steady workload: s, batch 2, with 900 tokens/s ± 1 %.",
        "Fastest steady workload: l, batch 2, with 9 tokens/s ± 1 %.",
    ]
    many = [row(float(at + 1), model_name=f"m{at}") for at in range(answers.MOST_MODELS + 1)]
    assert answers.summary(many)[0] == "Fastest steady workload: m3, with 4 tokens/s ± 1 %."


def test_nothing_is_said_without_a_rate(row: Make) -> None:
    """Without a throughput there is no sentence."""
    assert answers.summary([row(oom=True)]) == []


def test_a_budget_of_tokens(row: Make) -> None:
    """36 million tokens at 1000 tokens/s take 10 hours; two GPUs at 2.50 USD cost 50 USD, with 25 % from 40 to 66.7 USD."""
    two = row(1000.0, 25.0, number_gpus=2)
    one = row(600.0, 25.0)
    found = answers.expenses(answers.priced([two, one, row(oom=True)], 2.5), 36e6)
    assert [(item.row.workload, item.hours, item.usd) for item in found] == [
        (one.workload, pytest.approx(16.6667, rel=1e-4), pytest.approx(41.6667, rel=1e-4)),
        (two.workload, pytest.approx(10.0), pytest.approx(50.0)),
    ]
    assert (found[1].low, found[1].high) == (pytest.approx(0.8), pytest.approx(4 / 3))


def test_a_large_budget_is_written_in_digits(row: Make) -> None:
    """2,778 hours, not 2.78e+03."""
    (line,) = report._spent(answers.priced([row(10.0, 10.0)], 2.0), 100e6)
    assert line.startswith("Cheapest for 100,000,000 tokens: ")
    assert "2,778 hours (2,525 to 3,086) and 5,556 USD (5,051 to 6,173)." in line


def test_the_price_of_the_measurements_is_the_default(row: Make) -> None:
    """With 2 USD per million tokens, 5 million cost 10 USD; without any price the fastest comes first."""
    priced = row(100.0, outputs={"usd_per_million_tokens": 2.0})
    assert answers.expenses([priced], 5e6)[0].usd == 10.0
    unpriced = [row(50.0, batch_size=2), row(100.0)]
    assert [item.usd for item in answers.expenses(unpriced, 5e6)] == [None, None]
    assert answers.expenses(unpriced, 5e6)[0].row.throughput == 100.0


@pytest.mark.parametrize("words", [["--price", "-1"], ["--tokens", "nan"], ["--tokens", "-1"], ["--tokens", "many"]])
def test_bad_budgets(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, status 2, and nothing written."""
    assert main(["report", str(RECORDINGS / "operation.yaml"), "-o", str(tmp_path), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_replayed_rows_are_counted(row: Make) -> None:
    """One of two was measured by an earlier operation."""
    rows = [dataclasses.replace(row(100.0), replayed=True), row(50.0, batch_size=4)]
    assert answers.replayed(rows).startswith("1 of 2 workloads is replayed: measured by an earlier operation, ")
    assert answers.replayed(rows[1:]) == ""
    assert "measured, replayed" in page.html(rows, [], [], "")


def test_a_busy_machine_is_named(row: Make) -> None:
    """With the share of the CPU time that training got, in the page too; not where the share is high or not known."""
    rows = [
        row(1.0, batch_size=at, outputs={"cpu_share_percent": share}) for at, share in ((1, 41.2), (2, 60.0), (4, 99.0))
    ]
    assert answers.busy([*rows, row(5.0)]).startswith(
        "The machine was busy during 2 of 3 workloads: the training processes got 41 to 60 % of the CPU time "
    )
    assert "got 41 % of" in answers.busy(rows[:1])
    assert answers.busy([rows[2], row(5.0)]) == ""
    assert "The machine was busy during 2 of 3 workloads" in page.html(rows, [], [], "")
