"""What one host returns for a measurement."""

from __future__ import annotations

import dataclasses

from .. import failures
from ..protocol.messages import DeviceSummary, EstimateRecord, Record


@dataclasses.dataclass
class Outcome:
    """What one host returns for a measurement; plain values only.

    Attributes:
        records: one record per local rank; empty after a failure.
        cause: why the measurement failed; None if it did not.
        device: what was sampled on the host, and its hardware.
        total_s: wall time of the measurement on the host, in seconds, including the start of trainers.
        startup_s: of it, the wait until the trainers were ready, in seconds.
        log: path of the log on the node.
        hostname: name of the node; empty if the host was lost.
        reused: whether the trainers had measured before.
        host_lost: whether the host ended or stopped answering before it returned anything.
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
