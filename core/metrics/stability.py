"""Computes the fractions of a stability experiment from the causes of its runs. Pure.

An error in the input (``bad_input``, ``invalid_configuration``) is unrelated to stability and ends the experiment after the
first run. Every other outcome counts, including a crash of the trainer or a time-out.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..failures import Cause
from ..workload.outputs import STABILITY_OUTPUTS
from .report import Report


def verdict_is_known(cause: Cause | None) -> bool:
    """Whether further runs are useless because the workload cannot run at all."""
    return cause is not None and cause.what in ("bad_input", "invalid_configuration")


def summarise(causes: Sequence[Cause | None]) -> Report:
    """Return the report of runs that ended with ``causes``, None for a run without an error.

    Raises:
        ValueError: ``causes`` is empty.
    """
    if not causes:
        raise ValueError("The causes are empty; a stability experiment needs at least one run.")
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
