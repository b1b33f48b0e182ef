"""Checks of a row that was read: its values are ones that a measurement can give. Reads no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..workload.experiments import KINDS
from .rows import INTERVAL, MEMORY, THROUGHPUT, Row

# bytes, tokens per second, joules: no output of one measurement comes near this
LARGEST = 1e15
FAILURES = ("none", "gpu_oom", "host_oom", "predicted_oom", "invalid_configuration")


def problem(row: Row) -> str | None:
    """Return which value of the row is impossible and what was expected, or None."""
    for check in CHECKS:
        if text := next(check(row), None):
            return text
    return None


def _outputs_are_numbers(row: Row) -> Iterator[str]:
    names = KINDS[row.experiment].outputs.keys() - {"failure"}
    for name in filter(names.__contains__, row.outputs):
        value = row.output(name)
        if value is None:
            yield f"{name} is {row.outputs[name]!r:.40}; expected a finite number."
        elif abs(value) > LARGEST:
            yield f"{name} is {value:g}; expected a number up to {LARGEST:g}."


def _failure_is_known(row: Row) -> Iterator[str]:
    failure = row.outputs.get("failure", "none")
    if failure not in FAILURES:
        yield f"failure is {failure!r:.40}; expected one of: {', '.join(FAILURES)}."


def _validity_is_0_or_1(row: Row) -> Iterator[str]:
    if row.output("is_valid") not in (None, 0, 1):
        yield f"is_valid is {row.outputs['is_valid']!r:.40}; expected 0 or 1."


def _rate_and_memory_are_positive(row: Row) -> Iterator[str]:
    for name in (THROUGHPUT, *MEMORY):
        value = row.output(name)
        if value is not None and value <= 0:
            yield f"{name} is {value:g}; expected a number above 0."


def _interval_is_not_negative(row: Row) -> Iterator[str]:
    width = row.output(INTERVAL)
    if width is not None and width < 0:
        yield f"{INTERVAL} is {width:g}; expected a number from 0."


def _counts_are_whole_numbers(row: Row) -> Iterator[str]:
    # a workload that was refused may have been requested with any length and batch size
    lowest = {"number_gpus": 0, "number_nodes": 0}
    if row.throughput is not None:
        lowest |= {"model_max_length": 1, "batch_size": 1}
    for name, least in lowest.items():
        count = row.value(name)
        if not isinstance(count, int) or count < least:
            yield f"{name} is {count!r:.40}; expected a whole number from {least}."


CHECKS: tuple[Callable[[Row], Iterator[str]], ...] = (
    _outputs_are_numbers,
    _failure_is_known,
    _validity_is_0_or_1,
    _rate_and_memory_are_positive,
    _interval_is_not_negative,
    _counts_are_whole_numbers,
)
