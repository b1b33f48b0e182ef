"""Results of running a workload: of one host (``Outcome``), and of all its hosts (``Run``)."""

from __future__ import annotations

import dataclasses

from .. import failures
from ..protocol.messages import EstimateRecord, Record
from ..protocol.results import DeviceSummary


@dataclasses.dataclass
class Outcome:
    """Result of one measurement on one host; plain values only.

    Attributes:
        records: one record per local rank; empty after a failure.
        cause: why the measurement failed; None if it did not.
        device: summary of the device samples of the host, and its hardware.
        total_s: wall time of the measurement on the host, in seconds, including the start of trainers.
        startup_s: the part of ``total_s`` until the trainers were ready, in seconds.
        log: path of the log on the node.
        hostname: name of the node; empty if the host was lost.
        reused: whether the trainers had measured before.
        host_lost: whether the host returned nothing: it ended, stopped answering, or raised an exception. It is not used again.
    """

    records: list[Record | EstimateRecord]
    cause: failures.Cause | None
    device: DeviceSummary
    total_s: float
    startup_s: float
    log: str
    hostname: str
    reused: bool
    host_lost: bool = False


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
        """The cause that explains those of the other hosts; None if the run succeeded."""
        causes = [outcome.cause for outcome in self.outcomes if outcome.cause is not None]
        return failures.root_cause(causes)
