"""The attention implementation that a workload names, and whether its packages are here. Imports transformers.

If the package of a flash attention is absent, transformers loads its kernel from the hub, with the package ``kernels``. The name of a
kernel of the hub comes from the workload alone: ``configuration.read`` removes the names in a model's files.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import transformers
from transformers import modeling_flash_attention_utils as flash

from ..protocol import supported
from ..protocol.messages import JobWorkload
from .errors import BadInput


def argument(workload: JobWorkload) -> dict[str, str]:
    """Return the model's argument for the workload's attention; empty for ``auto``.

    Raises:
        BadInput: a package is missing, or this release of transformers does not know the implementation.
    """
    name = workload.attn_implementation
    if name == "auto":
        return {}
    if name in supported.FLASH_PACKAGES and not _has_package(name):
        _check_fallback(name)
    if supported.is_hub_kernel(name) and not _has_kernels():
        raise BadInput(f"attn_implementation {name[:60]} needs {_kernels()} in the training environment.")
    return {"attn_implementation": name}


def check(workload: JobWorkload, model: Any) -> None:
    """Check that a model has the attention that the workload names; transformers 4 replaces a kernel that it cannot load by sdpa.

    Raises:
        BadInput: the model has another one.
    """
    asked, used = workload.attn_implementation, model.config._attn_implementation
    fallback = getattr(flash, "FLASH_ATTN_KERNEL_FALLBACK", {}).get(asked)
    # a model type may accept only its own kernels of the hub
    own = getattr(model, "_compatible_flash_implementations", None) or ()
    if asked not in ("auto", used) and used != fallback and used not in own:
        raise BadInput(
            f"attn_implementation {asked[:60]} could not be loaded: transformers {transformers.__version__} would use {used}; "
            "see the log."
        )


def _check_fallback(name: str) -> None:
    package = supported.FLASH_PACKAGES[name][0]
    if not hasattr(flash, "FLASH_ATTN_KERNEL_FALLBACK"):
        raise BadInput(
            supported.lacks_package(
                f"attn_implementation {name}",
                package,
                f"transformers {transformers.__version__} has no other kernel for it",
            )
        )
    if name not in flash.FLASH_ATTN_KERNEL_FALLBACK:
        known = ", ".join(("sdpa", "eager", *flash.FLASH_ATTN_KERNEL_FALLBACK))
        raise BadInput(
            f"attn_implementation {name} is not known to transformers {transformers.__version__}; use one of: {known}."
        )
    if not _has_kernels():
        raise BadInput(f"attn_implementation {name} needs the package {package}, or {_kernels()}, in the environment.")


def _has_package(name: str) -> bool:
    module = supported.FLASH_PACKAGES[name][1]
    root = module.partition(".")[0]
    return importlib.util.find_spec(root) is not None and importlib.util.find_spec(module) is not None


def _has_kernels() -> bool:
    from transformers.utils import is_kernels_available

    return bool(is_kernels_available())


def _kernels() -> str:
    """Return the package ``kernels`` with the releases that transformers accepts."""
    from transformers.utils import import_utils

    least, below = (getattr(import_utils, f"KERNELS_{name}_VERSION", None) for name in ("MIN", "MAX"))
    return f"the package kernels (>={least},<{below})" if least and below else "the package kernels"
