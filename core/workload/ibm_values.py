"""Translates the value of one property of IBM's actuator ``SFTTrainer``. Imports pydantic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from . import models
from .experiments import extra
from .fields import Workload
from .ibm_names import DEFAULTS, IMPLIED

FMS = "fms_hf_tuning"
TAKES_THE_FILE = "--data DIR uses IBM's file"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A message about a translation.

    Attributes:
        text: the choice that was made, or the property without a counterpart, and the reason.
        same: whether the study is unchanged.
    """

    text: str
    same: bool = True


class InvalidValue(ValueError):
    """A value of another type than its property has, in one message."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """The user's options for a translation.

    Attributes:
        actuator: identifier of the actuator to translate to.
        weights: ``random`` or ``pretrained``.
        data: directory with the data sets of IBM's actuator, or empty: synthetic data.
        adaptive: end each measurement when its rate has converged, instead of when the study says.
        model_map: paths of models by name, from an actuator configuration.
    """

    actuator: str
    weights: str = "random"
    data: str = ""
    adaptive: bool = False
    model_map: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ValueTranslator:
    """Translates values one by one and collects findings about them."""

    def __init__(self, choices: Choices, longest: int) -> None:
        """Translate for ``choices``; ``longest`` is the largest model_max_length of the study, in tokens."""
        self.choices = choices
        self.findings: list[Finding] = []
        self._longest = longest
        self._special: Mapping[str, Callable[[Any], dict[str, Any]]] = {
            "model_name": self._model,
            "gpu_model": lambda value: {"gpu_model": "any" if value in (None, "None", "") else value},
            "flash_attn": lambda value: {"attn_implementation": "flash_attention_2" if is_true(value) else "auto"},
            "bf16": lambda value: {"mixed_precision": "bf16" if is_true(value) else "no"},
            "accelerate_config_mixed_precision": self._mixed_precision,
            "accelerate_config_fsdp_transformer_layer_cls_to_wrap": self._layer,
            "distributed_backend": lambda value: {"distributed_backend": "None" if value is None else value},
            "fast_moe": self._fast_moe,
            "fast_kernels": self._fast_kernels,
            "fms_hf_tuning_version": self._version,
            "dataset_id": self._data,
            "dataset_text_field": self._text_field,
            "dataset_image_field": self._image_field,
        }

    def add_finding(self, text: str, *, same: bool = True) -> None:
        """Add a finding, once."""
        finding = Finding(text, same)
        if finding not in self.findings:
            self.findings.append(finding)

    def of(self, name: str, value: Any) -> dict[str, Any]:
        """Return our properties for one of IBM's; empty if it has no counterpart, with a finding if that changes the study."""
        if name in self._special:
            return self._special[name](value)
        if name in IMPLIED:
            if DEFAULTS.get(name, value) != value:
                self.add_finding(f"{name} {value} is left out: the columns determine how data is prepared.")
            return {}
        if name not in Workload.model_fields:
            self.add_finding(f"{name} {value} has no counterpart and is left out.", same=False)
            return {}
        allowed = Workload.model_fields[name].annotation
        literals = getattr(allowed, "__args__", ())
        if literals and value not in literals:
            self.add_finding(
                f"{name} {value} has no counterpart; possible are {', '.join(map(str, literals))}.", same=False
            )
            return {}
        whole = allowed is int and isinstance(value, float) and value.is_integer()
        return {name: int(value) if whole else value}

    def _model(self, value: Any) -> dict[str, Any]:
        name, path = str(value), self.choices.model_map.get(str(value))
        try:
            source = models.resolve(name)
        except ValueError:
            if not path:
                text = f"Model {name} is not in the catalogue: give a directory with a config.json, or a hub id."
                self.add_finding(text, same=False)
                return {"model_name": name}
            source = None
        if path and (source is None or path != source.source):
            self.add_finding(f"model_name {name} becomes {path}, from model_map.")
            return {"model_name": path}
        architecture = (source.architecture if source else None) or {}
        if self.choices.weights == "random" and architecture.get("num_local_experts"):
            text = f"{name} is a mixture of experts, and the router of random weights is unbalanced"
            self.add_finding(f"{text}: use --weights pretrained.", same=False)
        return {"model_name": name}

    def _mixed_precision(self, value: Any) -> dict[str, Any]:
        if value == "fp8":
            self.add_finding(
                "accelerate_config_mixed_precision fp8 has no counterpart; possible are no, bf16 and fp16.", same=False
            )
            return {}
        return {"mixed_precision": "no" if value is False else value}

    def _layer(self, value: Any) -> dict[str, Any]:
        return {"fsdp_transformer_layer_cls_to_wrap": "auto" if value in (None, "None") else value}

    def _fast_moe(self, value: Any) -> dict[str, Any]:
        degree = value[0] if isinstance(value, list | tuple) and value else value
        return self._of_fms("fast_moe", int(number("fast_moe", degree or 0)))

    def _fast_kernels(self, value: Any) -> dict[str, Any]:
        if isinstance(value, str):  # ado's tables contain lists as text
            value = [word.strip(" '\"[]") for word in value.split(",")]
        wanted = {is_true(one) for one in value} if isinstance(value, list | tuple) else {is_true(value)}
        if len(wanted) > 1:
            text = f"fast_kernels {list(value)} has no counterpart: fast_kernels switches all kernels on or off."
            self.add_finding(text, same=False)
            return {}
        return self._of_fms("fast_kernels", wanted == {True})

    def _of_fms(self, name: str, value: Any) -> dict[str, Any]:
        if self.choices.actuator == FMS:
            return {name: value}
        if value:
            self.add_finding(f"{name} is left out: it is a property of fms-hf-tuning, which TRL lacks.", same=False)
        return {}

    def _version(self, value: Any) -> dict[str, Any]:
        if self.choices.actuator != FMS:
            text = f"fms_hf_tuning_version {value} is left out: training uses the installed release of TRL."
            self.add_finding(text, same=False)
            return {}
        here = extra(Workload.model_fields["fms_hf_tuning_version"])["values"]
        if str(value) in here:
            return {"fms_hf_tuning_version": str(value)}
        newer = (one for one in here if _release(one) >= _release(value))
        nearest = min(newer, key=_release, default=max(here, key=_release))
        text = f"fms_hf_tuning_version {value} becomes {nearest}, the nearest of {', '.join(here)}."
        self.add_finding(text, same=False)
        return {"fms_hf_tuning_version": nearest}

    def _data(self, value: Any) -> dict[str, Any]:
        name, vision = str(value), str(value).startswith("vision-")
        if self.choices.data:
            return {"dataset_id": f"{self.choices.data.rstrip('/')}/{name}.{'parquet' if vision else 'jsonl'}"}
        if vision:
            text = f"dataset_id {name} becomes synthetic-image, whose images have the size of the model's vision tower"
            self.add_finding(f"{text}: {TAKES_THE_FILE}.", same=False)
            return {"dataset_id": "synthetic-image"}
        tokens = 131072 if "128kplus" in name else 16384 if "16384plus" in name else 0
        if tokens and self._longest <= tokens:
            self.add_finding(
                f"dataset_id {name} becomes synthetic-fixed: truncated to model_max_length, its samples have the same length."
            )
        else:
            text = f"dataset_id {name} becomes synthetic-fixed, whose samples are longer (model_max_length tokens)"
            self.add_finding(f"{text}: {TAKES_THE_FILE}.", same=False)
        return {"dataset_id": "synthetic-fixed"}

    def _text_field(self, value: Any) -> dict[str, Any]:
        if not self.choices.data:
            # synthetic data has no columns
            return {}
        return {"dataset_text_field": value}

    def _image_field(self, value: Any) -> dict[str, Any]:
        return {"dataset_image_field": "" if value in (None, "None") else value}


def number(name: str, value: Any) -> float:
    """Return a property's value as a number.

    Raises:
        InvalidValue: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidValue(f"{name} is {value!r:.40}; expected a number.") from None


def _release(version: Any) -> tuple[int, ...]:
    """Return the numbers of a version, by which versions are ordered."""
    return tuple(int(part) if part.isdigit() else 0 for part in str(version).split("."))


def is_true(value: Any) -> bool:
    """Return whether a value of IBM's files is true: True, "True" or, in ado's tables, 1."""
    return value is True or str(value).lower() in ("true", "1", "1.0")
