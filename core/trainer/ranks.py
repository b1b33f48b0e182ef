"""Communication between the ranks of one measurement: gloo on the CPU, so that no GPU waits. Imports torch."""

from __future__ import annotations

from typing import Any

import torch

REASONS = ("", "confidence", "max_steps", "stop_after_seconds", "data")


class Ranks:
    """The processes of one measurement. With a single process no method communicates."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._group: Any = None

    def start(self) -> None:
        """Create the gloo process group. Every rank must call this when training begins."""
        if self._world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def agree(self, reason: str) -> str:
        """Return rank 0's reason to stop on every rank; the empty string means to go on."""
        return REASONS[self.share(REASONS.index(reason))]

    def share(self, number: int) -> int:
        """Return rank 0's number on every rank."""
        if self._group is None:
            return number
        tensor = torch.tensor([number], dtype=torch.int64)
        torch.distributed.broadcast(tensor, src=0, group=self._group)
        return int(tensor.item())
