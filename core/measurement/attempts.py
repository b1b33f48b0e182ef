"""What an operation has learned about workloads that do not fit. Arithmetic room: pure.

Memory grows with the batch and with the length of samples. So what ran out of GPU memory does so again with more of
either, if nothing else differs.
"""

from __future__ import annotations

import json

from ..workload.fields import Workload

GROWING = ("batch_size", "model_max_length")


class Knowledge:
    """Workloads that ran out of GPU memory."""

    def __init__(self) -> None:
        self._too_large: dict[str, list[Workload]] = {}

    def note(self, workload: Workload, failure: object) -> None:
        """Remember how a workload ended: with the ``failure`` of its properties, if it has one."""
        if failure == "gpu_oom":
            self._too_large.setdefault(_rest(workload), []).append(workload)

    def too_large(self, workload: Workload) -> str | None:
        """Return the sentence for a workload that is as large in everything as one that did not fit, or None."""
        for known in self._too_large.get(_rest(workload), ()):
            if all(getattr(workload, name) >= getattr(known, name) for name in GROWING):
                return (
                    "The workload cannot fit: a smaller one ran out of GPU memory in this operation, with batch_size "
                    f"{known.batch_size} and model_max_length {known.model_max_length}."
                )
        return None


def _rest(workload: Workload) -> str:
    """Return everything of a workload that has to be equal."""
    return json.dumps(workload.model_dump(exclude=set(GROWING)), sort_keys=True)
