"""Trains with TRL's SFTTrainer. Runs in the trainer process; imports TRL, and of the core only ``trainer`` and ``protocol``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from .core.protocol.messages import Job, JobWorkload

PACKAGES = ("trl", "bitsandbytes", "deepspeed", "torchao", "liger-kernel")
# a chat template puts it before the assistant's tokens
_ANSWER_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load() -> None:
    """See ``core.trainer.stack.Stack.load``."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import trl  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401 - TRL imports these only when they are accessed


def train(job: Job, clock: Any) -> dict[str, Any]:
    """See ``core.trainer.stack.Stack.train``."""
    from . import checkpointing
    from .core.trainer import (
        adapters,
        deepspeed,
        float8,
        fsdp,
        modalities,
        model,
        parallel,
        quantise,
        recurrence,
        router_load,
    )
    from .core.trainer.errors import BadInput

    workload, images = job.workload, bool(job.workload.dataset_image_field)
    quantised = workload.method == "qlora"
    if quantised:
        quantise.check_installed()
    with clock.phase("model_load"):
        network, built = model.build(job, quantised=quantised)
        network = parallel.distribute(network, job)
        float8.convert(network, workload)
        processing = _processing(job, network)
    with clock.phase("data"):
        samples = _samples(job, processing, network.config)
    # with these accelerate adds a gloo process group for shards in host memory; ``serve`` resets them after the measurement
    os.environ.update(fsdp.variables(workload))
    with clock.phase("setup"):
        peft_config, notes = _adapter(workload, network)
        with adapters.explained(workload):
            trainer = _trainer(job, network, processing, samples, peft_config, clock.callback)
        # counted before the parameters are sharded
        counts = {
            "model_parameters": built["model_parameters"],
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        }
        deepspeed.partition(trainer.model, trainer.args, workload)
    with deepspeed.forgotten(workload), clock.phase("train"), _explained_loss(network):
        trainer.train()
    notes += [*recurrence.notes(trainer.model), *modalities.notes(trainer.model, images=images)]
    facts = {
        **_facts(trainer),
        **deepspeed.facts(trainer),
        **float8.facts(trainer.model),
        **counts,
        **recurrence.facts(trainer.model),
        "notes": [*samples.notes, *notes],
    }
    if workload.method in ("lora", "qlora"):
        facts["adapters"] = adapters.adapted(trainer.model, text_only=not images)
    if quantised:
        facts |= quantise.facts(trainer.model)
        facts["notes"] += quantise.notes(trainer.model)
    if workload.gradient_checkpointing:
        facts |= checkpointing.facts(trainer.model, workload)
    if message := fsdp.mismatch(workload, job.world_size, facts["wrapped_by"]):
        raise BadInput(message)
    if images:
        return facts | {"image_processor": type(processing.image_processor).__name__}
    # samples for packing are not truncated
    sample = samples.dataset[0]["input_ids"][: workload.model_max_length]
    return facts | router_load.facts(trainer.model, facts["wrapped_by"], sample)


def _processing(job: Job, network: Any) -> Any:
    """Return the tokenizer, or the processor of images and text."""
    from .core.trainer import model, vision

    if job.workload.dataset_image_field:
        return vision.processor(job, network.config)
    tokenizer = model.tokenizer(job, network)
    if job.workload.assistant_only_loss:
        _mark_answers(tokenizer)
    return tokenizer


def _samples(job: Job, processing: Any, config: Any) -> Any:
    """Return the data set as token ids and labels, or as images and messages, of which TRL makes both in each step."""
    from .core.trainer import data, vision

    if job.workload.dataset_image_field:
        return vision.build(job, processing, config)
    return data.build(job, processing, config)


def _mark_answers(tokenizer: Any) -> None:
    """Replace a published chat template by TRL's copy of it with marks at the assistant's tokens, as TRL does for this loss."""
    from trl import chat_template_utils

    template = tokenizer.chat_template
    known = getattr(chat_template_utils, "get_training_chat_template", None)
    if known is None or not template or _ANSWER_MARK.search(str(template)):
        return
    # TRL raises it for a template of which it has no copy; a row then says what the template lacks
    with contextlib.suppress(ValueError):
        tokenizer.chat_template = known(tokenizer) or template


@contextlib.contextmanager
def _explained_loss(network: Any) -> Iterator[None]:
    """Turn exceptions about models that TRL or transformers cannot train into one message, such as Llama 4, without hidden states."""
    import trl

    from .core.trainer.errors import Refused

    kind = network.config.model_type
    try:
        yield
    except ValueError as error:
        if "packed sequences apart" not in str(error):
            raise
        raise Refused(
            f"packing of models of type {kind} needs the package causal-conv1d, which needs a GPU: without it documents would mix."
        ) from error
    except AttributeError as error:
        if not any(name in str(error) for name in ("last_hidden_state", "image_outputs")):
            raise
        raise Refused(
            f"TRL {trl.__version__} cannot compute its loss for models of type {kind}: they return no hidden states."
        ) from error


def _trainer(job: Job, network: Any, processing: Any, samples: Any, peft_config: Any, callback: Any) -> Any:
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=network,
        args=_arguments(job, network.config, samples.epochs),
        train_dataset=samples.dataset,
        processing_class=processing,
        peft_config=peft_config,
        callbacks=[callback],
    )
    for default in list(trainer.callback_handler.callbacks):
        if type(default).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(default)
    return trainer


def _arguments(job: Job, config: Any, epochs: int = 1) -> Any:
    from trl import SFTConfig

    from . import checkpointing
    from .core.trainer import arguments, deepspeed, fsdp, modalities, parallel

    workload = job.workload
    settings = SFTConfig(
        # TRL's defaults differ from those of Trainer and change between releases, so everything that affects time is set explicitly
        **(
            arguments.shared(job, epochs)
            | checkpointing.options(workload, getattr(config, "_attn_implementation", None))
            | deepspeed.options(workload)
            | parallel.options(workload)
        ),
        output_dir=job.run_dir,
        # without packing the samples are cut already, and TRL rejects a length together with padding_free
        max_length=workload.model_max_length if workload.packing else None,
        packing=workload.packing,
        packing_strategy=workload.packing_strategy,
        padding_free=workload.padding_free,
        # without packing the samples are token ids of the right length already, and need no preparation
        dataset_kwargs={"skip_prepare_dataset": not workload.packing},
        use_liger_kernel=workload.use_liger_kernel,
        **_compilation(workload),
        **_newer(workload),
        # without images the parameters of a vision part get no gradient
        ddp_find_unused_parameters=modalities.sees(config) if job.world_size > 1 else None,
        **fsdp.options(workload),
        **_auxiliary_loss(config.get_text_config()),
    )
    return fsdp.complete(settings, workload)


def _compilation(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of torch.compile; a mode or a backend alone would turn it on."""
    if not workload.torch_compile:
        return {"torch_compile": False}
    mode = workload.torch_compile_mode
    return {
        "torch_compile": True,
        "torch_compile_backend": workload.torch_compile_backend,
        "torch_compile_mode": None if mode == "default" else mode,
    }


def _newer(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments that not every release of TRL has, if the workload uses them.

    Raises:
        BadInput: the installed release lacks one.
    """
    import trl

    from .core.trainer.errors import BadInput

    asked: dict[str, Any] = {}
    if workload.loss_type != "nll":
        asked["loss_type"] = workload.loss_type
    if workload.activation_offloading:
        asked["activation_offloading"] = True
    for name, value in asked.items():
        if name not in trl.SFTConfig.__dataclass_fields__:
            raise BadInput(f"{name} {value} does not exist in trl {trl.__version__} of the training environment.")
    return asked


def _auxiliary_loss(config: Any) -> dict[str, Any]:
    """Return the argument that disables the routers' auxiliary loss for models for which transformers cannot compute it; else empty.

    From 1.16 on, TRL enables this loss for every model with a coefficient for it in its configuration. That of Granite 4.0 has a
    coefficient even without experts, but lacks the number of experts, which transformers needs for the loss.
    """
    from trl import SFTConfig

    impossible = hasattr(config, "output_router_logits") and not hasattr(config, "num_experts")
    known = "router_aux_loss_coef" in SFTConfig.__dataclass_fields__
    return {"router_aux_loss_coef": 0.0} if impossible and known else {}


def _adapter(workload: JobWorkload, network: Any) -> tuple[Any, list[str]]:
    """Return the configuration of the adapter that PEFT adds to the model, None for full fine-tuning, and notes for the user."""
    from peft import LoraConfig, PromptTuningConfig

    from .core.trainer import adapters

    if workload.method in ("lora", "qlora"):
        targets, notes = adapters.resolved(network, workload)
        adapters.check_parameters(network, workload)
        config = LoraConfig(
            **adapters.options(workload),
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        return config, notes
    if workload.method == "prompt_tuning":
        return PromptTuningConfig(num_virtual_tokens=workload.num_virtual_tokens, task_type="CAUSAL_LM"), []
    return None, []


def _facts(trainer: Any) -> dict[str, Any]:
    from .core.trainer import optimizers
    from .core.trainer.fsdp import wrapper

    config = trainer.model.config
    return {
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "wrapped_by": wrapper(trainer),
        "optimizer": optimizers.used(trainer),
        "output_layer": _output_layer(trainer.accelerator.device),
    }


def _output_layer(device: Any) -> str:
    """Return which tokens the output layer computes: with Triton, TRL leaves out those without loss."""
    from trl.trainer import utils

    compact = getattr(utils, "_use_triton", None) if hasattr(utils, "add_fused_lm_head") else None
    return "trained tokens" if compact is not None and compact(device) else "all tokens"
