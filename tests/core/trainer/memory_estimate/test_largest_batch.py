"""The search for the largest batch, with memory that is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ado_actuators.sfttrainer.core.trainer.memory_estimate.largest_batch import largest


def affine(base: int, slope: int, update: int = 0, asked: list[int] | None = None) -> Callable[[int], dict[str, int]]:
    """Return an estimate whose passes grow with the batch and whose update does not."""

    def estimate(batch: int) -> dict[str, int]:
        if asked is not None and batch not in asked:
            asked.append(batch)
        return {"passes": base + slope * batch, "floor": slope * batch, "update": update}

    return estimate


@pytest.mark.parametrize("begin", [1, 2, 5, 13, 64, 500])
@pytest.mark.parametrize(("capacity", "expected"), [(100 + 70, 10), (100 + 76, 10), (100 + 77, 11), (107, 1), (106, 0)])
def test_affine_memory(begin: int, capacity: int, expected: int) -> None:
    """Wherever it begins, the answer is the largest batch that fits."""
    assert largest(begin, capacity, affine(100, 7), most=1000) == expected


def test_three_estimates_are_enough() -> None:
    """Two points of the line and the confirmation."""
    asked: list[int] = []
    assert largest(4, 1000, affine(100, 7, asked=asked), most=65536) == 128
    assert sorted(asked) == [4, 8, 128]


def test_an_update_that_does_not_fit() -> None:
    """No batch is small enough when the optimizer alone is too large; nothing more is estimated."""
    asked: list[int] = []
    assert largest(4, 1000, affine(100, 7, update=1001, asked=asked), most=65536) == 0
    assert asked == [4]


def test_one_sample_that_does_not_fit() -> None:
    """Below one sample there is nothing to try."""
    assert largest(1, 50, affine(100, 7), most=65536) == 0


def test_a_large_update_does_not_hide_the_slope() -> None:
    """The line is that of the passes, even where the update is the peak."""
    assert largest(1, 1000, affine(100, 7, update=900), most=65536) == 128


def test_nothing_beyond_the_most() -> None:
    """Memory for more than is of interest gives what is of interest."""
    assert largest(2, 10**9, affine(100, 7), most=64) == 64


def test_small_batches_hide_behind_the_gradients() -> None:
    """Where gradients are the peak of small batches and activations that of larger ones, the answer is exact all the same."""
    asked = []

    def estimate(batch: int) -> dict[str, int]:
        asked.append(batch)
        floor = 45_000 + 1_500 * batch
        return {"passes": max(60_000 + 10 * batch, floor), "floor": floor, "update": 74_800}

    assert largest(1, 79_300, estimate, most=65536) == 22
    assert sorted(set(asked)) == [1, 2, 22]


@pytest.mark.parametrize("begin", [1, 4, 16, 64, 512, 4096])
def test_memory_that_grows_with_the_square_is_searched(begin: int) -> None:
    """As with masks of a batch in one row: wherever it begins, the answer fits, is near the largest, and never 0 for want of tries."""

    def estimate(batch: int) -> dict[str, int]:
        return {"passes": 1000 + 10 * batch + 3 * batch**2, "floor": 10 * batch + 3 * batch**2, "update": 900}

    for true in (1, 2, 5, 20, 37, 150, 900):
        answer = largest(begin, estimate(true)["passes"], estimate, most=65536)
        assert 0.8 * true <= answer <= true


def test_memory_that_bends_is_confirmed() -> None:
    """Where the line was wrong the answer is still a batch that fits."""

    def estimate(batch: int) -> dict[str, int]:
        return {"passes": 100 + 7 * batch + (200 if batch > 50 else 0), "floor": 0, "update": 0}

    answer = largest(2, 1000, estimate, most=65536)
    assert estimate(answer)["passes"] <= 1000 < estimate(answer + 1)["passes"]
