"""Reads and checks the configuration of a job's model, and removes the settings that would choose code to run. Imports transformers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers.models.auto import modeling_auto

from ..protocol import model_config, supported
from ..protocol.messages import Job
from .errors import BadInput, Refused

# names of implementations that a config.json may hold; transformers loads code from the hub for a name such as "org/kernel"
_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
# models that transformers lists as causal, although their tokens see later ones
_BIDIRECTIONAL = ("bert-generation", "cpmant", "xlnet")
_OTHER_CODE = ("use_kernels", "kernel_config", "custom_generate", "custom_pipelines")


def read(job: Job) -> transformers.PretrainedConfig:
    """Return the configuration of a job's model. Only a hub id without ``architecture`` needs the hub or its local cache.

    The implementations of attention and experts are those of the workload, or the defaults of transformers, never those of the file.

    Raises:
        BadInput: the directory has no usable configuration.
        Refused: the model cannot be trained as a causal language model, or its numbers are implausible.
    """
    name = job.workload.model_name
    if job.architecture is not None:
        # checked before the configuration is created, because that of a model with millions of layers would list them
        if message := model_config.implausible(name, job.architecture):
            raise Refused(message)
        # a copy, because configurations add keys to the mappings inside
        config = transformers.AutoConfig.for_model(**copy.deepcopy(job.architecture))
    else:
        _check_file(job)
        config = transformers.AutoConfig.from_pretrained(job.source, trust_remote_code=job.trust_remote_code)
    for part in _parts(config):
        _remove_code(part)
    if message := model_config.implausible(name, config.to_dict()):
        raise Refused(message)
    _check_use(job, config)
    return config


def _check_file(job: Job) -> None:
    directory = Path(job.source or "")
    file = directory / "config.json"
    if not os.path.exists(file):  # noqa: PTH110 - a hub id need not be a valid path
        return
    if message := model_config.unusable(job.workload.model_name, file):
        raise BadInput(message)
    if (directory / "adapter_config.json").exists():
        raise BadInput(
            f"Model directory {job.workload.model_name[-80:]} holds an adapter (adapter_config.json); give the directory of its base model."
        )


def _parts(config: transformers.PretrainedConfig) -> Iterator[transformers.PretrainedConfig]:
    """Return a configuration and those nested in it, such as the text part of a vision model."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PretrainedConfig):
            yield from _parts(value)


def _remove_code(config: transformers.PretrainedConfig) -> None:
    for name in _IMPLEMENTATIONS:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    for name in _OTHER_CODE:
        vars(config).pop(name, None)
    # transformers 4.55 fails on a null, which means the same as no such key
    if vars(config).get("quantization_config", {}) is None:
        del config.quantization_config


def _check_use(job: Job, config: transformers.PretrainedConfig) -> None:
    """Check that the model predicts the next token, and would be trained in the form that the workload describes."""
    workload = job.workload
    name = workload.model_name[-80:]
    if message := supported.mismatch(workload, config.to_dict()):
        raise Refused(message)
    if getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"Model {name} is an encoder-decoder ({config.model_type}); use a decoder-only causal language model."
        )
    heads = [one for one in getattr(config, "architectures", None) or () if "For" in one]
    if heads and not job.trust_remote_code and not any(head in _generating_heads() for head in heads):
        raise Refused(
            f"Model {name} is a {heads[0]}, which does not predict the next token; use a causal language model."
        )
    masked = config.model_type in {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *_BIDIRECTIONAL}
    if masked and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        raise Refused(
            f"Model {name} is an encoder ({config.model_type}): it sees later tokens. Use a causal language model."
        )
    if config.model_type not in _generating_types() and not job.trust_remote_code:
        raise Refused(
            f"Model {name} is of type {config.model_type}, which transformers does not list as causal; "
            "use a decoder-only causal language model."
        )
    quantisation = getattr(config, "quantization_config", None)
    if quantisation and workload.weights == "random" and workload.method != "gptq_lora":
        method = getattr(quantisation, "quant_method", None) or dict(quantisation).get("quant_method", "unknown")
        raise Refused(
            f"Model {name} has quantised weights ({getattr(method, 'value', method)}), which weights random would make dense; "
            "use the model without quantization_config."
        )


def _generating_heads() -> set[str]:
    names = {*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    return names | {*modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()}


def _generating_types() -> set[str]:
    return {*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
