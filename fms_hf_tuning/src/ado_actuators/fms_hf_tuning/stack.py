"""How fms-hf-tuning is driven, which this module and ``arguments`` alone know. Runs in the trainer process, imports its room only.

``tuning.sft_trainer.train`` does everything after the model is built: data processing, acceleration plugins, TRL's trainer, training.
It loads models by path. So that ``weights: random`` need not write gigabytes, and both actuators train exactly the same model,
it is handed the model the core has built, in the place where it would have called ``AutoModelForCausalLM.from_pretrained`` with the
same arguments. Plugins that read the weights themselves (quantisation, ScatterMoE) get a directory, written once per model.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .core.protocol.messages import Job, JobWorkload

PACKAGES = ("fms-hf-tuning", "trl", "fms-acceleration", "bitsandbytes", "flash-attn")


def load() -> None:
    """Import the stack, which takes seconds and happens once in a process.

    Raises:
        ImportError: a package of the stack is not installed.
    """
    import datasets
    import tuning.sft_trainer  # noqa: F401

    datasets.disable_progress_bars()


def train(job: Job, clock: Any) -> dict[str, Any]:
    """Train once as ``job`` says, handing ``clock.callback`` to the library; return facts read back from what ran.

    Raises:
        Refused: the workload is impossible in this environment.
        BadInput: the model or the data cannot be used.
    """
    import torch

    from .core.trainer import fsdp, model
    from .core.trainer.errors import BadInput, Refused
    from .limits import refusal, versions

    workload = job.workload
    release = versions().get("fms-hf-tuning")
    if release != workload.fms_hf_tuning_version:
        raise BadInput(
            f"fms_hf_tuning_version {workload.fms_hf_tuning_version} was asked for, but the training environment has "
            f"{release}; use environment managed."
        )
    if message := refusal(workload, cuda=torch.cuda.is_available(), architecture=job.architecture):
        raise Refused(message)
    place = Path(job.run_dir) / f"rank{job.rank}"
    prepare = _images if workload.dataset_image_field else _texts
    network, source, built = prepare(job, clock, place)
    # the trainer forgets them with the measurement
    os.environ.update(fsdp.variables(workload))
    phases = _Phases(clock)
    with phases, _handing(network, images=prepare is _images), _own_caches(place):
        trainer = _train(job, source, place, [phases.edge(), clock.callback])
    facts = {**_facts(trainer), "model_parameters": built["model_parameters"]}
    if message := fsdp.mismatch(workload, job.world_size, facts["wrapped_by"]):
        raise BadInput(message)
    if not fsdp.is_whole(facts["wrapped_by"]):
        # each rank has a part of what was counted before
        facts["trainable_parameters"] = phases.trainable
    # fast MoE keeps a rank's share of the experts only
    if "sample" in built and not workload.fast_moe:
        facts |= model.router_facts(trainer.model, facts["wrapped_by"], built["sample"])
    return facts


def _texts(job: Job, clock: Any, place: Path) -> tuple[Any, Path | str, dict[str, Any]]:
    """Build a language model and its data; return the model, where the library is to find it, facts about it and a sample."""
    from .core.trainer import data, model

    with clock.phase("model_load"):
        network, facts = model.build(job)
        # saving a model notes its class, which acceleration plugins ask for
        network.config.architectures = network.config.architectures or [type(network).__name__]
        tokenizer = model.tokenizer(job, network)
        source = _source(job, network, place)
    with clock.phase("data"):
        samples = data.build(job, tokenizer, network.config)
        samples.dataset.to_parquet(str(place / "data.parquet"))
    # where samples are to be packed they are not cut yet
    facts["sample"] = samples.dataset[0]["input_ids"][: job.workload.model_max_length]
    return None if _reads_weights(job.workload) else network, source, facts


def _images(job: Job, clock: Any, place: Path) -> tuple[Any, Path | str, dict[str, Any]]:
    """Do the same for a vision model; the library makes token ids and pixels itself, with the processor it finds."""
    from .core.trainer import model, vision

    with clock.phase("model_load"):
        network, facts = model.build(job)
        processor = vision.processor(job, network.config)
        for part in (network.config, processor):
            part.save_pretrained(place / "model")
    with clock.phase("data"):
        vision.write(job, processor, network.config, place / "data.parquet")
    return network, place / "model", facts


def _train(job: Job, source: Path | str, place: Path, callbacks: list[Any]) -> Any:
    from tuning.sft_trainer import train as library_train

    from . import arguments

    workload = job.workload
    images = bool(workload.dataset_image_field)
    trainer, _, _ = library_train(
        arguments.model(workload, source, place / ("model" if images else "tokenizer")),
        arguments.data(place, images=images),
        arguments.training(job, place),
        peft_config=arguments.adapter(workload),
        additional_callbacks=callbacks,
        **arguments.acceleration(workload),
    )
    return trainer


def _reads_weights(workload: JobWorkload) -> bool:
    """Return whether an acceleration plugin loads the weights itself, from a directory."""
    return workload.method in ("qlora", "gptq_lora") or bool(workload.fast_moe)


def _source(job: Job, network: Any, place: Path) -> Path | str:
    """Prepare what the library is to find as the model's path: the weights where they are read, else the configuration alone."""
    place.mkdir(parents=True, exist_ok=True)
    vocabulary = network.get_input_embeddings().weight.shape[0]
    padding_tokenizer(vocabulary, job.workload.model_max_length).save_pretrained(place / "tokenizer")
    if not _reads_weights(job.workload):
        network.config.save_pretrained(place / "model")
        return place / "model"
    if job.workload.weights == "pretrained":
        return str(job.source)
    return _saved(network, Path(job.cache_dir), job.workload.seed)


def _saved(network: Any, cache_dir: Path, seed: int) -> Path:
    """Return a directory with the weights of ``network``; written once per configuration, type and seed."""
    what = json.dumps([network.config.to_dict(), str(network.dtype), seed], sort_keys=True, default=str)
    place = cache_dir / hashlib.sha256(what.encode()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for left in cache_dir.glob(f"{place.name}.writing-*"):
                shutil.rmtree(left, ignore_errors=True)
            writing = Path(tempfile.mkdtemp(prefix=f"{place.name}.writing-", dir=cache_dir))
            network.save_pretrained(writing)
            writing.rename(place)
    return place


def padding_tokenizer(vocabulary: int, max_length: int) -> Any:
    """Return a tokenizer of exactly ``vocabulary`` tokens: data come as ids, so the library only pads with it.

    It resizes a model's embeddings to the length of its tokenizer, so any other length would change the model.
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


class _Handed:
    """Stands where the library looks for ``AutoModelForCausalLM`` and answers with the model that is built already."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def from_pretrained(
        self, path: str, *, torch_dtype: Any, attn_implementation: str | None = None, **unused: Any
    ) -> Any:
        """Return the model, after checking that it is what the library would have loaded."""
        from .core.trainer.errors import BadInput

        has = (self._network.dtype, self._network.config._attn_implementation)
        if torch_dtype != has[0] or (attn_implementation or has[1]) != has[1]:
            raise BadInput(
                f"fms-hf-tuning asked for a model in {torch_dtype} with attention {attn_implementation}, built was {has}."
            )
        return self._network


class _NoVisionModel:
    @staticmethod
    def from_pretrained(path: str, **unused: Any) -> Any:
        """Answer as transformers does for a language model; the library then takes it for one."""
        raise ValueError("not a vision model")


class _NoLanguageModel:
    @staticmethod
    def from_pretrained(path: str, **unused: Any) -> Any:
        """End the measurement: the library asks for a language model when anything about a vision model failed."""
        from .core.trainer.errors import BadInput

        raise BadInput("fms-hf-tuning could not use the model and its processor as a vision model; the log says why.")


@contextlib.contextmanager
def _handing(network: Any, *, images: bool) -> Iterator[None]:
    """Let the library get ``network`` from the model loader it uses with or without images; None leaves the loaders."""
    from tuning import sft_trainer

    if network is None:
        yield
        return
    kept = sft_trainer.AutoModelForCausalLM, sft_trainer.AutoModelForVision2Seq
    handed = _Handed(network)
    language, vision = (_NoLanguageModel, handed) if images else (handed, _NoVisionModel)
    sft_trainer.AutoModelForCausalLM, sft_trainer.AutoModelForVision2Seq = language, vision
    try:
        yield
    finally:
        sft_trainer.AutoModelForCausalLM, sft_trainer.AutoModelForVision2Seq = kept


@contextlib.contextmanager
def _own_caches(place: Path) -> Iterator[None]:
    """Keep what datasets copies to this measurement."""
    import datasets

    kept = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = place / "datasets"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = kept


class _Phases(contextlib.ExitStack):
    """Times the set-up and the training, which one call of the library does, as two phases; between them counts ``trainable``."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self._clock = clock
        self.trainable = 0

    def __enter__(self) -> _Phases:
        self.enter_context(self._clock.phase("setup"))
        return self

    def edge(self) -> Any:
        """Return the callback that ends the set-up; it comes before the clock's."""
        import transformers

        phases = self

        class TrainingBegins(transformers.TrainerCallback):
            def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                phases.trainable = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                phases.close()
                phases.enter_context(phases._clock.phase("train"))

        return TrainingBegins()


def _facts(trainer: Any) -> dict[str, Any]:
    from .core.trainer.fsdp import wrapper

    return {
        "attn_implementation": getattr(trainer.model.config, "_attn_implementation", None),
        "wrapped_by": wrapper(trainer),
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "trainer": type(trainer).__name__,
    }
