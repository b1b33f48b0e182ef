"""Rules about devices and how a workload is divided among them, over the properties of ``parallel_fields`` and their neighbours."""

from __future__ import annotations

from ..protocol import optimizers
from .fields import Workload

FSDP = ("FSDP", "FSDP2")
# optimizers that accelerate replaces by DeepSpeed's own for CPUs
DEEPSPEED_OFFLOADS = ("adamw_torch", "adamw_torch_fused", "adagrad")


def rules(w: Workload) -> list[tuple[bool, str]]:
    """Return for each rule whether ``w`` violates it, and the message."""
    devices = f"{w.processes} {'devices' if w.number_gpus else 'processes'}"
    return [
        (
            w.number_gpus > 0 and w.number_gpus % w.number_nodes != 0,
            f"number_gpus {w.number_gpus} is not divisible by number_nodes {w.number_nodes}.",
        ),
        *_sharing_rules(w, devices),
        *_backend_rules(w, devices),
        *_fsdp_rules(w),
        *_deepspeed_rules(w),
    ]


def _sharing_rules(w: Workload, devices: str) -> list[tuple[bool, str]]:
    """Return the rules about samples and the devices that share them."""
    tensor, context = w.tensor_parallel_size, w.context_parallel_size
    name, size = ("tensor_parallel_size", tensor) if tensor > 1 else ("context_parallel_size", context)
    if tensor * context == 1:
        return [(w.batch_size % w.processes != 0, f"batch_size {w.batch_size} is not divisible by {devices}.")]
    return [
        (tensor > 1 and context > 1, "tensor_parallel_size excludes context_parallel_size: no library combines them."),
        (
            w.processes < size,
            f"{name} {size} needs at least {size} devices, not {w.processes}: raise number_gpus, or number_nodes without GPUs.",
        ),
        (w.processes % size != 0, f"{name} {size} does not divide {devices}."),
        (
            w.batch_size * size % w.processes != 0,
            f"batch_size {w.batch_size} is not divisible by {w.processes // size} groups of {size} devices ({name}).",
        ),
        (w.distributed_backend != "FSDP2", f"{name} {size} needs distributed_backend FSDP2."),
        (
            context > 1 and w.number_gpus == 0,
            f"context_parallel_size {context} needs GPUs: PyTorch's ring attention has no kernel for CPUs.",
        ),
        (
            context > 1 and w.attn_implementation not in ("auto", "sdpa"),
            f"context_parallel_size {context} needs attn_implementation sdpa.",
        ),
        (
            context > 1 and w.model_max_length % (2 * context) != 0,
            f"model_max_length {w.model_max_length} is not divisible by {2 * context}, twice the context_parallel_size.",
        ),
        (
            context > 1 and (w.packing or w.padding_free),
            "context_parallel_size excludes packing and padding_free: its attention supports one document per sample only.",
        ),
        (
            tensor > 1 and (w.fsdp_sharding_strategy != "FULL_SHARD" or w.fsdp_transformer_layer_cls_to_wrap != "auto"),
            "tensor_parallel_size needs fsdp_sharding_strategy FULL_SHARD and fsdp_transformer_layer_cls_to_wrap auto.",
        ),
    ]


def _backend_rules(w: Workload, devices: str) -> list[tuple[bool, str]]:
    """Return the rules about devices and how they are connected."""
    cpu = w.number_gpus == 0
    return [
        (cpu and w.gpu_model != "any", f"gpu_model {w.gpu_model!r} needs number_gpus of at least 1."),
        (
            # transformers, not accelerate, divides a model with tensor parallelism
            cpu and w.distributed_backend in FSDP and w.tensor_parallel_size == 1,
            f"distributed_backend {w.distributed_backend} needs GPUs: on CPU the trainer would run DDP instead.",
        ),
        (
            w.processes > 1 and w.distributed_backend == "None",
            f"{devices} need distributed_backend DDP, FSDP, FSDP2 or DeepSpeed, not None.",
        ),
        (w.enable_roce and w.number_nodes == 1, "enable_roce needs number_nodes of at least 2."),
        (w.enable_roce and cpu, "enable_roce needs GPUs: gloo does not use RDMA."),
    ]


def _fsdp_rules(w: Workload) -> list[tuple[bool, str]]:
    version_2 = w.distributed_backend == "FSDP2"
    shards = w.distributed_backend in FSDP and w.processes > 1
    return [
        (
            version_2 and w.fsdp_sharding_strategy not in ("FULL_SHARD", "SHARD_GRAD_OP"),
            f"fsdp_sharding_strategy {w.fsdp_sharding_strategy} does not exist in FSDP2; use FULL_SHARD or SHARD_GRAD_OP.",
        ),
        (
            version_2 and w.fsdp_state_dict_type == "LOCAL_STATE_DICT",
            "fsdp_state_dict_type LOCAL_STATE_DICT does not exist in FSDP2; use FULL_STATE_DICT or SHARDED_STATE_DICT.",
        ),
        (
            w.method in ("qlora", "gptq_lora") and shards,
            f"method {w.method} is not supported with {w.distributed_backend}: use distributed_backend DDP.",
        ),
        (
            w.fsdp_cpu_offload and not shards,
            "fsdp_cpu_offload needs distributed_backend FSDP or FSDP2 on several devices.",
        ),
    ]


def _deepspeed_rules(w: Workload) -> list[tuple[bool, str]]:
    if w.distributed_backend != "DeepSpeed":
        return [
            (w.deepspeed_stage != 2, f"deepspeed_stage {w.deepspeed_stage} needs distributed_backend DeepSpeed."),
            (
                w.deepspeed_offload != "none",
                f"deepspeed_offload {w.deepspeed_offload} needs distributed_backend DeepSpeed.",
            ),
        ]
    return [
        (
            w.deepspeed_offload != "none" and w.number_gpus == 0,
            f"deepspeed_offload {w.deepspeed_offload} needs a GPU: on CPU everything is in host memory already.",
        ),
        (
            w.deepspeed_offload == "optimizer_and_parameters" and w.deepspeed_stage != 3,
            f"deepspeed_offload {w.deepspeed_offload} needs deepspeed_stage 3, not {w.deepspeed_stage}.",
        ),
        (
            w.deepspeed_offload != "none" and w.optim not in DEEPSPEED_OFFLOADS,
            f"deepspeed_offload needs optim {' or '.join(DEEPSPEED_OFFLOADS)}, which DeepSpeed has for CPUs, not {w.optim}.",
        ),
        (
            w.mixed_precision == "no" and w.torch_dtype != "float32",
            f"distributed_backend DeepSpeed needs mixed_precision bf16 or fp16 with torch_dtype {w.torch_dtype}.",
        ),
        (
            w.method in ("qlora", "gptq_lora") and w.deepspeed_stage == 3,
            f"method {w.method} is not supported with deepspeed_stage 3, which divides its packed weights; use 1 or 2.",
        ),
        (
            optimizers.is_low_rank(w.optim) or optimizers.PACKAGES.get(w.optim) == optimizers.LOMO,
            f"optim {w.optim} is not supported with DeepSpeed, which gives optimizers flat parts of the parameters.",
        ),
    ]
