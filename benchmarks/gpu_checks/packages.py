"""Installed packages: those that are required, and optional ones whose workloads are otherwise left out. Standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

# distribution -> what it is for
REQUIRED = {
    "torch": "training",
    "transformers": "training",
    "trl": "training",
    "peft": "training",
    "accelerate": "training",
    "datasets": "training",
    "pydantic": "the plugin",
    "pyyaml": "the plugin",
    "psutil": "the plugin",
    "packaging": "the plugin",
    "nvidia-ml-py": "reading GPUs",
}
OPTIONAL = {
    "bitsandbytes": "QLoRA",
    "flash-attn": "attn_implementation flash_attention_2",
    "liger-kernel": "use_liger_kernel",
    "kernels": "kernels that transformers loads by itself",
}
# also stated in the results
OTHERS = ("triton", "numpy", "huggingface-hub", "tokenizers", "nvidia-cublas-cu12", "nvidia-cudnn-cu12")
# without network, requests would wait for time-outs
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

Version = Callable[[str], str | None]


def version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(device: str, version: Version = version) -> list[str]:
    """Return the required packages that are not installed; without a GPU nothing has to read one."""
    wanted = (name for name in REQUIRED if device == "gpu" or name != "nvidia-ml-py")
    return [name for name in wanted if version(name) is None]


def unfit(pyproject: Path, version: Version = version) -> list[str]:
    """Return the installed packages of the training stack whose version the plugin does not support, with what it supports.

    Args:
        pyproject: the plugin's pyproject.toml.
        version: returns the version of an installed package.
    """
    # one of the required packages
    from packaging.requirements import Requirement

    stated = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["train"]
    found = []
    for one in map(Requirement, stated):
        installed = version(one.name)
        if installed and not one.specifier.contains(installed, prereleases=True):
            found.append(f"{one.name} {installed} is not {one.specifier}")
    return found


def left_out(version: Version = version) -> dict[str, str]:
    """Return the optional packages that are not installed, and what is left out without them."""
    return {name: purpose for name, purpose in OPTIONAL.items() if version(name) is None}


def versions(version: Version = version) -> dict[str, str]:
    """Return the version of each package of interest that is installed."""
    found = {name: version(name) for name in (*REQUIRED, *OPTIONAL, *OTHERS)}
    return {name: installed for name, installed in found.items() if installed}


def go_offline() -> None:
    """Forbid requests to the Hugging Face hub in this process and in those it starts."""
    os.environ.update(OFFLINE)
