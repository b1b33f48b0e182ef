"""The description of a plugin that the core works with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import failures
from ..protocol.messages import JobWorkload
from ..workload.fields import Workload

# (workload fields, text of the environment's list, the model's configuration if known) -> why it is unsupported, or None
Unsupported = Callable[[JobWorkload, str, dict[str, Any] | None], str | None]
ENVIRONMENTS = Path(__file__).absolute().parents[2] / "environments"


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin: its identifier, experiments and managed environments.

    Attributes:
        identifier: identifier of the actuator, which is also the name of the plugin's package.
        kinds: identifiers of its experiments, keys of ``workload.experiments.KINDS``.
        requirements: file name of the managed environment's pinned list in the plugin's ``environments``, with
            ``{version}`` for the library version of a workload and ``{variant}`` for cpu or cuda; None if the plugin has no lists.
        unsupported: returns why the library in the managed environment cannot run a workload; None if there are no such limits.
    """

    identifier: str
    kinds: tuple[str, ...]
    requirements: str | None = None
    unsupported: Unsupported | None = None

    def requirements_of(self, workload: Workload) -> str | None:
        """Return the file name of the pinned list for ``workload``, or None.

        Raises:
            failures.BadInput: no list exists for the workload's library version.
        """
        if self.requirements is None:
            return None
        variant = "cuda" if workload.number_gpus else "cpu"
        name = self.requirements.format(version=workload.fms_hf_tuning_version, variant=variant)
        if not (ENVIRONMENTS / name).is_file():
            known = ", ".join(self.versions(variant))
            raise failures.BadInput(
                f"fms_hf_tuning_version {workload.fms_hf_tuning_version!r} has no managed environment; use one of {known}."
            )
        return name

    def versions(self, variant: str) -> list[str]:
        """Return the library versions with a pinned list for ``variant`` (cpu or cuda), oldest first."""
        if self.requirements is None:
            return []
        pattern = re.escape(self.requirements).replace(r"\{version\}", "(.+)").replace(r"\{variant\}", variant)
        found = (re.fullmatch(pattern, path.name) for path in ENVIRONMENTS.iterdir())
        return sorted((match[1] for match in found if match), key=_numbers)

    def check(self, workload: Workload, architecture: dict[str, Any] | None, *, environment: str) -> None:
        """Reject a workload that the library of the managed environment cannot run, before anything starts.

        Args:
            workload: the workload.
            architecture: the model's configuration, if it is known without the network.
            environment: the actuator configuration's ``environment``.

        Raises:
            failures.InvalidConfiguration: the message says what the library does not support.
        """
        if environment != "managed" or self.unsupported is None:
            return
        pinned = (ENVIRONMENTS / str(self.requirements_of(workload))).read_text(encoding="utf-8")
        if message := self.unsupported(JobWorkload(**workload.model_dump()), pinned, architecture):
            raise failures.InvalidConfiguration(message)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
