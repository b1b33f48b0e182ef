"""Pinned lists of packages for managed environments, one for each library version and variant.

Imports the standard library only. README.md in this directory describes the contents of a list and how to make one.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
VARIANTS = ("cpu", "cuda")
# name of the list for a version and a variant
FILE_NAME = "fms-hf-tuning-{version}-{variant}.txt"
