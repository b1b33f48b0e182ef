"""Makes accelerate use on CPUs what it offers for GPUs only: DeepSpeed and device meshes. Imports accelerate only when called."""

from __future__ import annotations

from typing import Any

# the argument of ``TrainingArguments`` that keeps the declared state
DECLARED: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}


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
