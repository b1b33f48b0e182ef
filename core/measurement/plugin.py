"""What the core has to know of the plugin it measures for. Imports the arithmetic room only."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

from .. import failures
from ..protocol.messages import JobWorkload
from ..workload.fields import Workload

ENVIRONMENTS = Path(__file__).absolute().parents[2] / "environments"


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin as the core sees it.

    Attributes:
        identifier: of the actuator, also the plugin's package name.
        kinds: the experiments it has, as in ``kinds``.
        requirements: file name of the managed environment's pinned list in the plugin's ``environments``, with
            ``{version}`` for the library version a workload names and ``{variant}`` for cpu or cuda; None: there is none.
    """

    identifier: str
    kinds: tuple[str, ...]
    requirements: str | None = None

    def requirements_of(self, workload: Workload) -> str | None:
        """Return the file name of the pinned list for ``workload``, or None.

        Raises:
            failures.BadInput: there is no list for the library version it names.
        """
        if self.requirements is None:
            return None
        variant = "cuda" if workload.number_gpus else "cpu"
        name = self.requirements.format(version=workload.fms_hf_tuning_version, variant=variant)
        if not (ENVIRONMENTS / name).is_file():
            shape = re.escape(self.requirements).replace(r"\{version\}", "(.+)").replace(r"\{variant\}", variant)
            names = sorted(path.name for path in ENVIRONMENTS.glob(f"*-{variant}.txt"))
            known = ", ".join(found[1] for one in names if (found := re.fullmatch(shape, one)))
            raise failures.BadInput(
                f"there is no environment for fms_hf_tuning_version {workload.fms_hf_tuning_version!r}; there are {known}."
            )
        return name

    def check(self, workload: Workload, architecture: dict[str, Any] | None, *, environment: str) -> None:
        """Refuse, before anything starts, what the library of the managed environment cannot do.

        Args:
            workload: what to train.
            architecture: the model's configuration, where it is known without the network.
            environment: where trainers run, as in the actuator configuration.

        Raises:
            failures.InvalidConfiguration: with what is missing.
        """
        if environment != "managed" or not (ENVIRONMENTS.parent / "limits.py").is_file():
            return
        pinned = (ENVIRONMENTS / str(self.requirements_of(workload))).read_text(encoding="utf-8")
        limits = importlib.import_module("...limits", __package__)
        if sentence := limits.before_start(JobWorkload(**workload.model_dump()), pinned, architecture):
            raise failures.InvalidConfiguration(sentence)
