"""The kinds of experiment: the purpose, fixed properties, outputs and number of runs of each.

A new kind is a new entry in ``KINDS``. ``actuator/catalog.py`` builds ado's experiment from it; an actuator lists the kinds that it offers.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from ..protocol.messages import Task
from . import ibm_names, value_errors
from .fields import Workload
from .outputs import MEMORY_OUTPUTS, OUTPUTS, STABILITY_OUTPUTS


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of experiment.

    Attributes:
        description: one sentence for ``ado describe experiment``.
        sets: workload properties that the experiment fixes; users cannot set them.
        task: what the trainers do with the workload.
        outputs: the properties it returns, from identifier to description.
        runs: how often the workload runs; if more than once, each run gets fresh processes.
        limits: the values that a property may have, for properties with fewer values than ``Workload`` allows.
        further: values beside those of ``limits`` in one actuator, by actuator and property.
        defaults: defaults that differ from those of ``Workload``.
    """

    description: str
    sets: Mapping[str, Any]
    task: Task = "benchmark"
    outputs: Mapping[str, str] = dataclasses.field(default_factory=lambda: OUTPUTS)
    runs: int = 1
    limits: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    further: Mapping[str, Mapping[str, tuple[Any, ...]]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def allowed(self, name: str, actuator: str) -> tuple[Any, ...]:
        """Return the values that a property may have in an actuator; empty: all those of ``Workload``."""
        return (*self.limits.get(name, ()), *self.further.get(actuator, {}).get(name, ()))


KINDS: Mapping[str, Kind] = {
    "finetune_full_benchmark": Kind(
        "Fine-tunes every parameter and measures throughput, memory, utilisation and energy.", {"method": "full"}
    ),
    "finetune_lora_benchmark": Kind(
        "Fine-tunes low-rank adapters (LoRA) and measures throughput, memory, utilisation and energy.",
        {"method": "lora"},
    ),
    "finetune_qlora_benchmark": Kind(
        "Fine-tunes low-rank adapters over weights quantised to 4 or 8 bits and measures throughput and memory.",
        {"method": "qlora"},
    ),
    "finetune_gptq_lora_benchmark": Kind(
        "Fine-tunes low-rank adapters over a model quantised with GPTQ, in float16 by default, and measures throughput and memory.",
        {"method": "gptq_lora"},
        # the library accepts only models in float16, or mixed precision with fp16
        defaults={"torch_dtype": "float16"},
    ),
    "finetune_prompt_tuning_benchmark": Kind(
        "Tunes virtual tokens in front of a frozen model and measures throughput, memory, utilisation and energy.",
        {"method": "prompt_tuning"},
    ),
    "finetune_full_stability": Kind(
        "Runs five steps of full fine-tuning five times, each in fresh processes, and counts how often it succeeds.",
        {
            "method": "full",
            "max_steps": 5,
            "num_train_epochs": 0,
            "stop_after_seconds": 0.0,
            "min_steps": 1,
            "target_ci_percent": 0.0,
        },
        task="stability",
        outputs=STABILITY_OUTPUTS,
        runs=5,
    ),
    "finetune_memory_estimate": Kind(
        "Predicts the peak memory of each device and the largest batch that fits, without a GPU and without weights.",
        # tracing supports token ids only
        {"dataset_image_field": ""},
        task="memory_estimate",
        outputs=MEMORY_OUTPUTS,
        limits={"method": ("full", "lora", "qlora", "prompt_tuning")},
        further={"fms_hf_tuning": {"method": ("gptq_lora",)}},
    ),
}


def fields(actuator: str, kind: Kind) -> dict[str, FieldInfo]:
    """Return the fields of ``Workload`` that a kind of experiment has in an actuator, by name."""
    method = kind.sets.get("method")
    return {
        name: field
        for name, field in Workload.model_fields.items()
        if name not in kind.sets
        and applies(field, "stacks", actuator)
        and applies(field, "tasks", kind.task)
        and (method is None or applies(field, "methods", method))
    }


def extra(field: FieldInfo) -> dict[str, Any]:
    """Return the extra information of a field of ``Workload``: methods, stacks, tasks, example values."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def applies(field: FieldInfo, key: str, value: str) -> bool:
    """Return whether a field exists for one of the ``methods``, ``stacks`` or ``tasks``, the ``key``."""
    allowed = extra(field).get(key)
    return not allowed or value in allowed


def unknown_property(name: str, value: Any, experiment: str, actuator: str) -> str:
    """Return the error message for a property that an experiment lacks, with the likely remedy.

    Args:
        name: the property as the user wrote it.
        value: its value.
        experiment: identifier of the experiment.
        actuator: identifier of the actuator.
    """
    message = f"{name:.60} is not a property of {experiment} in {actuator}."
    hint = ibm_names.hint(name)
    others = [other for other in KINDS if name in fields(actuator, KINDS[other])]
    if name == "method":
        methods = {KINDS[one].sets["method"]: one for one in KINDS if KINDS[one].task == "benchmark"}
        if isinstance(value, str) and value in methods:
            return f"{message} The experiment sets it: use {methods[value]}."
        near = difflib.get_close_matches(str(value)[:100], methods, n=2, cutoff=0.6) or methods
        return f"method {value!r:.60} does not exist; use {' or '.join(near)}."
    if others:
        return f"{message} These have it: {', '.join(others)}.{hint}"
    close = value_errors.close_names(name, [*fields(actuator, KINDS[experiment]), "method"])
    if close:
        return f"{message} Use {' or '.join(close)}.{hint}"
    return f"{message}{hint or f' List them with ado describe experiment {actuator}.{experiment}.'}"
