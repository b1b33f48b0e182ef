"""Stacks that allocate as the releases did with which others measured: a plain ``transformers.Trainer`` and that release's loss.

Later releases compute the loss otherwise and use less memory, so a number measured with an older one says nothing about an estimate
for a later one. ``published.py`` uses these stacks; the plugins do not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import published_modules
import torch
import transformers
from torch.utils.checkpoint import checkpoint
from trl.kernels import chunked_logprob

from ado_actuators.sfttrainer import stack as trl_stack
from ado_actuators.sfttrainer.core.protocol.messages import Job
from ado_actuators.sfttrainer.core.trainer import data, model
from ado_actuators.sfttrainer.core.trainer.memory_estimate import chunked_loss, four_bits

# the loss of this model type was not yet the common one in transformers 4.48: it stayed in the type of the logits without autocast
LOSS_IN_TYPE_OF_LOGITS = ("gpt_bigcode",)
# the functions of TRL that a trace replaces, as they are
OPERATIONS = {name: getattr(chunked_logprob, name) for name in chunked_loss.IN_PLACE}


@dataclasses.dataclass(frozen=True)
class WithAccelerate:
    """Another stack with a release of accelerate that is not the installed one.

    Attributes:
        stack: the stack.
        accelerate_version: release of accelerate, which decides how FSDP divides a model.
    """

    stack: Any
    accelerate_version: str

    def train(self, job: Job, clock: Any) -> dict[str, Any]:
        """Train as the other stack does."""
        made: dict[str, Any] = self.stack.train(job, clock)
        return made


@dataclasses.dataclass(frozen=True)
class LossOfTorch:
    """TRL with the loss in chunks as TRL 1.4 computed it: operations of torch on each tile, before the Triton kernels of later releases."""

    def train(self, job: Job, clock: Any) -> dict[str, Any]:
        """Train as the plugin does, with that loss."""
        replaced = {name: getattr(chunked_logprob, name) for name in OPERATIONS}
        for name, operation in OPERATIONS.items():
            setattr(chunked_logprob, name, operation)
        try:
            return trl_stack.train(job, clock)
        finally:
            for name, operation in replaced.items():
                setattr(chunked_logprob, name, operation)


@dataclasses.dataclass(frozen=True)
class PlainTrainer:
    """A stack for ``Estimator``: one class for both generations of transformers.

    Attributes:
        older: as transformers 4.48: the loss copies its logits, each expert has linear layers of its own, and a checkpoint is around the
            layer and its FSDP wrapper.
        prepares: whether norms are float32.
        fused: whether norms and loss are fused kernels.
        gptq_group: inputs that share a scale in a checkpoint of GPTQ; None: all of a layer.
    """

    older: bool
    prepares: bool = False
    fused: bool = False
    gptq_group: int | None = four_bits.GPTQ_GROUP

    def train(self, job: Job, clock: Any) -> dict[str, Any]:
        """Train once as ``job`` says, with ``clock.callback``."""
        workload = job.workload
        network, _ = model.build(job)
        if self.older:
            published_modules.with_older_experts(network)
        if workload.method in ("qlora", "gptq_lora"):
            kind = "gptq" if workload.method == "gptq_lora" else "nf4"
            computed = getattr(torch, workload.torch_dtype)
            network = four_bits.quantised(network, computed, kind=kind, group=self.gptq_group)
        if self.prepares:
            # what PEFT's preparation makes float32, and TRL does not make bfloat16 again
            for module in [module for module in network.modules() if "Norm" in type(module).__name__]:
                module._apply(lambda one: one.float())
        tokenizer = model.tokenizer(job, network)
        samples = data.build(job, tokenizer, network.config)
        if self.older:
            network.loss_function = _loss_of(network.config.model_type, fused=self.fused)
        if self.fused:
            published_modules.with_fused_norms(network)
        network = _adapted(network, job)
        if self.older and network.config.model_type == "gpt_bigcode":
            published_modules.keep_cache(network)
        if self.older and workload.gradient_checkpointing:
            _checkpoint_around_layers(network, use_reentrant=workload.gradient_checkpointing_use_reentrant)
        trainer = transformers.Trainer(
            model=network,
            args=_arguments(job, checkpointing=workload.gradient_checkpointing and not self.older),
            train_dataset=samples.dataset,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            callbacks=[clock.callback],
        )
        trainer.train()
        return {}


def _loss_of(model_type: str, *, fused: bool) -> Any:
    keep_type = model_type in LOSS_IN_TYPE_OF_LOGITS

    def loss(logits: Any, labels: Any, vocab_size: int, num_items_in_batch: Any = None, **unused: Any) -> Any:
        """Return the loss by way of a contiguous copy of all logits but the last of each sample."""
        numbers = logits if keep_type else logits.float()
        shifted = numbers[..., :-1, :].contiguous().view(-1, vocab_size)
        targets = labels[..., 1:].contiguous().view(-1)
        if fused:
            return published_modules.FusedLoss.apply(shifted)
        if num_items_in_batch is None or keep_type:
            return torch.nn.functional.cross_entropy(shifted, targets)
        return torch.nn.functional.cross_entropy(shifted, targets, reduction="sum") / num_items_in_batch

    return loss


def _adapted(network: Any, job: Job) -> Any:
    quantised = job.workload.method in ("qlora", "gptq_lora")
    workload = dataclasses.replace(job.workload, method="lora") if quantised else job.workload
    adapter, _ = trl_stack._adapter(workload, network)
    if adapter is None:
        return network
    import peft

    if job.workload.gradient_checkpointing:
        network.enable_input_require_grads()
    return peft.get_peft_model(network, adapter)


class _Checkpointed(torch.nn.Module):
    """A layer inside a checkpoint, as models called their layers before transformers 4.53."""

    def __init__(self, layer: torch.nn.Module, *, use_reentrant: bool) -> None:
        super().__init__()
        self.inner = layer
        self._reentrant = use_reentrant

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._reentrant:
            # this form takes no keywords
            return checkpoint(lambda *values: self.inner(*values, **kwargs), *args, use_reentrant=True)
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


def _checkpoint_around_layers(network: Any, *, use_reentrant: bool) -> None:
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    names = set(base._no_split_modules)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in names and not isinstance(parent, _Checkpointed):
                setattr(parent, name, _Checkpointed(child, use_reentrant=use_reentrant))


def _arguments(job: Job, *, checkpointing: bool) -> Any:
    workload = job.workload
    return transformers.TrainingArguments(
        output_dir=job.run_dir,
        per_device_train_batch_size=workload.batch_size // job.world_size,
        gradient_accumulation_steps=workload.gradient_accumulation_steps,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": workload.gradient_checkpointing_use_reentrant},
        bf16=workload.mixed_precision == "bf16",
        optim=workload.optim,
        max_steps=workload.max_steps,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
