"""Makes accelerate use on CPUs what it has for devices only. Imports accelerate when that is wanted."""

from __future__ import annotations

from typing import Any

# the argument of ``TrainingArguments`` that keeps the declared state
DECLARED: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}


def declare_on_cpu(kind: str) -> None:
    """Initialise accelerate's state for several processes on CPUs that communicate over gloo, and declare another type of it.

    Args:
        kind: name of accelerate's ``DistributedType``: accelerate (1.15) has ``DEEPSPEED`` and meshes of devices not for ``MULTI_CPU``.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True, backend="gloo")
    PartialState._shared_state["distributed_type"] = DistributedType[kind]
