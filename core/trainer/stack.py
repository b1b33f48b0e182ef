"""The interface of a plugin's module ``stack``, through which trainers use its training library. Standard library only."""

from __future__ import annotations

from typing import Any, Protocol

from ..protocol.messages import Job, JsonObject


class Stack(Protocol):
    """A training library."""

    @property
    def PACKAGES(self) -> tuple[str, ...]:
        """Distributions whose versions the metadata of a result have, besides ``serve.BASE_PACKAGES``."""

    def load(self) -> None:
        """Import the library, which takes several seconds, once per process.

        Raises:
            ImportError: a package is not installed.
        """

    def train(self, job: Job, clock: Any) -> JsonObject:
        """Train once with ``clock.callback`` in the library's trainer, and return facts about the trained model.

        Args:
            job: the job.
            clock: the ``timing.Clock`` of the measurement, or an object with the same methods.

        Raises:
            Refused: the workload is impossible in this environment.
            BadInput: the model or the data cannot be used.
        """
