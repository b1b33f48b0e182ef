"""The modules that an adapter adapts: checked before training, and read back afterwards. Imports torch, but not PEFT.

``target_modules`` takes every form that PEFT takes: all-linear; names separated by commas, each the end of a module's path in whole
parts (``q_proj``, ``layers.0.self_attn.q_proj``); or one regular expression for whole paths.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from ..protocol.messages import JobWorkload
from . import modalities
from .errors import Refused

ALL_LINEAR = "all-linear"
_EXPRESSION = re.compile(r"[\\^$*+?{}\[\]()|]")
# PEFT refuses these modules of these model types, because the models use their weights without calling the modules
_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_USED_DIRECTLY = ("out_proj", "conv1d")
_SHOWN = 60
# values of init_lora_weights that take the factors from a decomposition of the weights
_DECOMPOSED = ("olora", "pissa", "pissa_niter_16")
# an expert in a list of modules, as transformers before 5 builds them
_EXPERT = re.compile(r"\bexperts\.\d+\.")


def targets(text: str) -> str | list[str]:
    """Return ``target_modules`` as PEFT's argument: ``all-linear`` and regular expressions as they are, names as a list."""
    if text == ALL_LINEAR or _EXPRESSION.search(text):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def options(workload: JobWorkload) -> dict[str, Any]:
    """Return the arguments of PEFT's ``LoraConfig`` except the modules to adapt; those with PEFT's default are left out."""
    found: dict[str, Any] = {"r": workload.r, "lora_alpha": workload.lora_alpha, "lora_dropout": workload.lora_dropout}
    if workload.init_lora_weights != "default":
        found["init_lora_weights"] = workload.init_lora_weights
    if workload.use_dora:
        found["use_dora"] = True
    if workload.use_rslora:
        found["use_rslora"] = True
    names = [name.strip() for name in workload.target_parameters.split(",") if name.strip()]
    return found | ({"target_parameters": names} if names else {})


def check_parameters(network: torch.nn.Module, workload: JobWorkload) -> None:
    """Check that each name in ``target_parameters`` is the end of the name of a matrix, or of one for each expert.

    Raises:
        Refused: a name matches no parameter, or one that PEFT cannot adapt.
    """
    names = [name.strip() for name in workload.target_parameters.split(",") if name.strip()]
    known = dict(network.named_parameters())
    for name in names:
        dimensions = {one.dim() for path, one in known.items() if path == name or path.endswith(f".{name}")}
        if dimensions - {2, 3}:
            raise Refused(
                f"target_parameters {name[:_SHOWN]} names a parameter of {min(dimensions)} dimensions; name matrices or fused experts."
            )
        if not dimensions:
            experts = sorted({path.rpartition(".mlp.")[2] for path in known if "expert" in path})
            has = f"; it has {', '.join(experts)[:_SHOWN]}" if experts else ""
            raise Refused(f"target_parameters {name[:_SHOWN]} names no parameter of this model{has}.")


def resolved(network: torch.nn.Module, workload: JobWorkload, *, as_list: bool = False) -> tuple[Any, list[str]]:
    """Return PEFT's argument ``target_modules`` for a model, and notes for the user.

    Args:
        network: the model, without adapters.
        workload: the workload, of a method with ``target_modules``.
        as_list: return a regular expression as the list of the paths that it matches.

    Raises:
        Refused: no module matches, or one that matches is not a linear layer.
    """
    wanted = targets(workload.target_modules)
    modules = {name: module for name, module in network.named_modules() if name}
    mamba = getattr(getattr(network, "config", None), "model_type", None) in _MAMBA
    if wanted == ALL_LINEAR:
        return _all_linear(network, modules) if mamba else (wanted, [])
    names = [wanted] if isinstance(wanted, str) else wanted
    matched = {name: [path for path in modules if _matches(wanted, name, path)] for name in names}
    paths = [path for found in matched.values() for path in found]
    for path in paths:
        _check(path, modules[path], mamba=mamba)
    # PEFT also knows what older releases of transformers called the parts of fused experts
    missing = [name for name, found in matched.items() if not found and not _has_fused_experts(network)]
    if not paths and missing:
        last = sorted({path.rpartition(".")[2] for path, module in modules.items() if _multiplies(module)})
        raise Refused(
            f"target_modules {workload.target_modules[:_SHOWN]} names no module of this model; it has {_listed(last)}."
        )
    notes = [f"target_modules: no module of this model is named {', '.join(missing)[:_SHOWN]}."] if missing else []
    return (paths if as_list and isinstance(wanted, str) else wanted), notes


def _matches(wanted: str | list[str], name: str, path: str) -> bool:
    if isinstance(wanted, str):
        try:
            return re.fullmatch(wanted, path) is not None
        except (re.error, OverflowError, RecursionError) as error:
            raise Refused(f"target_modules {wanted[:_SHOWN]} is not a valid regular expression: {error}.") from None
    return path == name or path.endswith(f".{name}")


def _all_linear(network: Any, modules: dict[str, torch.nn.Module]) -> tuple[list[str], list[str]]:
    output = network.get_output_embeddings()
    linear = [path for path, module in modules.items() if _multiplies(module) and module is not output]
    kept = [path for path in linear if path.rpartition(".")[2] not in _USED_DIRECTLY]
    left = sorted({path.rpartition(".")[2] for path in linear} & set(_USED_DIRECTLY))
    return kept, [f"all-linear leaves out {', '.join(left)}, which PEFT cannot adapt in this model."] if left else []


def _check(path: str, module: torch.nn.Module, *, mamba: bool) -> None:
    name = path.rpartition(".")[2]
    if mamba and name in _USED_DIRECTLY:
        raise Refused(f"target_modules names {path[-_SHOWN:]}, which PEFT cannot adapt in this model; leave it out.")
    weight = getattr(module, "weight", None)
    # a router has a matrix without being a linear layer
    is_matrix = isinstance(weight, torch.Tensor) and weight.dim() == 2
    if not _is_linear(module) and not is_matrix:
        inner = sorted(
            {part.rpartition(".")[2] for part, child in module.named_modules() if part and _is_linear(child)}
        )
        instead = f"name {_listed(inner)}" if inner else "name linear layers"
        raise Refused(
            f"target_modules names {path[-_SHOWN:]}, a {type(module).__name__[:40]}, which is not a linear layer; {instead}."
        )


def _listed(names: list[str]) -> str:
    """Return names for a message, cut between names."""
    return textwrap.shorten(", ".join(names), _SHOWN, placeholder=" …")


def _is_linear(module: torch.nn.Module) -> bool:
    # quantised layers have classes such as Linear4bit or QuantLinear
    adaptable = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention)
    name = type(module).__name__
    return isinstance(module, adaptable) or name == "Conv1D" or ("Linear" in name and not list(module.children()))


def _multiplies(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _has_fused_experts(network: torch.nn.Module) -> bool:
    return any("expert" in name and parameter.dim() == 3 for name, parameter in network.named_parameters())


@contextlib.contextmanager
def explained(workload: JobWorkload) -> Iterator[None]:
    """Turn exceptions of PEFT and TRL about an impossible adapter into one message."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        shown = workload.target_modules[:_SHOWN]
        if unsupported := re.match(r"Target module (\w+)", text):
            message = f"target_modules {shown} names a {unsupported.group(1)}, which is not a linear layer; name linear layers."
        elif "is incompatible with Mamba" in text:
            message = f"target_modules {shown} names a module that PEFT cannot adapt in this model; leave out out_proj, conv1d."
        elif re.search(r"adapter to `?lm_head", text):
            message = "TRL uses the weights of lm_head directly and would not train an adapter of it; leave it out of target_modules."
        elif option := re.search(r"does not work with (lora_dropout|use_dora|lora_bias)", text):
            value = "0" if option.group(1) == "lora_dropout" else "false"
            message = (
                f"{option.group(1)} must be {value} for this model: PEFT adapts its experts and routers as parameters."
            )
        elif workload.method == "prompt_tuning" and (
            needed := re.search(r"Please specify `(\w+)` in `peft_config`", text)
        ):
            message = f"Prompt tuning is impossible with this model: its configuration has no {needed.group(1)}."
        else:
            raise
        raise Refused(message) from error


def adapted(model: torch.nn.Module, *, text_only: bool = True) -> list[dict[str, Any]]:
    """Return the low-rank adapters of a model, those that are alike as one entry; empty without any.

    With ``text_only`` those of a vision part, which text does not pass through, are left out.

    Each entry has the last part of the ``module``'s path (for a parameter of experts or a router that of the parameter), the lengths of
    its ``inputs`` and ``outputs``, the ``rank``, the number of ``experts`` that the adapter has a part for (1: one expert, or all tokens),
    whether a token uses it only if it is ``routed`` to it, and the number of ``layers`` that have it; where each expert is a module of its
    own, the number of these modules over all layers. ``inputs`` is 0 for an embedding, which looks its factor up.
    """
    found: Counter[tuple[str, int, int, int, int, bool]] = Counter()
    used = modalities.of_text(model) if text_only else None
    configurations = getattr(model, "peft_config", {})
    for path, module in model.named_modules():
        if used is not None and module not in used:
            continue
        ranks = getattr(module, "r", None)
        if not isinstance(ranks, dict) or not hasattr(module, "lora_A") or not hasattr(module, "in_features"):
            continue
        parameter = getattr(module, "parameter_name", None)
        name = parameter if parameter and parameter != "weight" else _last(path)
        experts = int(getattr(module, "num_experts", 1)) if parameter else 1
        for adapter, rank in ranks.items():
            looked_up = adapter in getattr(module, "lora_embedding_A", ())
            inputs = 0 if looked_up else int(module.in_features)
            if getattr(configurations.get(adapter), "init_lora_weights", True) in _DECOMPOSED:
                # the decomposition of a matrix has no more factors than its shorter side
                rank = min(rank, int(module.in_features), int(module.out_features))
            routed = experts > 1 or _EXPERT.search(path) is not None
            found[name, inputs, int(module.out_features), int(rank), experts, routed] += 1
    keys = ("module", "inputs", "outputs", "rank", "experts", "routed")
    return [{**dict(zip(keys, key, strict=True)), "layers": layers} for key, layers in found.items()]


def _last(path: str) -> str:
    # a second adapted parameter of a module wraps the first
    return next(
        (part for part in reversed(path.split(".")) if part not in ("base_layer", "_fsdp_wrapped_module")), path
    )
