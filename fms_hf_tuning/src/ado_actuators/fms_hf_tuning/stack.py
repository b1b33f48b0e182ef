"""Trains with fms-hf-tuning. Runs in the trainer process; imports the library, and of the core only ``trainer`` and ``protocol``.

``tuning.sft_trainer.train`` processes the data, applies acceleration plugins, creates TRL's trainer and trains. It also loads the
model, by path. This module replaces its ``AutoModelForCausalLM`` with an object whose ``from_pretrained`` returns the model that
``core.trainer.model`` has built. Random weights therefore need not be written to disk, and both actuators train exactly the same
model. Plugins that read the weights themselves (quantisation, ScatterMoE) get a directory, which is written once per model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from . import traced
from .core.protocol.messages import Job, JobWorkload

# memory estimates of GPTQ-LoRA are possible, see ``traced``
TRACES_GPTQ = True
PACKAGES = ("fms-hf-tuning", "trl", "fms-acceleration", "bitsandbytes", "deepspeed", "flash-attn")


def load() -> None:
    """See ``core.trainer.stack.Stack.load``."""
    import datasets
    import tuning.sft_trainer  # noqa: F401

    datasets.disable_progress_bars()


def train(job: Job, clock: Any) -> dict[str, Any]:
    """See ``core.trainer.stack.Stack.train``."""
    from .core.trainer import adapters, deepspeed, fsdp, quantise, recurrence, router_load
    from .core.trainer.errors import BadInput

    workload = job.workload
    _check(job)
    directory = Path(job.run_dir) / f"rank{job.rank}"
    images = bool(workload.dataset_image_field)
    prepared = (_prepare_images if images else _prepare_text)(job, clock, directory)
    # ``serve`` resets them after the measurement
    os.environ.update(fsdp.variables(workload))
    phases = _Phases(clock, workload)
    provided = _model_provided(prepared.model, job, images=images)
    patched = deepspeed.forgotten(workload)
    with phases, provided, _private_cache(directory), patched, adapters.explained(workload):
        trainer = _train(job, prepared, directory, [phases.trainer_callback(), clock.callback])
    notes = [*prepared.notes, *recurrence.notes(trainer.model)]
    facts = {**_facts(trainer), "model_parameters": prepared.model_parameters, "notes": notes}
    facts |= recurrence.facts(trainer.model) | deepspeed.facts(trainer)
    if workload.method in ("lora", "qlora", "gptq_lora") and (
        adapted := adapters.adapted(trainer.model, text_only=not images)
    ):
        facts["adapters"] = adapted
    if workload.method == "qlora":
        facts |= quantise.facts(trainer.model)
    if message := fsdp.mismatch(workload, job.world_size, facts["wrapped_by"]):
        raise BadInput(message)
    if not fsdp.is_whole(facts["wrapped_by"]):
        # counted before sharding, after which each rank has only a part
        facts["trainable_parameters"] = phases.trainable
    # with fast_moe a rank has only a part of the experts
    if prepared.sample is not None and not workload.fast_moe:
        facts |= router_load.facts(trainer.model, facts["wrapped_by"], prepared.sample)
    return facts


def _check(job: Job) -> None:
    import torch

    from .core.trainer.errors import BadInput, Refused
    from .limits import refusal, refusal_of_trace, versions

    release, wanted = versions().get("fms-hf-tuning"), job.workload.fms_hf_tuning_version
    if release != wanted:
        raise BadInput(
            f"fms_hf_tuning_version is {wanted}, but the training environment has {release}; use environment managed."
        )
    if traced.is_traced(job):
        message = refusal_of_trace(job.workload, job.architecture)
    else:
        message = refusal(job.workload, cuda=torch.cuda.is_available(), architecture=job.architecture)
    if message:
        raise Refused(message)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Model and data, ready for the library.

    Attributes:
        model: the model; None if an acceleration plugin loads it.
        source: the path from which the library loads the model's configuration and, without ``model``, its weights.
        model_parameters: number of parameters.
        sample: token ids of the first sample; None for a data set with images.
        epochs: passes over the data.
        notes: remarks for the user.
        targets: the modules that an adapter is to adapt; None: without such an adapter, or for images.
    """

    model: Any
    source: Path | str
    model_parameters: int
    sample: list[int] | None = None
    epochs: int = 1
    notes: list[str] = dataclasses.field(default_factory=list)
    targets: list[str] | None = None


def _prepare_text(job: Job, clock: Any, directory: Path) -> _Prepared:
    """Build a language model, and write its data as token ids and labels."""
    from .core.trainer import adapters, data, model
    from .core.trainer.errors import Refused
    from .limits import without_images

    targets: list[str] | None = None
    notes: list[str] = []
    with clock.phase("model_load"):
        # a trace has no weights that a plugin could read and quantise
        network, facts = model.build(job, quantised=traced.is_traced(job) and job.workload.method == "qlora")
        # of a directory or hub id the architecture was not known before
        if message := without_images(job.workload, network.config.to_dict()):
            raise Refused(message)
        if job.workload.method in ("lora", "qlora", "gptq_lora"):
            found, notes = adapters.resolved(network, job.workload, as_list=True)
            adapters.check_parameters(network, job.workload)
            targets = [found] if isinstance(found, str) else found
        if traced.is_traced(job) and job.workload.method == "gptq_lora":
            network = traced.quantised_with_gptq(network, job.workload)
        # acceleration plugins read the model's class, which transformers stores only when it saves a model
        network.config.architectures = network.config.architectures or [type(network).__name__]
        tokenizer = model.tokenizer(job, network)
        source = _source(job, network, directory)
    with clock.phase("data"):
        samples = data.build(job, tokenizer, network.config)
        samples.dataset.to_parquet(str(directory / "data.parquet"))
    # samples for packing are not truncated
    sample = samples.dataset[0]["input_ids"][: job.workload.model_max_length]
    network = None if _reads_weights(job) else network
    return _Prepared(
        network, source, facts["model_parameters"], sample, samples.epochs, [*samples.notes, *notes], targets
    )


def _prepare_images(job: Job, clock: Any, directory: Path) -> _Prepared:
    """Build a vision model, and write its data as images and text, from which the library makes token ids and pixel values."""
    from .core.trainer import model, vision

    with clock.phase("model_load"):
        network, facts = model.build(job)
        processor = vision.processor(job, network.config)
        for part in (network.config, processor):
            part.save_pretrained(directory / "model")
    with clock.phase("data"):
        epochs = vision.write(job, processor, network.config, directory / "data.parquet")
    return _Prepared(network, directory / "model", facts["model_parameters"], epochs=epochs)


def _train(job: Job, prepared: _Prepared, directory: Path, callbacks: list[Any]) -> Any:
    from tuning.sft_trainer import train as library_train

    from . import arguments

    workload = traced.workload(job.workload) if traced.is_traced(job) else job.workload
    images = bool(workload.dataset_image_field)
    trainer, _, _ = library_train(
        arguments.model(workload, prepared.source, directory / ("model" if images else "tokenizer")),
        arguments.data(directory, images=images),
        arguments.training(job, directory, prepared.epochs),
        peft_config=arguments.adapter(workload, prepared.targets),
        additional_callbacks=callbacks,
        **arguments.acceleration(workload),
    )
    return trainer


def _reads_weights(job: Job) -> bool:
    """Return whether an acceleration plugin loads the weights itself, from a directory."""
    workload = job.workload
    return not traced.is_traced(job) and (workload.method in ("qlora", "gptq_lora") or bool(workload.fast_moe))


def _source(job: Job, network: Any, directory: Path) -> Path | str:
    """Save the tokenizer, and what the library loads as the model: its configuration, and its weights if a plugin reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = network.get_input_embeddings().weight.shape[0]
    padding_tokenizer(vocabulary, job.workload.model_max_length).save_pretrained(directory / "tokenizer")
    if not _reads_weights(job):
        network.config.save_pretrained(directory / "model")
        return directory / "model"
    if job.workload.weights == "pretrained":
        return str(job.source)
    return _saved(network, Path(job.cache_dir), job.workload.seed)


def _saved(network: Any, cache_dir: Path, seed: int) -> Path:
    """Return a directory with the weights of ``network``, which is written once per configuration, data type and seed."""
    key = json.dumps([network.config.to_dict(), str(network.dtype), seed], sort_keys=True, default=str)
    directory = cache_dir / hashlib.sha256(key.encode()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for incomplete in cache_dir.glob(f"{directory.name}.writing-*"):
                shutil.rmtree(incomplete, ignore_errors=True)
            writing = Path(tempfile.mkdtemp(prefix=f"{directory.name}.writing-", dir=cache_dir))
            network.save_pretrained(writing)
            writing.rename(directory)
    return directory


def padding_tokenizer(vocabulary: int, max_length: int) -> Any:
    """Return a tokenizer with exactly ``vocabulary`` tokens. The data are token ids already, so the library uses it only for padding.

    The library resizes a model's embeddings to the length of the tokenizer, so any other length would change the model.
    """
    import transformers
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(vocabulary)}, unk_token="t0"))
    first, second = "t0", f"t{min(1, vocabulary - 1)}"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=first,
        eos_token=second,
        bos_token=second,
        unk_token=first,
        model_max_length=max_length,
    )


class _ProvidedModel:
    """Replaces ``AutoModelForCausalLM`` or ``AutoModelForVision2Seq`` in the library, and returns a model that exists already."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def from_pretrained(
        self, path: str, *, torch_dtype: Any, attn_implementation: str | None = None, **unused: Any
    ) -> Any:
        """Return the model, after checking that its data type and attention are those that the library requests."""
        from .core.trainer.errors import BadInput

        dtype, attention = self._network.dtype, self._network.config._attn_implementation
        if torch_dtype != dtype or (attn_implementation or attention) != attention:
            raise BadInput(
                f"fms-hf-tuning requested a model in {torch_dtype} with attention {attn_implementation}, "
                f"but it was built in {dtype} with {attention}."
            )
        return self._network


class _NoVisionModel:
    @staticmethod
    def from_pretrained(path: str, **unused: Any) -> Any:
        """Raise the error of transformers for a language model, so that the library loads a language model instead."""
        raise ValueError("not a vision model")


class _NoLanguageModel:
    @staticmethod
    def from_pretrained(path: str, **unused: Any) -> Any:
        """End the measurement: the library requests a language model only after loading the vision model has failed."""
        from .core.trainer.errors import BadInput

        raise BadInput("fms-hf-tuning could not load the model and its processor as a vision model; see the log.")


@contextlib.contextmanager
def _model_provided(network: Any, job: Job, *, images: bool) -> Iterator[None]:
    """Replace the library's model loaders, so that it gets ``network`` as language or vision model; None leaves them unchanged."""
    from tuning import sft_trainer

    if network is None:
        yield
        return
    provided = _ProvidedModel(network)
    language, vision = (_NoLanguageModel, provided) if images else (provided, _NoVisionModel)
    with (
        mock.patch.object(sft_trainer, "AutoModelForCausalLM", language),
        mock.patch.object(sft_trainer, "AutoModelForVision2Seq", vision),
        traced.plugins(job.workload, provided) if traced.is_traced(job) else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def _private_cache(directory: Path) -> Iterator[None]:
    """Move the cache of the library datasets into a directory of this measurement."""
    import datasets

    original = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = directory / "datasets"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = original


class _Phases(contextlib.ExitStack):
    """Times one call of the library as two phases, set-up and training; counts the trainable parameters before the training.

    Attributes:
        trainable: number of trainable parameters, before they are sharded.
    """

    def __init__(self, clock: Any, workload: JobWorkload) -> None:
        super().__init__()
        self._clock = clock
        self._workload = workload
        self.trainable = 0

    def __enter__(self) -> _Phases:
        self.enter_context(self._clock.phase("setup"))
        return self

    def trainer_callback(self) -> Any:
        """Return the callback for the trainer that ends the set-up. It must come before the clock's."""
        import transformers

        from .core.trainer import deepspeed

        phases = self

        class TrainingBegins(transformers.TrainerCallback):
            def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                phases.trainable = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)
                deepspeed.partition(kwargs["model"], args, phases._workload)

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                phases.close()
                phases.enter_context(phases._clock.phase("train"))

        return TrainingBegins()


def _facts(trainer: Any) -> dict[str, Any]:
    from .core.trainer import optimizers
    from .core.trainer.fsdp import wrapper

    return {
        "attn_implementation": getattr(trainer.model.config, "_attn_implementation", None),
        "wrapped_by": wrapper(trainer),
        "optimizer": optimizers.used(trainer),
        "trainer": type(trainer).__name__,
    }
