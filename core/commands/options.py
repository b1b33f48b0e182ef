"""Types, limits and completion of the commands' options. Imports typer only."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

SOURCE = (
    "The identifier of an operation or a space; latest; a CSV file of `ado show measurements`; "
    "or a YAML file of `ado show trace`."
)

Samples = Annotated[int, typer.Option(help="Number of samples.")]
Words = Annotated[int, typer.Option(help="Words of a sample.")]
Seed = Annotated[int, typer.Option(help="Equal seeds write equal files.")]


class Actuator(StrEnum):
    """What ``convert`` converts to."""

    fms_hf_tuning = "fms_hf_tuning"
    sfttrainer = "sfttrainer"


class Weights(StrEnum):
    """What ``convert`` lets models have."""

    random = "random"
    pretrained = "pretrained"


class Format(StrEnum):
    """What ``report`` writes."""

    html = "html"
    png = "png"
    both = "both"
    autoconf = "autoconf"


def percent(value: float) -> float:
    """Check an option that is a percentage: from 0 to below 100."""
    if not 0 <= value < 100:  # false for NaN, too
        raise typer.BadParameter(f"{value:g} is not a percentage from 0 to below 100.")
    return value


def experiments(incomplete: str) -> list[str]:
    """Complete the name of an experiment."""
    from ..workload.experiments import KINDS

    return [name for name in KINDS if name.startswith(incomplete)]


def properties(incomplete: str) -> list[str]:
    """Complete the name of a property; the shell itself completes file names."""
    from ..workload.fields import Workload

    return [f"{name}=" for name in Workload.model_fields if name.startswith(incomplete)]
