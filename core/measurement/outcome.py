"""Results of running a workload: of one host (``Outcome``), and of all its hosts (``Run``)."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import failures


@dataclasses.dataclass
class Outcome:
    """Result of one measurement on one host; plain values only.

    Attributes:
        records: one record per local rank; empty after a failure.
        cause: the failure, or None.
        device: properties and reasons summarised from the sampler, and ``describe``.
        total_s: wall time of this measurement on the host, waiting for the trainers to start included.
        log: path of the log on the node.
        reused: whether the trainers had measured before.
    """

    records: list[dict[str, Any]]
    cause: failures.Cause | None
    device: dict[str, Any]
    total_s: float
    startup_s: float
    log: str
    hostname: str
    reused: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """Result of one run of a workload on all its hosts, after retries.

    Attributes:
        outcomes: one for each host; the first host holds rank 0.
        attempts: number of attempts, the last one included.
    """

    outcomes: list[Outcome]
    attempts: int

    @property
    def cause(self) -> failures.Cause | None:
        """The failure that explains most of those the hosts report; None if the run succeeded."""
        causes = [outcome.cause for outcome in self.outcomes if outcome.cause is not None]
        return failures.most_telling(causes)
