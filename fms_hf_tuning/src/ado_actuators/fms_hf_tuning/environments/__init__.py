"""Pinned package lists of managed environments, one for each library version and variant.

Imports the standard library only. README.md in this directory says what a list holds and how one is made.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
VARIANTS = ("cpu", "cuda")


class NoSuchEnvironment(LookupError):
    """There is no list for a library version; the message is for the user."""


def versions() -> list[str]:
    """Return the library versions that have a list for every variant, oldest first."""
    found = {variant: {_version(path) for path in HERE.glob(f"fms-hf-tuning-*-{variant}.txt")} for variant in VARIANTS}
    return sorted(set.intersection(*found.values()), key=_order)


def requirements(version: str, variant: str) -> Path:
    """Return the pinned list of ``version`` for ``variant`` (cpu or cuda).

    Raises:
        NoSuchEnvironment: there is none.
    """
    if version not in versions() or variant not in VARIANTS:
        raise NoSuchEnvironment(
            f"fms_hf_tuning_version {version!r} has no environment for {variant}; there are {', '.join(versions())}."
        )
    return HERE / f"fms-hf-tuning-{version}-{variant}.txt"


def _version(path: Path) -> str:
    return path.stem.removeprefix("fms-hf-tuning-").rpartition("-")[0]


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
