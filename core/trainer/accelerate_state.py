"""Accelerate's state: restored after each training, and on CPUs such that accelerate offers DeepSpeed and device meshes.

Imports accelerate only when called.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

# the argument of ``TrainingArguments`` that keeps the declared state
DECLARED: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore the environment variables after the block, and reset accelerate's state: what one training sets would change the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        # accelerate sets variables such as ACCELERATE_USE_FSDP and ACCELERATE_MIXED_PRECISION
        os.environ.clear()
        os.environ.update(before)
        reset()


def reset() -> None:
    """Reset accelerate's state."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


def declare_on_cpu(kind: str) -> None:
    """Initialise accelerate's state for several processes on CPUs that communicate over gloo, and make it report another type.

    Args:
        kind: name of the ``DistributedType`` to report: with ``MULTI_CPU`` accelerate (1.15) offers neither DeepSpeed nor device meshes.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True, backend="gloo")
    PartialState._shared_state["distributed_type"] = DistributedType[kind]
