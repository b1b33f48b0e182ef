"""The arguments of ``transformers.TrainingArguments`` that all stacks share. Imports transformers."""

from __future__ import annotations

from typing import Any

from ..protocol.messages import Job
from . import optimizers


def shared(job: Job, epochs: int) -> dict[str, Any]:
    """Return the arguments for batch, precision, checkpointing, optimizer and length of the training, and for a trainer that is quiet.

    No step waits for the device, and none logs, saves or reports.

    Args:
        job: the job.
        epochs: passes over the data, if ``num_train_epochs`` limits them.

    Raises:
        BadInput: the optimizer cannot be used in this environment.
    """
    workload = job.workload
    cpu = workload.number_gpus == 0
    return {
        "per_device_train_batch_size": workload.batch_size * workload.sharers // job.world_size,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "gradient_checkpointing": workload.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": workload.gradient_checkpointing_use_reentrant},
        "bf16": workload.mixed_precision == "bf16",
        "fp16": workload.mixed_precision == "fp16",
        **optimizers.arguments(workload),
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "max_steps": workload.max_steps if not workload.num_train_epochs else -1,
        "num_train_epochs": epochs,
        "seed": workload.seed,
        "use_cpu": cpu,
        "ddp_backend": "gloo" if cpu and job.world_size > 1 else None,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": workload.dataloader_num_workers,
        "dataloader_pin_memory": not cpu,
        "skip_memory_metrics": True,
    }
