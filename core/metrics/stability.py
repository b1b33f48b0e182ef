"""From the causes of several runs to the fractions of a stability experiment. Arithmetic room: pure.

What the user gave wrongly (``bad_input``, ``invalid_configuration``) says nothing about stability: it ends the experiment at
the first run. Everything else is an outcome that counts, a crash of the trainer or a time limit as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..failures import Cause
from ..workload.outputs import STABILITY_OUTPUTS
from .benchmark import Report


def verdict_is_known(cause: Cause | None) -> bool:
    """Whether further runs can tell nothing: the workload cannot be tried at all."""
    return cause is not None and cause.what in ("bad_input", "invalid_configuration")


def summarise(causes: Sequence[Cause | None]) -> Report:
    """Return the report of runs that ended with ``causes``, None for one that ended well.

    Raises:
        ValueError: there was no run.
    """
    if not causes:
        raise ValueError("no run, no fraction")
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
