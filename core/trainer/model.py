"""The model of a job, with random or pretrained weights, and its tokenizer. Imports torch and transformers."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from ..protocol import supported
from ..protocol.messages import Job
from ..protocol.releases import release_of
from . import (
    attention,
    byte_tokenizer,
    configuration,
    deepspeed,
    initialise,
    json_files,
    modalities,
    positions,
    quantise,
    tokenizer_json,
    weight_files,
)
from .errors import BadInput, Refused

# transformers renamed the argument in 4.56
_DTYPE = "dtype" if release_of(transformers.__version__) >= (4, 56) else "torch_dtype"

# what a file of weights raises that is damaged or holds more than tensors
_NO_WEIGHTS = (pickle.UnpicklingError, EOFError)
# what a value in config.json raises that no check of transformers finds
_NO_MODEL = (
    *(KeyError, AttributeError, TypeError, AssertionError, IndexError, ZeroDivisionError, NotImplementedError),
    RecursionError,
)


def build(job: Job, *, quantised: bool = False) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """Build or load the model of a job.

    Random weights are drawn by the model's own initialiser with the workload's seed, so that they are equal on all ranks. They are
    drawn on the GPU of this rank, or on the CPU if FSDP will shard the model or it will be quantised.

    Args:
        job: the job.
        quantised: whether linear layers get the weights of few bits that the workload asks for.

    Returns:
        The model, and facts about it: ``model_parameters`` (shared parameters count once, two parameters packed into a byte count as
        two), ``dtype``, ``attn_implementation``.

    Raises:
        Refused: the architecture does not support what the workload asks for.
        BadInput: the model cannot be read, or a package is missing.
    """
    pretrained = job.workload.weights == "pretrained"
    dtype = getattr(torch, job.workload.torch_dtype)
    arguments = {_DTYPE: dtype, **attention.argument(job.workload)}
    with _explained(job):
        config = configuration.read(job)
        if pretrained:
            weight_files.check(job.workload.model_name, Path(job.source or ""), weights=True)
            if quantised:
                arguments["quantization_config"] = quantise.configuration(quantise.scheme(job.workload))
                arguments["device_map"] = {"": _target(job)}
            model = _load(job, config, arguments)
        else:
            with contextlib.nullcontext() if quantised or _is_sharded(job) else _target(job):
                model = _random(job, config, arguments)
    positions.check(model, job.workload)
    attention.check(job.workload, model)
    model.config.use_cache = False
    # of a model that transformers has quantised, this counts both parameters in each byte
    parameters = model.num_parameters()
    if quantised and not pretrained:
        model = quantise.in_place(model, quantise.scheme(job.workload), _target(job))
    return model, {
        "model_parameters": parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
    }


def _random(job: Job, config: transformers.PretrainedConfig, arguments: dict[str, Any]) -> transformers.PreTrainedModel:
    workload = job.workload
    positions.provide(config.get_text_config(), workload)
    remote = bool(job.trust_remote_code) and bool(getattr(config, "auto_map", None))
    with initialise.quickly(workload.seed, own_initialiser=not remote):
        return modalities.loader(config).from_config(config, trust_remote_code=job.trust_remote_code, **arguments)


def _load(job: Job, config: transformers.PretrainedConfig, arguments: dict[str, Any]) -> transformers.PreTrainedModel:
    try:
        model, loading = modalities.loader(config).from_pretrained(
            job.source, config=config, trust_remote_code=job.trust_remote_code, output_loading_info=True, **arguments
        )
    except RuntimeError as error:
        if "mismatch" in str(error) and (message := _other_shape(job, config)):
            raise BadInput(message) from error
        if "corrupted" in str(error) or "PytorchStreamReader" in str(error):
            raise EOFError from error
        raise
    names = {name for name, _ in model.named_parameters()}
    # transformers draws random values for them and only logs a warning
    if missing := sorted(names.intersection(loading["missing_keys"])):
        raise BadInput(
            f"Model {job.workload.model_name[-40:]}: {len(missing)} of {len(names)} tensors are not in the weights, "
            f"such as {missing[0][-60:]}; expected weights of this config.json."
        )
    return model


def _other_shape(job: Job, config: transformers.PretrainedConfig) -> str | None:
    """Return a message about the first tensor of the weights whose shape is not that of the configuration; None if it is not found."""
    with torch.device("meta"):
        model = modalities.loader(config).from_config(config, trust_remote_code=job.trust_remote_code)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for file, name, shape in weight_files.shapes(Path(job.source or "")):
        wanted = expected.get(name, expected.get(f"{model.base_model_prefix}.{name}"))
        if wanted is not None and wanted != shape:
            return (
                f"Model {job.workload.model_name[-40:]}: tensor {name[-60:]} of {file[-40:]} has the shape {list(shape)}, "
                f"but config.json gives {list(wanted)}."
            )
    return None


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
    return deepspeed.partitions_parameters(job.workload) or (
        job.workload.distributed_backend in ("FSDP", "FSDP2") and job.world_size > 1
    )


@contextlib.contextmanager
def _explained(job: Job) -> Iterator[None]:
    """Turn an exception of transformers about a model into one message; out-of-memory errors pass through unchanged."""
    name = job.workload.model_name[-60:]
    try:
        yield
    except _NO_WEIGHTS as error:
        # the text of torch advises to load such a file with code in it
        raise BadInput(
            f"Model {name}: its weights cannot be loaded as tensors ({type(error).__name__}): a damaged file, or one with "
            "other objects; use safetensors."
        ) from error
    except safetensors.SafetensorError as error:
        raise BadInput(
            f"Model {name}: safetensors {safetensors.__version__} does not read {_unread(job)}; download it again",
            error,
        ) from error
    except _NO_MODEL as error:
        if fault := _file_fault(job):
            raise BadInput(f"Model {name}: {fault}.") from error
        if isinstance(error, KeyError) and (key := _key_of(str(error.args[0]), _configuration(job))):
            raise BadInput(
                f"Model {name}: its configuration has {key[-40:]} {str(error.args[0])[:40]!r}, which transformers "
                f"{transformers.__version__} does not know; correct it."
            ) from error
        what = f"Model {name} cannot be built as its {'configuration' if job.source is None else 'config.json'} says"
        raise BadInput(what, error) from error
    except StrictDataclassError as error:
        # the cause names the key and what was expected
        what = f"Model {name}: transformers {transformers.__version__} rejects a value of its config.json"
        raise BadInput(what, error.__cause__ or error) from error
    except (OSError, ValueError, ImportError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise BadInput(
                f"Model {name} needs its own code; allow that with trust_remote_code in the actuator configuration."
            ) from error
        if "does not support" in text and job.workload.attn_implementation != "auto":
            raise Refused(
                f"Model {name} does not support attn_implementation {job.workload.attn_implementation}."
            ) from error
        asked = job.workload.attn_implementation
        if asked not in supported.PLAIN_ATTENTION and ("trying to load from" in text or "flash_attn" in text):
            raise BadInput(f"attn_implementation {asked[:60]} cannot be loaded", error) from error
        if fault := _file_fault(job):
            raise BadInput(f"Model {name}: {fault}.") from error
        if "does not recognize this architecture" in text or "is not present in the model type map" in text:
            kind = str(_configuration(job).get("model_type"))[:40]
            raise BadInput(
                f"Model {name}: its configuration has model_type {kind!r}, which transformers {transformers.__version__} "
                "does not know; correct it, or use an environment with another release."
            ) from error
        if "Unrecognized model in" in text:
            raise BadInput(
                f"Model {name}: its config.json has no model_type; expected one that transformers {transformers.__version__} knows."
            ) from error
        if any(
            frame.filename.endswith("generation/configuration_utils.py")
            for frame in traceback.extract_tb(error.__traceback__)
        ):
            raise BadInput(f"Model {name}: generation_config.json has a value that cannot be used", error) from error
        if package := _missing_package(error):
            raise BadInput(f"Model {name} needs the package {package[:60]} in the training environment.") from error
        raise _unreadable(f"Model {name} cannot be read", job.source, error) from error


def _unread(job: Job) -> str:
    """Return the name of the first file of weights that safetensors does not read."""
    for file in sorted(Path(job.source or "").glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, "pt"):
                pass
        except safetensors.SafetensorError:
            return file.name[-60:]
    return "its weights"


def _missing_package(error: Exception) -> str | None:
    if not isinstance(error, ImportError):
        return None
    # transformers raises an ImportError without a name, "X requires the timm library but it was not found"
    named = re.search(r"requires the (\S+) library", str(error))
    return error.name or (named and named.group(1))


def _configuration(job: Job) -> Any:
    file = Path(job.source or "") / "config.json"
    return job.architecture or (json.loads(file.read_bytes()) if file.is_file() else {})


def _key_of(value: str, configuration: Any) -> str | None:
    """Return the dotted name of the first key of a configuration with this value; None if there is none."""
    for key, one in configuration.items() if isinstance(configuration, dict) else ():
        if one == value:
            return str(key)
        if nested := _key_of(value, one):
            return f"{key}.{nested}"
    return None


def _file_fault(job: Job) -> str | None:
    """Return which JSON file of the model's directory cannot be used, and what to do; None if the cause is another."""
    found = json_files.fault(Path(job.source)) if job.source else None
    return found and f"{found}; correct or download it again"


def _unreadable(what: str, source: str | None, error: Exception) -> BadInput:
    """Return the error about a model or tokenizer that a library does not read; it quotes the library unless the hub is the cause."""
    text = str(error)
    if source and not Path(source).is_dir() and ("connect" in text or "offline" in text.lower() or "cached" in text):
        return BadInput(f"{what}: {source} is neither in the local cache nor reachable; give a model directory.")
    return BadInput(what, error)


def tokenizer(job: Job, model: transformers.PreTrainedModel) -> transformers.PreTrainedTokenizerBase:
    """Return the tokenizer for a job's data: the model's own, or a byte tokenizer.

    The byte tokenizer is used for synthetic data, which consist of token ids already, and for models of the catalogue without
    published weights, which have no tokenizer.

    Raises:
        BadInput: the model's tokenizer cannot be read, or does not fit the model.
    """
    if job.workload.dataset_id.startswith("synthetic-") or job.source is None:
        return byte_tokenizer.build(job.workload.model_max_length)
    weight_files.check(job.workload.model_name, Path(job.source), weights=False)
    with _explained_tokenizer(job):
        loaded = transformers.AutoTokenizer.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)
    if loaded.eos_token is None:
        raise BadInput(
            f"The tokenizer of model {job.workload.model_name[-60:]} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json."
        )
    if not isinstance(loaded.model_max_length, (int, float)) and (fault := _file_fault(job)):
        raise BadInput(f"The tokenizer of model {job.workload.model_name[-60:]} cannot be used: {fault}.")
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(loaded) > vocabulary:
        raise BadInput(
            f"The tokenizer of model {job.workload.model_name} has {len(loaded)} tokens, but the model only {vocabulary}."
        )
    return loaded


@contextlib.contextmanager
def _explained_tokenizer(job: Job) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tokenizer's files can make the libraries raise anything
        name = job.workload.model_name[-60:]
        # the class that transformers 5 writes for every tokenizer of the tokenizers library
        if "TokenizersBackend" in str(error) and release_of(transformers.__version__) < (5,):
            raise BadInput(
                f"The tokenizer of model {name[-40:]} was saved by transformers 5, but {transformers.__version__} trains; "
                "save it with transformers 4, or set its tokenizer_class to PreTrainedTokenizerFast."
            ) from error
        head = f"The tokenizer of model {name[-40:]} cannot be read"
        if "Couldn't instantiate the backend tokenizer" in str(error):
            raise BadInput(
                f"{head}: it has no tokenizer.json, or needs the package sentencepiece or tiktoken."
            ) from error
        if fault := _file_fault(job):
            raise BadInput(f"{head}: {fault}.") from error
        if part := tokenizer_json.fault(Path(job.source or "")):
            end = "" if part.error else "."
            raise BadInput(f"{head}: {part.message}{end}", part.error) from error
        raise _unreadable(head, job.source, error) from error
