"""Changes with which a workload may need less memory, for a memory estimate to try. Imports pydantic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import failures
from ..workload.experiments import KINDS
from ..workload.fields import Workload
from ..workload.validation import parse

CHECKPOINTS: Mapping[str, Any] = {"gradient_checkpointing": True}
HALF: Mapping[str, Any] = {"torch_dtype": "bfloat16", "mixed_precision": "no"}
EIGHT_BITS: Mapping[str, Any] = {"optim": "adamw_bnb_8bit"}
ONE_GPU: Mapping[str, Any] = {
    "number_gpus": 1,
    "number_nodes": 1,
    "distributed_backend": "DDP",
    "fsdp_cpu_offload": False,
    "fsdp_sharding_strategy": "FULL_SHARD",
}


def groups(workload: Workload, experiment: str) -> list[list[dict[str, Any]]]:
    """Return changes in groups: those of one property, then combinations, to be tried if no change before them is enough."""
    shorter = {"model_max_length": max(2, workload.model_max_length // 2)}
    single: list[Mapping[str, Any]] = [
        CHECKPOINTS,
        HALF,
        {"batch_size": workload.processes},
        shorter,
        {"method": "lora"} if workload.method == "full" else {},
        {"method": "qlora"} if workload.method in ("full", "lora") else {},
        EIGHT_BITS if workload.optim.startswith("adamw_torch") and workload.method == "full" else {},
    ]
    both = {**CHECKPOINTS, **HALF}
    together: list[list[Mapping[str, Any]]] = [
        [both],
        [{**both, "method": "lora"}],
        [{**both, "method": "qlora"}],
        [{**both, "method": "qlora", **shorter}],
    ]
    possible = [list(_possible(workload, experiment, changes)) for changes in (single, *together)]
    return [group for group in possible if group]


def counts(workload: Workload) -> list[dict[str, Any]]:
    """Return the changes to one GPU, and to several that share the model under FSDP, with the same samples on each; [] without GPUs."""
    if not workload.number_gpus:
        return []
    samples = workload.device_batch_size
    sharded = workload.distributed_backend if workload.distributed_backend in ("FSDP", "FSDP2") else "FSDP2"
    several = {**ONE_GPU, "number_gpus": 2, "batch_size": 2 * samples, "distributed_backend": sharded}
    if workload.fsdp_sharding_strategy == "SHARD_GRAD_OP":
        several["fsdp_sharding_strategy"] = "SHARD_GRAD_OP"
    return [{**ONE_GPU, "batch_size": samples}, several]


def _possible(workload: Workload, experiment: str, changes: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield what differs from the workload in each change, where that is a workload that can be estimated."""
    values = workload.model_dump()
    for change in changes:
        different = {name: value for name, value in change.items() if values[name] != value}
        allowed = KINDS[experiment].limits.get("method", ())
        if not different or ("method" in different and different["method"] not in allowed):
            continue
        try:
            parse({**values, **different})
        except failures.InvalidConfiguration:
            continue
        yield different
