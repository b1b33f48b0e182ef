"""Devices that share each sample: tensor parallelism of transformers, context parallelism of accelerate.

Both need FSDP2. Imports no third-party package until one of them is used.
"""

from __future__ import annotations

from typing import Any

from ..protocol.messages import Job, JobWorkload
from . import accelerate_state
from .errors import BadInput, Refused

TENSOR = "tensor parallel"
CONTEXT = "context parallel"


def divides_layers(workload: JobWorkload) -> bool:
    """Return whether devices share the layers of the model: tensor parallelism."""
    return workload.tensor_parallel_size > 1


def divides_samples(workload: JobWorkload) -> bool:
    """Return whether devices share the tokens of each sample: context parallelism."""
    return workload.context_parallel_size > 1


def distribute(model: Any, job: Job) -> Any:
    """Divide a model that every process holds whole, in host memory, over the processes; unchanged without tensor parallelism.

    Args:
        model: the model; changed in place.
        job: the job.

    Raises:
        BadInput: the installed transformers lacks this.
        Refused: transformers has no plan for models of this type, or it does not divide this model evenly.
    """
    if not divides_layers(job.workload):
        return model
    import transformers

    size = job.workload.tensor_parallel_size
    try:
        from transformers.distributed import DistributedConfig as config
    except ImportError:
        config = None
    kind = type(model)
    if "fsdp_size" not in getattr(config, "__dataclass_fields__", {}) or not hasattr(kind, "maybe_distribute_model"):
        raise BadInput(
            f"tensor_parallel_size {size} needs a transformers that combines it with FSDP2, such as 5.24; "
            f"{transformers.__version__} is installed."
        )
    settings, _, mesh = kind.prepare_distribute_model(config(tp_size=size, fsdp_size=job.world_size // size))
    try:
        model = kind.maybe_distribute_model(model, settings, mesh)
    except (
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:  # a plan that does not fit the model
        head = f"tensor_parallel_size {size} is not possible with this model ({model.config.model_type})"
        if "has no `tp_plan`" in str(error):
            raise Refused(
                f"{head}: transformers {transformers.__version__} has no plan that divides its layers."
            ) from error
        raise Refused(head, error) from error
    # both ends of a tied weight were divided
    model.tie_weights()
    return model if job.workload.number_gpus == 0 else model.to(f"cuda:{job.local_rank}")


def options(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of TRL's ``SFTConfig`` for both; empty without them.

    Raises:
        BadInput: the installed libraries lack context parallelism.
    """
    if divides_layers(workload) and not workload.number_gpus:
        # accelerate has no mesh of CPUs
        accelerate_state.declare_on_cpu("MULTI_GPU")
        return accelerate_state.DECLARED
    if not divides_samples(workload):
        return {}
    import transformers

    size = workload.context_parallel_size
    try:
        from accelerate import ParallelismConfig
    except ImportError:
        ParallelismConfig = None
    if ParallelismConfig is None or "parallelism_config" not in transformers.TrainingArguments.__dataclass_fields__:
        raise BadInput(
            f"context_parallel_size {size} needs transformers 4.57 and accelerate 1.12 or newer; "
            f"transformers {transformers.__version__} is installed."
        )
    mesh = ParallelismConfig(cp_size=size, dp_shard_size=workload.processes // size)
    # ring attention gives each device a part from the beginning and one from the end
    return {"parallelism_config": mesh, "pad_to_multiple_of": 2 * size}


def wrapper(trainer: Any, found: str) -> str:
    """Return the name of a wrapper together with what model and trainer report about devices that share samples."""
    tensor = getattr(trainer.model, "_tp_size", None) or 1
    mesh = getattr(getattr(trainer, "accelerator", None), "parallelism_config", None)
    context = getattr(mesh, "cp_size", 1)
    shared = [(TENSOR, tensor), (CONTEXT, context)]
    names = [found] * (found != "none") + [f"{name} {size}" for name, size in shared if size > 1]
    return ", ".join(names) or "none"


def expected(workload: JobWorkload, world_size: int) -> str | None:
    """Return the name that ``wrapper`` has to return for a workload; None without tensor and context parallelism."""
    if divides_layers(workload):
        name = f"{TENSOR} {workload.tensor_parallel_size}"
        return name if workload.tensor_parallel_size == world_size else f"FSDP2, {name}"
    return f"FSDP2, {CONTEXT} {workload.context_parallel_size}" if divides_samples(workload) else None
