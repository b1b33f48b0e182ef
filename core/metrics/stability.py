"""Computes the fractions of a stability experiment from the causes of its runs. Pure.

A user's mistake (``bad_input``, ``invalid_configuration``) says nothing about stability and ends the experiment at the first
run. Every other end counts, including a crash of the trainer or a time-out.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..failures import Cause
from ..workload.outputs import STABILITY_OUTPUTS
from .benchmark import Report


def verdict_is_known(cause: Cause | None) -> bool:
    """Whether further runs are useless because the workload cannot run at all."""
    return cause is not None and cause.what in ("bad_input", "invalid_configuration")


def summarise(causes: Sequence[Cause | None]) -> Report:
    """Return the report of runs that ended with ``causes``, None for one that ended well.

    Raises:
        ValueError: there was no run.
    """
    if not causes:
        raise ValueError("a stability experiment needs at least one run")
    runs = len(causes)
    well = sum(cause is None for cause in causes)
    gpu_oom = sum(cause is not None and cause.what == "gpu_oom" for cause in causes)
    return Report(
        properties={
            "is_valid": 1,
            "failure": "none",
            "f_gpu_oom": gpu_oom / runs,
            "f_other_error": (runs - well - gpu_oom) / runs,
            "f_no_error": well / runs,
        },
        omitted={},
        raw_step_s=[],
        outputs=STABILITY_OUTPUTS,
    )
