"""The properties of a workload that say how several devices share the work."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from .where import TRL, where


class ParallelFields(pydantic.BaseModel):
    """The part of ``fields.Workload`` about several devices."""

    distributed_backend: Annotated[
        Literal["None", "DDP", "FSDP", "FSDP2", "DeepSpeed"],
        pydantic.Field(description="How several devices share the work; DDP has no effect on one device."),
    ] = "DDP"
    deepspeed_stage: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=3,
            description="What DeepSpeed's ZeRO divides: 1 the optimizer's state, 2 also gradients, 3 also parameters.",
        ),
    ] = 2
    deepspeed_offload: Annotated[
        Literal["none", "optimizer", "optimizer_and_parameters"],
        pydantic.Field(description="What DeepSpeed keeps in host memory; parameters need deepspeed_stage 3."),
    ] = "none"
    fsdp_sharding_strategy: Annotated[
        Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"],
        pydantic.Field(description="What FSDP shards; FSDP2 has FULL_SHARD and SHARD_GRAD_OP."),
    ] = "FULL_SHARD"
    fsdp_state_dict_type: Annotated[
        Literal["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"],
        pydantic.Field(description="State dictionary form of FSDP."),
    ] = "FULL_STATE_DICT"
    fsdp_use_orig_params: Annotated[bool, pydantic.Field(description="Keep original parameters under FSDP (v1).")] = (
        True
    )
    fsdp_transformer_layer_cls_to_wrap: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=256,
            description="Layer class FSDP wraps; auto uses the model's own.",
            json_schema_extra=where(examples=("auto",)),
        ),
    ] = "auto"
    tensor_parallel_size: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=64,
            description="Devices that share the products of each layer, with distributed_backend FSDP2.",
            json_schema_extra=where(stacks=TRL, methods=("full",)),
        ),
    ] = 1
    context_parallel_size: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=64,
            description="Devices that share the tokens of each sample, with distributed_backend FSDP2.",
            json_schema_extra=where(stacks=TRL, methods=("full", "lora")),
        ),
    ] = 1
    fsdp_cpu_offload: Annotated[bool, pydantic.Field(description="Keep FSDP's shards in host memory.")] = False
    enable_roce: Annotated[bool, pydantic.Field(description="RDMA over Converged Ethernet between nodes.")] = False
