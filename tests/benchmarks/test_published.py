"""``benchmarks/published.py``: its table of facts, its arithmetic, and one small row from end to end."""

from __future__ import annotations

import dataclasses
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


def test_errors_and_verdicts() -> None:
    """Of three rows one is 10 % high, one ran out of memory and was told so, one is not predicted."""
    measured = dataclasses.replace(row(), allocated=10 * GIB)
    lost = dataclasses.replace(row(), ran=False)
    results = [
        published.Result(measured, 11 * GIB, 12 * GIB, fits=True),
        published.Result(lost, 99 * GIB, 99 * GIB, fits=False),
        published.Result(row(), message="kernels of foak are not traced"),
    ]
    assert results[0].error == pytest.approx(0.1)
    assert published.summary(results).splitlines() == [
        "one GPU: 1 rows, error +10.00 to +10.00 %, median of its size 10.00 %",
        "fits: 2 of 2 told right",
        "not predicted: 1 of 3 rows",
    ]
    assert "out of memory" in published.table(results)
