"""What a host gives back for a measurement. Imports the arithmetic room only."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import failures


@dataclasses.dataclass
class Outcome:
    """What a host gives back for a measurement; plain values only.

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
