"""``benchmarks/published.py``: its table of facts, its arithmetic, and one small row from end to end."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

# conftest adds the scripts' directory
import published

GIB = 2**30

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


def row(**change: Any) -> published.Row:
    """Return a made-up measurement of the smallest model."""
    values = {
        "model_name": "tiny-llama-5m",
        "method": "full",
        "model_max_length": "64",
        "batch_size": "2",
        "number_gpus": "1",
        "gpu_model": "L40S",
    }
    return published.Row("peft", "", values, ran=True, allocated=None, reserved=None, device=None, **change)


def test_the_table_has_all_rows() -> None:
    """169, of which 39 ran out of memory; each has a device and a counter."""
    rows = published.rows()
    assert len(rows) == 169
    assert sum(not one.ran for one in rows) == 39
    assert all(one.values["gpu_model"] for one in rows)
    assert all(one.device or one.allocated or one.reserved for one in rows)


def test_a_row_is_predicted_in_this_process() -> None:
    """4 999 424 parameters in float32, two moments and a gradient each need 76 MiB at least."""
    got = published.predict(row())
    assert got.message == ""
    assert got.fits is True
    assert got.allocated is not None
    assert got.reserved is not None
    assert 4 * 4 * 4_999_424 < got.allocated <= got.reserved


def results() -> list[published.Result]:
    """Return five rows: 10 % high, 1 % low, out of memory as predicted, out of memory though predicted to fit, and not predicted."""
    high = dataclasses.replace(row(), allocated=10 * GIB)
    close = dataclasses.replace(high, values={**high.values, "number_gpus": "2"})
    lost = dataclasses.replace(row(), ran=False)
    return [
        published.Result(high, 11 * GIB, 12 * GIB, fits=True),
        published.Result(close, int(9.9 * GIB), 10 * GIB, fits=True),
        published.Result(lost, 99 * GIB, 99 * GIB, fits=False),
        published.Result(lost, 40 * GIB, 41 * GIB, fits=True),
        published.Result(row(), message="kernels of scattermoe are not traced"),
    ]


def test_what_several_gpus_take_beside_the_allocator_is_measured() -> None:
    """The allowances are the medians of small models on one GPU and on two with FSDP1; the rows of larger ones have no part in them."""
    from ado_actuators.sfttrainer.core.metrics import accelerators
    from ado_actuators.sfttrainer.core.protocol import outside

    beside = published.outside(published._read(published.PLACE.parent / "results" / "published.json"))
    one, two = (statistics.median(beside[count]) for count in ("1", "2"))
    assert one / GIB == pytest.approx(accelerators.MOST_CONTEXT_GIB, abs=0.05)
    assert two - one == pytest.approx(outside.between_devices_bytes("FSDP", 2), abs=0.05 * GIB)


def test_errors_and_verdicts() -> None:
    """The summary counts the verdicts, and names what is wrong and what is outside the goal."""
    found = results()
    assert found[0].error == pytest.approx(0.1)
    assert published.summary(found).splitlines() == [
        "one GPU: 1 rows, error +10.00 to +10.00 %, median of its size 10.00 %",
        "several GPUs: 1 rows, error -1.00 to -1.00 %, median of its size 1.00 %",
        "fits: 3 of 4 predicted correctly (75.0 %)",
        "fits is wrong: tiny-llama-5m full 1 GPU 2 samples (ran out of memory, needs 40.00 GiB allocated)",
        "outside the goal: tiny-llama-5m full 1 GPU 2 samples (ran, needs 11.00 GiB allocated, error +10.00 %)",
        "not predicted: 1 of 5 rows",
    ]
    assert "out of memory" in published.table(found)


def test_rows_of_other_programs_are_counted_apart() -> None:
    """They publish reserved memory only, of samples whose lengths are not known."""
    other = published.Result(dataclasses.replace(row(), reserved=20 * GIB), 18 * GIB, 19 * GIB, fits=True)
    assert published.summary([other]).splitlines()[0] == (
        "reserved memory only: 1 rows, error -5.00 to -5.00 %, median of its size 5.00 %"
    )


def test_the_page_gets_table_and_summary(tmp_path: Path) -> None:
    """What is outside the marks stays; a second run changes nothing."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{published.BEGIN}\nold\n{published.END}\nafter\n")
    published.write_docs(results(), page)
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert "| tiny-llama-5m | full | 1 | plain | 10.00 | +10.00 % | 1 | 2 | 2 of 3 |" in written
    assert "| tiny-llama-5m | full | 2 | plain | 10.00 | -1.00 % | 1 | 0 | 1 of 1 |" in written
    published.write_docs(results(), page)
    assert page.read_text() == written


def test_rows_that_are_known_are_not_predicted_again(tmp_path: Path) -> None:
    """What a file has is read back as it was written."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([published._written(result) for result in results()]))
    assert published._read(file) == results()


def test_stored_rows_are_shown_without_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was not run says so, and is run by a later call."""
    file, other = tmp_path / "rows.json", dataclasses.replace(row(), configuration="other")
    file.write_text(json.dumps([published._written(results()[0])]))
    monkeypatch.setattr(published, "rows", lambda: [results()[0].row, other])
    monkeypatch.setattr(published, "_alike", lambda *_: None)
    asked: list[published.Row] = []

    def predicted(one: published.Row) -> published.Result:
        asked.append(one)
        return published.Result(one, GIB, GIB, fits=True)

    monkeypatch.setattr(published, "predict", predicted)
    assert published.main(["--stored", "--output", str(file)]) == 0
    assert [one.message for one in published._read(file)] == ["", published.NOT_RUN]
    assert asked == []
    assert published.main(["--resume", "--output", str(file)]) == 0
    assert [one.message for one in published._read(file)] == ["", ""]
    assert asked == [other]
