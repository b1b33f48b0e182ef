"""The messages between a host and its trainers, as types.

Imports the standard library only and runs on Python 3.10, because trainers import it in environments without this plugin.

Each message is one line of JSON. A host writes jobs (``Job.to_line``) to a trainer's standard input; a trainer answers with the
messages of the union ``Message``, which differ in their key ``event``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Union, get_args

from . import optimizers

# the counts of a record: one list per name, with one number per optimizer step
Count = Literal["samples", "token_slots", "real_tokens", "trained_tokens", "squared_lengths"]
COUNTS: tuple[Count, ...] = get_args(Count)
# longest message about a failure, characters; longer ones are cut
LONGEST_MESSAGE = 200
# of a library's exception in a message, characters: its text is whole, but megabytes would fill stores and reports
LONGEST_QUOTED = 20_000
# what memory is used for, as an estimate divides it
MEMORY_KINDS = ("parameters", "gradients", "optimizer", "activations", "temporaries")
# the data type of matrix products under each ``mixed_precision`` with autocast
AUTOCAST_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}

Task = Literal["benchmark", "memory_estimate", "stability"]
StopReason = Literal["confidence", "max_steps", "stop_after_seconds", "data"]
# an arbitrary JSON object, such as a model's Hugging Face configuration
JsonObject = dict[str, Any]

# -- to the trainer --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobWorkload:
    """The fields of ``core.workload.fields.Workload`` as plain values; a test checks that both have the same fields."""

    method: Literal["full", "lora", "qlora", "prompt_tuning", "gptq_lora"]
    model_name: str
    model_max_length: int
    batch_size: int
    number_gpus: int
    gpu_model: str
    gpu_memory_gib: float
    number_nodes: int
    cpus_per_process: int
    weights: Literal["random", "pretrained"]
    dataset_id: str
    dataset_text_field: str
    dataset_image_field: str
    dataloader_num_workers: int
    synthetic_prompt_share: float
    completion_only_loss: Literal["auto", True, False]
    assistant_only_loss: bool
    loss_type: Literal["nll", "dft"]
    torch_dtype: Literal["float32", "bfloat16", "float16"]
    mixed_precision: Literal["no", "bf16", "fp16"]
    fp8_recipe: Literal["none", "tensorwise", "rowwise", "rowwise_with_gw_hp"]
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    gradient_checkpointing_use_reentrant: bool
    gradient_checkpointing_every_n_layers: int
    gradient_checkpointing_selective: bool
    optim: optimizers.Name
    attn_implementation: str
    packing: bool
    padding_free: bool
    max_steps: int
    num_train_epochs: int
    stop_after_seconds: float
    min_steps: int
    target_ci_percent: float
    distributed_backend: Literal["None", "DDP", "FSDP", "FSDP2", "DeepSpeed"]
    deepspeed_stage: int
    deepspeed_offload: Literal["none", "optimizer", "optimizer_and_parameters"]
    fsdp_sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"]
    fsdp_state_dict_type: Literal["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"]
    fsdp_use_orig_params: bool
    fsdp_transformer_layer_cls_to_wrap: str
    tensor_parallel_size: int
    context_parallel_size: int
    fsdp_cpu_offload: bool
    enable_roce: bool
    seed: int
    r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: str
    target_parameters: str
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"]
    use_dora: bool
    use_rslora: bool
    quantisation: Literal["nf4", "fp4", "int8"]
    double_quantisation: bool
    num_virtual_tokens: int
    use_liger_kernel: bool
    torch_compile: bool
    torch_compile_backend: Literal["inductor", "aot_eager", "eager", "cudagraphs"]
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    activation_offloading: bool
    packing_strategy: Literal["bfd", "wrapped"]
    fms_hf_tuning_version: str
    fast_moe: int
    fast_kernels: bool
    multipack: bool

    @property
    def processes(self) -> int:
        """Training processes over all nodes: one per GPU, or one per node without GPUs."""
        return self.number_gpus or self.number_nodes

    @property
    def sharers(self) -> int:
        """Processes that share each sample, with tensor and context parallelism."""
        return self.tensor_parallel_size * self.context_parallel_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The task of one trainer process. The defaults describe a single process.

    Attributes:
        id: unique name of the measurement.
        workload: what to train.
        task: ``benchmark`` and ``stability`` train, ``memory_estimate`` traces.
        architecture: the model's Hugging Face configuration; None: read it from ``source``.
        source: directory or hub id of the model; None for a model without published weights.
        run_dir: directory for files of this measurement, removed afterwards; the host replaces the empty string.
        cache_dir: directory for files that later measurements reuse; the host replaces the empty string.
        rank: rank of this process among all processes of the measurement.
        world_size: number of processes of the measurement.
        local_rank: rank of this process on its node.
        local_world_size: number of processes on its node.
        master_addr: address of the node of rank 0.
        master_port: port of the rendezvous at ``master_addr``.
        threads: CPU threads of this process; 0 leaves PyTorch's default.
        trust_remote_code: whether to run Python code that comes with a model.
        fresh_trainers: whether trainers are started for this job alone and ended after it.
        capacity_bytes: usable memory of the workload's device when it trains alone; an estimate searches the largest batch that fits
            it. None: no search.
        capacities: usable memory, bytes, of further device types that an estimate covers, by name; each that of a device that trains alone.
        workspaces: bytes of cuBLAS's workspaces on the workload's device and on each of ``capacities``, by name.
        alternatives: groups of changes to the workload that an estimate tries if it does not fit, until something of a group fits.
        counts: the changes to one GPU and to several under FSDP, for the fewest GPUs; empty if these are not wanted.
    """

    id: str
    workload: JobWorkload
    task: Task = "benchmark"
    architecture: JsonObject | None = None
    source: str | None = None
    run_dir: str = ""
    cache_dir: str = ""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    threads: int = 0
    trust_remote_code: bool = False
    fresh_trainers: bool = False
    capacity_bytes: int | None = None
    capacities: dict[str, int] = dataclasses.field(default_factory=dict)
    workspaces: dict[str, int] = dataclasses.field(default_factory=dict)
    alternatives: list[list[JsonObject]] = dataclasses.field(default_factory=list)
    counts: list[JsonObject] = dataclasses.field(default_factory=list)

    def to_line(self) -> str:
        """Return the job as a line of JSON, without the line break."""
        return json.dumps({"job": dataclasses.asdict(self)})

    @classmethod
    def from_line(cls, line: str) -> Job:
        """Parse a line that ``to_line`` returned.

        Raises:
            ValueError: the line is not JSON.
            KeyError: it holds no job.
            TypeError: a field of the job is missing or unknown.
        """
        values = json.loads(line)["job"]
        return cls(**{**values, "workload": JobWorkload(**values["workload"])})


# -- from the trainer ------------------------------------------------------------------------------------------


class _MemoryInUse(TypedDict):
    rss_bytes: int


class MemoryInUse(_MemoryInUse, total=False):
    """Memory of a trainer between measurements; ``allocated_bytes`` (PyTorch's CUDA allocator) only with CUDA."""

    allocated_bytes: int


class Ready(MemoryInUse):
    """The stack is imported. The memory in use is the baseline for the memory after each measurement."""

    event: Literal["ready"]
    versions: dict[str, str]
    pid: int
    startup_s: float


class Idle(MemoryInUse):
    """The measurement is over and its memory has been released."""

    event: Literal["idle"]


class _Progress(TypedDict):
    event: Literal["progress"]
    state: str


class Progress(_Progress, total=False):
    """The progress of a measurement: its state, and during training the step and the most steps (``of``)."""

    step: int
    of: int
    tokens_per_second: float


class _FailureMessage(TypedDict):
    event: Literal["failure"]
    kind: Literal["import", "refused", "bad_input", "exception"]
    type: str
    text: str


class FailureMessage(_FailureMessage, total=False):
    """A measurement without a record: class name and text of the exception.

    ``missing`` is a module that cannot be imported; ``doing`` is what the measurement did when the exception was raised; ``quotes``
    tells that the text of an error with a known cause contains that of a library's exception.
    """

    missing: str | None
    doing: str
    quotes: bool


def bounded(text: str) -> str:
    """Return the text of an exception; of one above ``LONGEST_QUOTED`` characters the middle is left out, between words."""
    if len(text) <= LONGEST_QUOTED:
        return text
    half = LONGEST_QUOTED // 2
    begin, end = text[:half], text[-half:]
    # a word that is cut could be a part of a secret
    begin, end = begin.rpartition(" ")[0] or begin, end.partition(" ")[2] or end
    return f"{begin} [{len(text) - len(begin) - len(end):,} characters left out] {end}"


class _Timed(TypedDict):
    train_begin_s: float
    step_end_s: list[float]
    warmup_steps: int
    phases: dict[str, float]


class ModelDescription(TypedDict):
    """The model of a record: numbers of parameters, configuration, and settings as read back from what ran."""

    model_parameters: int
    trainable_parameters: int
    architecture: JsonObject
    facts: JsonObject


class _Result(_Timed, ModelDescription):
    event: Literal["record"]
    rank: int
    world_size: int
    versions: dict[str, str]


class _ClockRecord(_Timed):
    samples: list[int]
    token_slots: list[int]
    real_tokens: list[int]
    trained_tokens: list[int]
    squared_lengths: list[int]
    losses: list[float | None]
    steady: bool
    stopped_by: StopReason


class ClockRecord(_ClockRecord, total=False):
    """The part of a ``Record`` that the trainer's clock measures. Unknown peaks are absent."""

    rss_peak_bytes: int
    torch_peak_allocated_bytes: int
    torch_peak_reserved_bytes: int


class Record(_Result, ClockRecord):
    """The measurement of one rank. Lists have one value per step of this rank; index 0 is the first step.

    - ``rank``, ``world_size``: rank of this process, and number of processes.
    - ``train_begin_s``: ``time.perf_counter()`` when training began; the processes of a node share this clock.
    - ``step_end_s``: the same clock at the end of each optimizer step.
    - ``samples``, ``token_slots``, ``real_tokens``, ``trained_tokens``: counts of each step.
    - ``squared_lengths``: sums of the squared lengths of sequences: of documents if packed, of the slots if padded.
    - ``losses``: sums over the trained tokens; None where not finite.
    - ``warmup_steps``: leading steps that are not measured: at least 3, fewer only if the run ended before.
    - ``stopped_by``: ``confidence``, ``max_steps``, ``stop_after_seconds`` or ``data``.
    - ``steady``: whether the rate had converged.
    - ``phases``: seconds of ``model_load_s``, ``data_s``, ``setup_s``, ``train_s`` and, for all of them, ``measurement_s``.
    - ``torch_peak_allocated_bytes``, ``torch_peak_reserved_bytes``: of the measured phase; absent without an accelerator.
    - ``rss_peak_bytes``: peak resident set of this process in the measured phase.
    - ``model_parameters``, ``trainable_parameters``: counts.
    - ``architecture``: the model's configuration (``config.to_dict()``).
    - ``facts``: settings read back from what ran, such as ``device``, ``dtype``, ``attn_implementation`` and ``wrapped_by``.
    - ``versions``: of torch and the training libraries.
    """


class DeviceEstimate(TypedDict):
    """The memory that a workload needs on one device type of ``Job.capacities``.

    ``parts_bytes`` are the bytes of one device by kind of memory, and those ``unused`` between the allocator's blocks. Batch sizes are sums
    over ``number_gpus`` devices; the largest is 0 if the workload does not fit.
    """

    gpu_model: str
    number_gpus: int
    batch_size: int
    fits: bool
    parts_bytes: dict[str, int]
    largest_batch_size: int


class Alternative(TypedDict):
    """A change of ``Job.alternatives``, what a device needs with it, and whether that fits."""

    change: JsonObject
    needed_bytes: int
    fits: bool


class OtherEstimates(TypedDict, total=False):
    """Estimates of other workloads than that of the job.

    ``alternatives`` is there if the workload does not fit. ``minimum_gpus`` is there if the job has ``counts``; None if it cannot be
    estimated.
    """

    alternatives: list[Alternative]
    minimum_gpus: int | None


class _MemoryEstimate(_Timed, ModelDescription):
    peaks_bytes: dict[str, dict[str, int]]
    reserved_bytes: dict[str, int] | None
    largest_batch_size: int | None
    traced_batches: list[int]


class MemoryEstimate(_MemoryEstimate, OtherEstimates, total=False):
    """The result of a memory estimate: bytes by phase and kind of memory; batch sizes are sums over all devices.

    ``devices`` is there if the job has ``capacities``.
    """

    devices: list[DeviceEstimate]


class EstimateRecord(_Result, MemoryEstimate):
    """A memory estimate as the message of its only rank."""


Message = Union[Ready, Progress, Record, EstimateRecord, FailureMessage, Idle]  # noqa: UP007 - evaluated by Python 3.10
ProgressCallback = Callable[[Progress], None]


def progress(state: str) -> Progress:
    """Return a progress message with only a state."""
    return {"event": "progress", "state": state}


def describe(message: Progress) -> str:
    """Return a progress message as a short text for the console."""
    text = message["state"]
    if message.get("step"):
        text += f", step {message['step']} of at most {message['of']}"
    if message.get("tokens_per_second"):
        text += f", {message['tokens_per_second']:.0f} tok/s"
    return text
