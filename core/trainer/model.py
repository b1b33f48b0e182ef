"""The model of a job, built with random weights or loaded, and its tokenizer. Trainer room: torch, transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from ..protocol import supported
from ..protocol.messages import Job
from . import byte_tokenizer, initialise, quantise
from .errors import BadInput, Refused
from .fsdp import is_whole

# transformers renamed the argument in 4.56
_DTYPE = "dtype" if tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 56) else "torch_dtype"


def build(job: Job, *, quantised: bool = False) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Build or load the model of a job.

    Random weights come from the model's own initialiser and the workload's seed, so they are equal on all ranks; they
    are drawn on the GPU of this rank unless FSDP is to shard the model or it is to be quantised.

    Args:
        job: what to do.
        quantised: whether linear layers get 4-bit weights (NF4).

    Returns:
        The model, and facts about it: ``model_parameters`` (shared ones once, quantised ones each), ``dtype``,
        ``attn_implementation``.

    Raises:
        Refused: the architecture cannot do what the workload asks.
        BadInput: the model cannot be read, or a package it needs is missing.
    """
    workload = job.workload
    attention = workload.attn_implementation
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise BadInput(
            "attn_implementation flash_attention_2 needs the package flash-attn in the training environment."
        )
    dtype = getattr(torch, workload.torch_dtype)
    arguments = {_DTYPE: dtype}
    if attention != "auto":
        arguments["attn_implementation"] = attention
    with _explained(job):
        config = configuration(job)
        if message := supported.image_mismatch(workload, config.to_dict()):
            raise Refused(message)
        if any(name.endswith("ForMaskedLM") for name in getattr(config, "architectures", None) or ()):
            raise Refused(f"model {workload.model_name[-80:]} predicts masked tokens: it is no causal language model.")
        if workload.weights == "pretrained":
            if quantised:
                arguments |= {"quantization_config": quantise.configuration(dtype), "device_map": {"": _target(job)}}
            model = _load(job, arguments)
        else:
            with contextlib.nullcontext() if quantised or _is_sharded(job) else _target(job):
                model = _random(job, arguments)
    model.config.use_cache = False
    # transformers counts the two numbers in each byte of a model it has quantised
    parameters = model.num_parameters()
    if quantised and workload.weights == "random":
        model = quantise.in_place(model, dtype, _target(job))
    return model, {
        "model_parameters": parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
    }


def configuration(job: Job) -> transformers.PretrainedConfig:
    """Return the configuration of a job's model; only a hub id without architecture needs the network or its cache."""
    if job.architecture is not None:
        return transformers.AutoConfig.for_model(**job.architecture)
    return transformers.AutoConfig.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)


def _random(job: Job, arguments: dict[str, Any]) -> transformers.PreTrainedModel:
    workload = job.workload
    config = configuration(job)
    language = config.get_text_config()
    positions = getattr(language, "max_position_embeddings", None)
    if positions is not None and positions < workload.model_max_length:
        # random positions are as good as published ones: a longer table costs what the longer model would
        language.max_position_embeddings = workload.model_max_length
    remote = bool(job.trust_remote_code) and bool(getattr(config, "auto_map", None))
    with initialise.quickly(workload.seed, own_initialiser=not remote):
        return _loader(job).from_config(config, trust_remote_code=job.trust_remote_code, **arguments)


def _load(job: Job, arguments: dict[str, Any]) -> transformers.PreTrainedModel:
    return _loader(job).from_pretrained(job.source, trust_remote_code=job.trust_remote_code, **arguments)


def _loader(job: Job) -> Any:
    images = job.workload.dataset_image_field
    return transformers.AutoModelForImageTextToText if images else transformers.AutoModelForCausalLM


def _target(job: Job) -> torch.device:
    if not job.workload.number_gpus:
        return torch.device("cpu")
    if torch.cuda.device_count() <= job.local_rank:
        raise BadInput(
            f"torch {torch.__version__} of the training environment sees {torch.cuda.device_count()} CUDA devices; "
            "install a build for this node's GPUs, or name another environment."
        )
    return torch.device("cuda", job.local_rank)


def _is_sharded(job: Job) -> bool:
    return job.workload.distributed_backend in ("FSDP", "FSDP2") and job.world_size > 1


@contextlib.contextmanager
def _explained(job: Job) -> Iterator[None]:
    """Turn what transformers raises about a model into one message; running out of memory passes as it is."""
    name = job.workload.model_name
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        text = re.sub(r"^Class validation error for validator \S+ (\w+: )?", "", " ".join(str(error).split()))
        if "trust_remote_code" in text:
            raise BadInput(
                f"model {name} needs code of its own: allow it with trust_remote_code in the configuration."
            ) from error
        if "does not support" in text and job.workload.attn_implementation != "auto":
            raise Refused(
                f"model {name} does not support attn_implementation {job.workload.attn_implementation}."
            ) from error
        kind = getattr(error, "name", None) if isinstance(error, ImportError) else None
        if kind:
            raise BadInput(f"model {name} needs the package {kind} in the training environment.") from error
        raise BadInput(_message(f"model {name} cannot be read", job.source, text)) from error


def _message(what: str, source: str | None, text: str) -> str:
    if source and not Path(source).is_dir() and ("connect" in text or "offline" in text.lower() or "cached" in text):
        return f"{what}: {source} is neither in the local cache nor reachable; give a model directory."
    if source:
        # the model is named already, and a long directory would leave no room for what is wrong with the file
        text = text.replace(f"{source.rstrip('/')}/", "")
    return f"{what}: {textwrap.shorten(text.split('. ')[0].rstrip('.'), 130, placeholder=' …')}."


def tokenizer(job: Job, model: transformers.PreTrainedModel) -> transformers.PreTrainedTokenizerBase:
    """Return the tokenizer for a job's data.

    Synthetic data is tokens already, so a byte tokenizer stands in; so it does for a model of our own, which has none.

    Raises:
        BadInput: text is to be tokenized and the model's tokenizer cannot be read.
    """
    if job.workload.dataset_id.startswith("synthetic-") or job.source is None:
        return byte_tokenizer.build(job.workload.model_max_length)
    with _explained_tokenizer(job):
        loaded = transformers.AutoTokenizer.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)
    if loaded.eos_token is None:
        raise BadInput(f"the tokenizer of model {job.workload.model_name} has no end-of-sequence token.")
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(loaded) > vocabulary:
        raise BadInput(
            f"the tokenizer of model {job.workload.model_name} has {len(loaded)} tokens, the model only {vocabulary}."
        )
    return loaded


@contextlib.contextmanager
def _explained_tokenizer(job: Job) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a tokenizer's files make the libraries raise
        name = job.workload.model_name
        raise BadInput(
            _message(f"the tokenizer of model {name} cannot be read", job.source, " ".join(str(error).split()))
        ) from error


def router_facts(model: torch.nn.Module, wrapped_by: str, tokens: list[int]) -> dict[str, float]:
    """Return the fact ``router_load_max_over_mean`` of a trained model; nothing for one without experts or one that is sharded.

    Every rank asks its own copy, without its wrapper, so no rank waits for another.

    Args:
        model: what was trained, without the wrapper.
        wrapped_by: the wrapper, as ``fsdp.wrapper`` names it.
        tokens: a sample of the data.
    """
    if not is_whole(wrapped_by):
        return {}
    ratio = router_load(model, torch.tensor([tokens], device=next(model.parameters()).device))
    return {} if ratio is None else {"router_load_max_over_mean": ratio}


def router_load(model: torch.nn.Module, input_ids: torch.Tensor) -> float | None:
    """Return how unevenly experts are loaded: largest over mean load of an expert, averaged over layers.

    Makes one forward pass without gradients. 1 is perfect balance, number of experts ÷ experts per token the worst.

    Args:
        model: a causal language model, wrapped by adapters or not.
        input_ids: token ids, shape (rows, length), on the model's device.

    Returns:
        The ratio, or None for a model without experts or one that does not give its router logits.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not chosen or not experts:
        return None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = getattr(
                model(input_ids=input_ids, output_router_logits=True, use_cache=False), "router_logits", None
            )
    finally:
        model.train(training)
    layers = [layer for layer in logits or () if layer is not None]
    if not layers:
        return None
    ratios = []
    for layer in layers:
        picked = layer.reshape(-1, layer.shape[-1]).topk(chosen, dim=-1).indices
        load = torch.bincount(picked.flatten(), minlength=experts).double()
        ratios.append(float(load.max() / load.mean()))
    return sum(ratios) / len(ratios)
