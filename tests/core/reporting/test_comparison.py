"""Two sets of measurements compared: verdicts, and the command's exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ado_actuators.fms_hf_tuning.__main__ import main as other_main
from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.commands.compare import text
from ado_actuators.sfttrainer.core.reporting.comparison import Tolerance, compare, compare_by, sentences
from ado_actuators.sfttrainer.core.reporting.rows import Row

from .conftest import RECORDINGS

Make = Callable[..., Row]


def verdict(before: Row, after: Row, tolerance: Tolerance = Tolerance(3.0, 5.0)) -> tuple[str, str]:  # noqa: B008
    """Return verdict and reason of one workload."""
    (pair,) = compare([before], [after], tolerance).pairs
    return pair.verdict, pair.why


def test_noise_is_no_regression(row: Make) -> None:
    """5 % slower with intervals of 2 %: within a tolerance of 3 % the ratio may be 1."""
    assert verdict(row(100.0, 2.0), row(95.0, 2.0)) == ("same", "")


def test_slower_beyond_noise_is_a_regression(row: Make) -> None:
    """10 % slower with the same intervals."""
    assert verdict(row(100.0, 2.0), row(90.0, 2.0)) == ("regression", "slower by 10.0 %.")


def test_the_tolerance_decides_what_is_noise_between_runs(row: Make) -> None:
    """The same pair passes a wider tolerance."""
    assert verdict(row(100.0, 2.0), row(90.0, 2.0), Tolerance(10.0, 5.0))[0] == "same"


def test_faster_beyond_noise_is_an_improvement(row: Make) -> None:
    """10 % faster."""
    assert verdict(row(100.0, 2.0), row(110.0, 2.0)) == ("improvement", "faster by 10.0 %.")


@pytest.mark.parametrize("rate", [60.0, 100.0, 160.0])
def test_a_rate_that_was_not_steady_decides_nothing(row: Make, rate: float) -> None:
    """On a busy machine the same code was once 70 % faster: its interval does not cover the change of the other work."""
    steady, other = row(100.0, 2.0), row(rate, 2.0, outputs={"steady": 0})
    few = row(rate, 2.0, outputs={"steady": 1, "measured_steps": 4})
    advice = "not steady; measure again without other work, or longer."
    assert verdict(steady, other) == ("unclear", f"the second rate was {advice}")
    assert verdict(few, steady) == ("unclear", f"the first rate was {advice}")
    assert verdict(other, few) == ("unclear", f"both rates were {advice}")


def test_more_allocated_memory_counts_where_the_rate_does_not(row: Make) -> None:
    """Memory does not vary with other work on the machine."""
    before = row(100.0, 2.0, outputs={"steady": 0, "torch_peak_allocated_gib": 50.0})
    after = row(60.0, 2.0, outputs={"steady": 0, "torch_peak_allocated_gib": 53.0})
    assert verdict(before, after) == ("regression", "allocates 6.0 % more memory.")


def test_what_ran_and_cannot_run_now_is_a_regression(row: Make) -> None:
    """A workload that ran before and runs out of memory or fails now, and the reverse."""
    assert verdict(row(100.0), row(oom=True)) == (
        "regression", "ran before, cannot run (gpu_oom) now: the reason is not known."
    )  # fmt: skip
    assert verdict(row(100.0), row(failed="it broke.")) == ("regression", "ran before, failed now: it broke.")
    assert verdict(row(oom=True), row(100.0)) == ("improvement", "could not run before, runs now.")


def test_more_allocated_memory_is_a_regression(row: Make) -> None:
    """Allocators give the same peak in each run, so 6 % more is not noise."""
    before = row(100.0, outputs={"torch_peak_allocated_gib": 50.0})
    after = row(100.0, outputs={"torch_peak_allocated_gib": 53.0})
    assert verdict(before, after) == ("regression", "allocates 6.0 % more memory.")


def test_fewer_successful_runs_are_a_regression(row: Make) -> None:
    """A stability experiment has no throughput: the fraction of successful runs decides."""
    well, half, none = (row(outputs={"f_gpu_oom": 1 - share, "f_no_error": share}) for share in (1, 0.5, 0))
    assert verdict(well, none) == ("regression", "100 % of the runs succeeded before, 0 % do now.")
    assert verdict(half, well) == ("improvement", "50 % of the runs succeeded before, 100 % do now.")
    assert verdict(none, none) == ("same", "0 % of the runs succeed, as before.")


def test_a_higher_memory_estimate_is_a_regression(row: Make) -> None:
    """The tolerance for memory applies to predicted memory."""
    low, high = row(outputs={"memory_estimate_gib": 50.0}), row(outputs={"memory_estimate_gib": 53.0})
    assert verdict(low, high) == ("regression", "predicted memory: 50 GiB before, 53 GiB now.")
    assert verdict(high, low) == ("improvement", "predicted memory: 53 GiB before, 50 GiB now.")
    assert verdict(low, high, Tolerance(3.0, 10.0))[0] == "same"


def test_without_an_interval_the_verdict_is_unknown(row: Make) -> None:
    """Half the speed, but the noise of one side is not known."""
    assert verdict(row(100.0, None), row(50.0, 1.0)) == ("unknown", "throughput or interval is missing on one side.")


def test_workloads_in_one_set_only_are_listed(row: Make) -> None:
    """Pairs are formed by workload, whatever the source; the last row of a repeated workload counts."""
    before = [row(50.0, source="a"), row(100.0, source="a"), row(1.0, batch_size=2)]
    found = compare(before, [row(100.0, source="b"), row(1.0, batch_size=4)], Tolerance())
    assert [pair.verdict for pair in found.pairs] == ["same"]
    assert (found.only_before, found.only_after) == (["batch 2"], ["batch 4"])


def slowed(factor: float, directory: Path) -> str:
    """Write the recorded operation as if its rates were steady, with another throughput in every row; return the file's name."""
    lines = (RECORDINGS / "operation.csv").read_text().splitlines()
    heads = lines[0].split(",")
    rate, interval = heads.index("dataset_tokens_per_second"), heads.index("throughput_ci95_percent")
    steady, steps = heads.index("steady"), heads.index("measured_steps")
    changed = [lines[0]]
    for line in lines[1:]:
        cells = line.split(",")
        if cells[rate] != "not_measured":
            cells[rate], cells[interval] = str(float(cells[rate]) * factor), "1.0"
            cells[steady], cells[steps] = "1", "50"
        changed.append(",".join(cells))
    (directory / f"{factor}.csv").write_text("\n".join(changed))
    return str(directory / f"{factor}.csv")


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.9, 1), (1.2, 0)])
def test_the_exit_status_says_whether_there_is_a_regression(
    factor: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 if there is one; the table has all ten workloads of the recorded operation."""
    assert main(["compare", slowed(1, tmp_path), slowed(factor, tmp_path)]) == status
    assert "10 workloads compared" in capsys.readouterr().out


def test_a_line_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates, ratio, interval, verdict and reason of one workload."""
    main(["compare", slowed(1, tmp_path), slowed(0.9, tmp_path)])
    assert (
        "- tiny-llama-5m, length 32, batch 4, 1 node    539.0  485.1  0.900  0.887 to 0.913"
        "  regression: slower by 10.0 %."
    ) in capsys.readouterr().out.splitlines()


def test_json_has_verdict_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option --json, for programs."""
    main(["compare", "--json", slowed(1, tmp_path), slowed(0.9, tmp_path)])
    first = json.loads(capsys.readouterr().out)["pairs"][0]
    assert (first["verdict"], first["why"]) == ("regression", "slower by 10.0 %.")


def test_without_any_comparable_workload_the_status_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is printed, but a CI job must not pass when nothing could be compared."""
    file = tmp_path / "short.csv"
    file.write_text(
        "identifier,experiment_id,model_name,model_max_length,batch_size,number_gpus,is_valid,dataset_tokens_per_second\n"
        "e,sfttrainer.finetune_full_benchmark@1.0.0,m,32,4,0,1,50\n"
    )
    assert main(["compare", str(file), str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.err == "No workload can be compared: throughput or interval is missing on one side of each.\n"
    assert "? m, length 32, batch 4" in printed.out
    assert "1 workload compared: 1 unknown." in printed.out


@pytest.mark.parametrize("given", ["abc", "nan", "100"])
def test_a_tolerance_that_is_no_percentage_is_rejected(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the usage and what was expected."""
    assert main(["compare", "a", "b", "--tolerance", given]) == 2
    assert re.search(f"'--tolerance': '?{given}'? is not a ", capsys.readouterr().err)


def test_nothing_to_compare_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, and files without a common workload: status 2 and a message."""
    assert other_main(["compare", str(tmp_path / "absent.csv"), slowed(1, tmp_path)]) == 2
    assert "absent.csv is not a file" in capsys.readouterr().err
    other = tmp_path / "other.csv"
    lines = (RECORDINGS / "operation.csv").read_text().splitlines(keepends=True)
    other.write_text("".join([lines[0], lines[1].replace("tiny-llama-5m", "another")]))
    assert main(["compare", slowed(1, tmp_path), str(other)]) == 2
    assert capsys.readouterr().err.endswith("have no workload in common.\n")


def test_a_wide_interval_is_unclear(row: Make) -> None:
    """With 20 % on each side a loss of 10 % is neither a regression nor the same; the reason names what could be seen."""
    assert verdict(row(100.0, 20.0), row(90.0, 20.0)) == (
        "unclear", "changes of less than 29 % cannot be distinguished from noise; measure longer."
    )  # fmt: skip


def test_a_measurement_that_ado_reused_is_not_compared_with_itself(row: Make) -> None:
    """All outputs are equal, the duration too."""
    one, other = row(100.0, outputs={"total_s": 12.345678}), row(100.0, outputs={"total_s": 12.345678})
    assert verdict(one, other)[0] == "unclear"
    assert "same stored measurement" in verdict(one, other)[1]
    assert verdict(one, row(100.0, outputs={"total_s": 12.345679})) == ("same", "")


def test_values_of_a_property_are_compared_within_one_set(row: Make) -> None:
    """LoRA against full fine-tuning at each batch; what has one method only is listed."""
    lora = {"experiment": "finetune_lora_benchmark"}
    rows = [
        row(100.0),
        row(120.0, **lora),
        row(50.0, batch_size=16),
        row(80.0, batch_size=16, **lora),
        row(9.0, batch_size=32),
    ]
    found = compare_by(rows, "method", Tolerance())
    assert [(pair.what, round(pair.ratio.value, 6) if pair.ratio else None) for pair in found.pairs] == [
        ("batch 8: lora against full", 1.2), ("batch 16: lora against full", 1.6)
    ]  # fmt: skip
    assert found.only_before == ["batch 32: full"]
    assert text(found).endswith("\n2 workloads compared: 2 faster.\nWithout another value: batch 32: full")
    assert [pair.what for pair in compare_by(rows, "batch_size", Tolerance()).pairs] == [
        "full: batch 16 against batch 8", "full: batch 32 against batch 8", "lora: batch 16 against batch 8"
    ]  # fmt: skip


def test_sentences_answer_within_one_set(row: Make) -> None:
    """Whether one value is faster, by how much and how sure; on a busy machine also by CPU time, which decides nothing."""
    lora = {"experiment": "finetune_lora_benchmark"}

    def said(*rows: Row) -> list[str]:
        return [one for pair in compare_by(rows, "method", Tolerance()).pairs for one in sentences(pair)]

    ratio = "1.5 times its rate, 95 % interval 1.46 to 1.54."
    assert said(row(100.0, 2.0), row(150.0, 2.0, **lora)) == [f"lora is faster than full: {ratio}"]
    rows = [row(rate, 1.0, batch_size=at, **kind) for at in (2, 4) for rate, kind in ((9.0, {}), (9.0, lora))]
    assert said(*rows)[1] == "batch 4: lora is about as fast as full: 1 times its rate, 95 % interval 0.986 to 1.01."
    busy = {"steady": 0, "cpu_share_percent": 40.0}
    full = row(100.0, 2.0, outputs={**busy, "dataset_tokens_per_cpu_second": 200.0})
    other = row(150.0, 2.0, outputs={**busy, "dataset_tokens_per_cpu_second": 220.0}, **lora)
    assert said(full, other) == [
        f"lora against full: unclear, {ratio}",
        (
            "lora against full, per second of CPU time, which other work changes little: 220 and 200 tokens, 1.1 times as many, "
            "without an interval."
        ),
    ]
    assert said(row(100.0), row(oom=True, **lora)) == []


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((100.0, 100.0), "2 workloads compared: 2 same. None got worse."),
        ((50.0, 100.0), "2 workloads compared: 1 regression, 1 same. 1 got worse."),
        ((None, 100.0), "2 workloads compared: 1 same, 1 unclear. None got worse, but for 1 that cannot be told."),
        ((None, None), "2 workloads compared: 2 unclear. Whether any got worse cannot be told."),
    ],
)
def test_the_last_line_says_whether_anything_got_worse(row: Make, rates: tuple[float | None, ...], said: str) -> None:
    """A rate that was not steady decides nothing."""
    before = [row(100.0, batch_size=at) for at in range(len(rates))]
    after = [
        row(rate or 100.0, batch_size=at, outputs={"steady": int(rate is not None)}) for at, rate in enumerate(rates)
    ]
    assert text(compare(before, after, Tolerance())).splitlines()[-1] == said


def test_within_one_set_nothing_is_before_or_after(row: Make) -> None:
    """A batch that does not fit says so; a larger batch may need more memory and still be faster."""
    by = compare_by([row(100.0), row(oom=True, batch_size=16)], "batch_size", Tolerance()).pairs
    assert [(pair.verdict, pair.why) for pair in by] == [
        ("regression", "batch 8 runs; batch 16 cannot run (gpu_oom): the reason is not known.")
    ]
    one, two = ({"torch_peak_allocated_gib": gib} for gib in (1.0, 2.0))
    rows = [row(100.0, outputs=one), row(150.0, batch_size=16, outputs=two)]
    assert [pair.why for pair in compare_by(rows, "batch_size", Tolerance()).pairs] == ["faster by 50.0 %."]


def test_bad_use_of_by(capsys: pytest.CaptureFixture[str]) -> None:
    """Two sources with it, none of both, and a property that does not exist: one message and status 2."""
    operation = str(RECORDINGS / "operation.yaml")
    for words, message in (
        ([operation, operation, "--by", "method"], "Give two sources to compare, or one source and --by PROPERTY."),
        ([operation], "Give two sources"),
        ([operation, "--by", "colour"], "--by colour is not a property of a workload"),
        ([operation, "--by", "r"], "has no two workloads that differ in r only."),
    ):
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err
