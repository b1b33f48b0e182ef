"""The properties of a fine-tuning workload, each with its type, bounds, default and description.

``actuator/catalog.py`` derives ado's domains from these fields, and the reference pages derive their tables. ``methods``, ``stacks``
and ``tasks`` in a field's extra name where the field applies; a field without them applies everywhere. Constraints on one property
are declared on its field; constraints across properties are in ``validation.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from ..protocol import optimizers, supported
from .data_fields import DataFields
from .parallel_fields import ParallelFields
from .where import ADAPTERS, FMS, TRL
from .where import where as _where

Method = Literal["full", "lora", "qlora", "prompt_tuning", "gptq_lora"]
HUB_KERNEL = "kernels-community/flash-attn2"


class Workload(ParallelFields, DataFields):
    """One fine-tuning run, independent of where it runs. Construct it with ``validation.parse``."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False)

    method: Annotated[Method, pydantic.Field(description="Fine-tuning method.")] = "full"

    model_name: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=4096,
            description="Model: a name of the catalogue, a directory with a config.json, or a hub id.",
        ),
    ]
    model_max_length: Annotated[
        int, pydantic.Field(ge=2, le=131072, description="Length of a sample in tokens; longer ones are truncated.")
    ]
    batch_size: Annotated[
        int,
        pydantic.Field(
            ge=1, le=65536, description="Samples in one forward and backward pass, summed over all devices."
        ),
    ]
    number_gpus: Annotated[
        int, pydantic.Field(ge=0, le=4096, description="GPUs in total, over all nodes; 0 trains on the CPU.")
    ]

    gpu_model: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=256,
            description="GPU type, as Ray's accelerator type or a node label names it; any accepts every type.",
            json_schema_extra=_where(
                examples=(
                    "any",
                    "NVIDIA-A100-80GB-PCIe",
                    "NVIDIA-A100-SXM4-80GB",
                    "NVIDIA-H100-PCIe",
                    "NVIDIA-H100-80GB-HBM3",
                    "L40S",
                    "Tesla-V100-PCIE-16GB",
                    "Tesla-T4",
                )
            ),
        ),
    ] = "any"
    gpu_memory_gib: Annotated[
        float,
        pydantic.Field(
            ge=0,
            le=4096,
            description="Memory of a GPU whose gpu_model is not known, GiB; 0 takes that of gpu_model.",
            json_schema_extra=_where(tasks=("memory_estimate",)),
        ),
    ] = 0.0
    number_nodes: Annotated[
        int,
        pydantic.Field(
            ge=1, le=512, description="Nodes. Without GPUs: training processes, spread over the nodes that exist."
        ),
    ] = 1
    cpus_per_process: Annotated[
        int,
        pydantic.Field(
            ge=0,
            le=1024,
            description="CPUs and CPU threads of each training process; 0 divides the node's CPUs evenly.",
        ),
    ] = 0
    weights: Annotated[
        Literal["random", "pretrained"],
        pydantic.Field(
            description="random builds the architecture with its own initialiser and downloads nothing; pretrained loads weights."
        ),
    ] = "random"
    torch_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], pydantic.Field(description="Type of the model's weights.")
    ] = "float32"
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], pydantic.Field(description="Autocast type of the forward pass.")
    ] = "no"
    fp8_recipe: Annotated[
        Literal["none", "tensorwise", "rowwise", "rowwise_with_gw_hp"],
        pydantic.Field(
            description="Products of linear layers in 8-bit floats, by torchao's recipe; needs a GPU that has them.",
            json_schema_extra=_where(methods=("full",), stacks=TRL),
        ),
    ] = "none"
    gradient_accumulation_steps: Annotated[
        int, pydantic.Field(ge=1, le=4096, description="Passes of batch_size samples in one optimizer step.")
    ] = 1
    gradient_checkpointing: Annotated[
        bool, pydantic.Field(description="Recompute activations in the backward pass to save memory.")
    ] = False
    gradient_checkpointing_use_reentrant: Annotated[
        bool, pydantic.Field(description="Use PyTorch's reentrant form of gradient checkpointing.")
    ] = False
    gradient_checkpointing_every_n_layers: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=1024,
            description="Recompute only every n-th layer under gradient_checkpointing.",
            json_schema_extra=_where(stacks=TRL),
        ),
    ] = 1
    gradient_checkpointing_selective: Annotated[
        bool,
        pydantic.Field(
            description="Keep the outputs of attention under gradient_checkpointing, and recompute the rest.",
            json_schema_extra=_where(stacks=TRL),
        ),
    ] = False
    optim: Annotated[
        optimizers.Name,
        pydantic.Field(description="Optimizer, by its name in TrainingArguments; most need a package of their own."),
    ] = "adamw_torch"
    attn_implementation: Annotated[
        str,
        pydantic.Field(
            max_length=256,
            description="Attention implementation; auto lets transformers choose. A kernel of the hub is code that runs on the nodes.",
            json_schema_extra=_where(
                examples=(*supported.PLAIN_ATTENTION, *supported.FLASH_ATTENTION, supported.FLEX_ATTENTION, HUB_KERNEL)
            ),
        ),
    ] = "auto"
    packing: Annotated[bool, pydantic.Field(description="Fill samples of model_max_length with several documents.")] = (
        False
    )
    padding_free: Annotated[
        bool, pydantic.Field(description="Flatten a batch into one sequence without padding; needs flash attention.")
    ] = False
    max_steps: Annotated[
        int, pydantic.Field(ge=1, le=1_000_000, description="Maximum number of optimizer steps, warm-up included.")
    ] = 100
    num_train_epochs: Annotated[
        int,
        pydantic.Field(
            ge=0, le=10_000, description="Maximum number of passes over the data; 0 repeats it without limit."
        ),
    ] = 0
    stop_after_seconds: Annotated[
        float,
        pydantic.Field(
            ge=0, le=604_800, allow_inf_nan=False, description="Maximum seconds of training; 0 sets no limit."
        ),
    ] = 120.0
    min_steps: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=10_000,
            description="Fewest measured steps before stop_after_seconds or target_ci_percent ends the measurement.",
        ),
    ] = 10
    target_ci_percent: Annotated[
        float,
        pydantic.Field(
            ge=0,
            le=100,
            allow_inf_nan=False,
            description="Stop when the 95 % confidence interval of the mean step time is this narrow (half-width, %); 0 never.",
        ),
    ] = 2.0
    # ado lists every value of a discrete domain when a space has the property: 2**31 of them would take all memory
    seed: Annotated[int, pydantic.Field(ge=0, le=65_535, description="Seed of weights and data.")] = 42

    r: Annotated[
        int, pydantic.Field(ge=1, le=4096, description="LoRA rank.", json_schema_extra=_where(methods=ADAPTERS))
    ] = 8
    lora_alpha: Annotated[
        int, pydantic.Field(ge=1, le=65536, description="LoRA scaling.", json_schema_extra=_where(methods=ADAPTERS))
    ] = 16
    lora_dropout: Annotated[
        float,
        pydantic.Field(
            ge=0,
            lt=1,
            allow_inf_nan=False,
            description="LoRA dropout probability.",
            json_schema_extra=_where(methods=ADAPTERS),
        ),
    ] = 0.0
    target_modules: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            max_length=4096,
            description="Modules LoRA adapts: all-linear, names or ends of paths separated by commas, or a regular expression.",
            json_schema_extra=_where(
                methods=ADAPTERS, examples=("all-linear", "q_proj,v_proj", "q_proj,k_proj,v_proj,o_proj")
            ),
        ),
    ] = "all-linear"
    target_parameters: Annotated[
        str,
        pydantic.Field(
            max_length=4096,
            description="Further parameters that LoRA adapts, such as fused experts: ends of names separated by commas; empty: none.",
            json_schema_extra=_where(methods=ADAPTERS, examples=("", "experts.gate_up_proj,experts.down_proj")),
        ),
    ] = ""
    init_lora_weights: Annotated[
        Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"],
        pydantic.Field(
            description="Initial values of LoRA's factors; olora and pissa decompose the weights first.",
            json_schema_extra=_where(methods=ADAPTERS),
        ),
    ] = "default"
    use_dora: Annotated[
        bool,
        pydantic.Field(
            description="DoRA: adapters of direction and magnitude.", json_schema_extra=_where(methods=ADAPTERS)
        ),
    ] = False
    use_rslora: Annotated[
        bool,
        pydantic.Field(
            description="rsLoRA: divide lora_alpha by the square root of the rank.",
            json_schema_extra=_where(methods=ADAPTERS),
        ),
    ] = False
    quantisation: Annotated[
        Literal["nf4", "fp4", "int8"],
        pydantic.Field(
            description="How qlora stores linear layers: 4 bits as NF4 or FP4, or LLM.int8.",
            json_schema_extra=_where(methods=("qlora",)),
        ),
    ] = "nf4"
    double_quantisation: Annotated[
        bool,
        pydantic.Field(
            description="Quantise the scales of 4-bit weights, too.",
            json_schema_extra=_where(methods=("qlora",), stacks=TRL),
        ),
    ] = True
    num_virtual_tokens: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=8192,
            description="Prompt length in virtual tokens.",
            json_schema_extra=_where(methods=("prompt_tuning",)),
        ),
    ] = 8

    use_liger_kernel: Annotated[
        bool, pydantic.Field(description="Liger's fused kernels; need a GPU.", json_schema_extra=_where(stacks=TRL))
    ] = False
    torch_compile: Annotated[
        bool, pydantic.Field(description="Compile the model with torch.compile.", json_schema_extra=_where(stacks=TRL))
    ] = False
    torch_compile_backend: Annotated[
        Literal["inductor", "aot_eager", "eager", "cudagraphs"],
        pydantic.Field(description="Backend of torch_compile.", json_schema_extra=_where(stacks=TRL)),
    ] = "inductor"
    torch_compile_mode: Annotated[
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        pydantic.Field(description="Mode of torch_compile with inductor.", json_schema_extra=_where(stacks=TRL)),
    ] = "default"
    activation_offloading: Annotated[
        bool,
        pydantic.Field(
            description="Keep activations for the backward pass in host memory.", json_schema_extra=_where(stacks=TRL)
        ),
    ] = False
    packing_strategy: Annotated[
        Literal["bfd", "wrapped"],
        pydantic.Field(
            description="How packing fills samples: best fit decreasing, or cut anywhere.",
            json_schema_extra=_where(stacks=TRL),
        ),
    ] = "bfd"

    fms_hf_tuning_version: Annotated[
        str,
        pydantic.Field(
            pattern=r"^[0-9]+(\.[0-9]+)*[a-z0-9.]*$",
            max_length=32,
            description="Release of the fms-hf-tuning library.",
            json_schema_extra=_where(stacks=FMS, examples=("3.2.2", "3.1.0")),
        ),
    ] = "3.2.2"
    fast_moe: Annotated[
        int,
        pydantic.Field(
            ge=0,
            le=1024,
            description="Expert parallel degree of the library's fast mixture of experts; 0 leaves it off.",
            json_schema_extra=_where(stacks=FMS),
        ),
    ] = 0
    fast_kernels: Annotated[
        bool,
        pydantic.Field(
            description="The library's fused loss, norm and rotary kernels; need a GPU.",
            json_schema_extra=_where(stacks=FMS),
        ),
    ] = False
    multipack: Annotated[
        bool,
        pydantic.Field(
            description="Balance the tokens of batches over devices; needs padding_free.",
            json_schema_extra=_where(stacks=FMS),
        ),
    ] = False

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _reject_boolean_numbers(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("expected a number, not a boolean")
        return value

    @pydantic.field_validator("attn_implementation")
    @classmethod
    def _known_attention(cls, value: str) -> str:
        if not supported.is_attention(value):
            names = (*supported.PLAIN_ATTENTION, *supported.FLASH_ATTENTION, supported.FLEX_ATTENTION)
            raise ValueError(f"expected {', '.join(names)}, or a kernel such as {HUB_KERNEL}")
        return value

    @pydantic.field_validator("target_modules", mode="before")
    @classmethod
    def _names_in_a_list(cls, value: Any) -> Any:
        is_list = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
        names = ",".join(value) if is_list else value
        # PEFT takes all-linear in capitals, too
        is_all = isinstance(names, str) and names.strip().lower() == "all-linear"
        return "all-linear" if is_all else names

    @pydantic.field_validator("mixed_precision", mode="before")
    @classmethod
    def _restore_no(cls, value: Any) -> Any:
        # YAML reads an unquoted no as False
        return "no" if value is False else value

    @property
    def processes(self) -> int:
        """Training processes over all nodes: one per GPU, or one per node on CPU."""
        return self.number_gpus or self.number_nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs of each node."""
        return self.number_gpus // self.number_nodes

    @property
    def device_batch_size(self) -> int:
        """Samples of one pass on one device (the micro-batch)."""
        return self.batch_size // self.replicas

    @property
    def replicas(self) -> int:
        """Groups of devices with data of their own; those of a group share each sample."""
        return self.processes // (self.tensor_parallel_size * self.context_parallel_size)

    @property
    def patches_libraries(self) -> bool:
        """Whether training patches the libraries, so that its process cannot measure another workload afterwards."""
        # the results and counters of torch.compile are kept for the whole process
        compiles = self.torch_compile or self.attn_implementation == supported.FLEX_ATTENTION
        # DeepSpeed keeps its communication for the whole process
        compiles = compiles or self.distributed_backend == "DeepSpeed"
        # torchao compiles the update, and layer-wise optimizers stay in hooks on the model
        compiles = compiles or optimizers.PACKAGES.get(self.optim) == optimizers.TORCHAO
        return compiles or self.use_liger_kernel or self.fast_kernels or self.fast_moe > 0
