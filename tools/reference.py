"""Makes ``docs/sfttrainer.md`` and ``docs/fms_hf_tuning.md`` from the code: ``nox -s docs``, or ``python tools/reference.py``.

Imports the installed plugins: properties, outputs, parameters and messages are read from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.workload import experiments as kinds
from ado_actuators.sfttrainer.core.workload import models
from ado_actuators.sfttrainer.core.workload.fields import Workload

DOCS = Path(__file__).resolve().parents[1] / "docs"
ACTUATORS = {"sfttrainer": SFTTrainer, "fms_hf_tuning": FMSHFTuning}
WORKLOAD = {"model_name": "tiny-llama-5m", "model_max_length": 128, "batch_size": 4, "number_gpus": 0}
# an impossible workload for each of the most frequent mistakes
IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"batch_size": 3, "number_gpus": 2},
    {"batch_size": 6, "number_gpus": 3, "number_nodes": 2},
    {"batch_size": 0},
    {"number_gpu": 1},
    {"gpu_model": "L40S"},
    {"mixed_precision": "fp16"},
    {"attn_implementation": "flash_attention_2"},
    {"padding_free": True},
    {"distributed_backend": "FSDP"},
    {"number_gpus": 2, "distributed_backend": "None"},
    {"enable_roce": True},
)
# exceptions of libraries: class and text
RAISED = (
    ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("RuntimeError", "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ("torch.distributed.DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp, remote process exited"),
    ("torch.AcceleratorError", "CUDA error: an illegal memory access was encountered"),
    ("ModuleNotFoundError", "No module named 'trl'"),
    ("OSError", "[Errno 28] No space left on device"),
    ("ValueError", "Target modules {'foo'} not found in the base model."),
    ("huggingface_hub.errors.GatedRepoError", "401 Client Error"),
)
ABOUT_PROPERTIES = """\
Optional properties have a default. `batch_size` and `number_gpus` are totals over all devices and nodes. In a space, required
properties belong in `entitySpace`; optional ones can be varied there or set in an experiment's `parameterization`."""
ABOUT_IMPOSSIBLE = """\
An impossible workload gives a result in milliseconds, with `is_valid` 0 and `failure` `invalid_configuration`. Examples, as changes
to the workload `{}`:"""
ABOUT_RAISED = """\
Exceptions of libraries are put into one of three groups. *cannot run*: a finished measurement with `is_valid` 0 and a `failure`.
*transient*: the measurement is repeated up to `max_retries` times, then fails. *broken*: it fails at once."""
ABOUT_MODELS = """\
These names need no download: models are built from their published architecture. A directory with a `config.json` or a hub
id can be used as well."""
_REQUIRED = object()


def page(actuator: type[Any]) -> str:
    """Return the reference page of an actuator."""
    name = actuator.identifier
    parts = [
        f"# The actuator {name}",
        "Generated from the code with `nox -s docs`; a test fails if this page is out of date.",
        _summary(actuator),
        "## Experiments",
        _experiments(actuator),
        "## Properties",
        ABOUT_PROPERTIES,
        _properties(actuator),
        "## Outputs",
        "[metrics.md](metrics.md) describes how they are measured. An output that cannot be measured is absent from the result.",
        *_outputs(actuator),
        "## Configuration",
        "Parameters of the `actuatorconfiguration`: where and how to measure. They do not change the workload.",
        _configuration(actuator),
        "## Failures",
        ABOUT_IMPOSSIBLE.format(_pairs(WORKLOAD)),
        _impossible(name),
        ABOUT_RAISED,
        _raised(),
        "## Models",
        ABOUT_MODELS,
        ", ".join(f"`{model}`" for model in models.names()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(actuator: type[Any]) -> str:
    return str(actuator.__doc__).strip().splitlines()[0]


def _experiments(actuator: type[Any]) -> str:
    rows = [(f"`{one.identifier}`", one.version, one.metadata["description"]) for one in _catalogue(actuator)]
    return _table(("experiment", "version", "description"), rows)


def _properties(actuator: type[Any]) -> str:
    experiments = _catalogue(actuator)
    found: dict[str, tuple[Any, Any, list[str]]] = {}
    for one in experiments:
        defaults = {value.property.identifier: value.value for value in one.defaultParameterization}
        for given in (*one.requiredProperties, *one.optionalProperties):
            entry = found.setdefault(given.identifier, (given, defaults.get(given.identifier, _REQUIRED), []))
            entry[2].append(one.identifier)
    rows = [
        (
            f"`{name}`",
            _domain(given.propertyDomain, name),
            _default(given.propertyDomain, default),
            "all" if len(where) == len(experiments) else ", ".join(map(_short, where)),
            given.metadata["description"],
        )
        for name, (given, default, where) in found.items()
    ]
    return _table(("property", "values", "default", "experiments", "meaning"), rows)


def _default(domain: Any, value: Any) -> str:
    if value is _REQUIRED:
        return "required"
    if value == "":
        return "empty"
    # ado stores a boolean as a number
    switch = all(isinstance(one, bool) for one in domain.values or [0])
    return f"`{bool(value) if switch else value}`"


def _domain(domain: Any, name: str) -> str:
    if name == "model_name":
        return "see [Models](#models)"
    kind = domain.variableType.value
    if kind == "DISCRETE_VARIABLE_TYPE":
        low, high = domain.domainRange
        return f"{low:,} to {high - 1:,}"
    if kind == "CONTINUOUS_VARIABLE_TYPE":
        low, high = domain.domainRange
        below = any(hasattr(rule, "lt") for rule in Workload.model_fields[name].metadata)
        return f"{low:,g} to {'below ' if below else ''}{high:,g}"
    values = ", ".join(f"`{value}`" if value != "" else "empty" for value in domain.values)
    return f"{values}, or any other" if kind == "OPEN_CATEGORICAL_VARIABLE_TYPE" else values


def _outputs(actuator: type[Any]) -> Iterable[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in _catalogue(actuator):
        groups.setdefault(tuple(kinds.KINDS[one.identifier].outputs), []).append(one.identifier)
    for names in groups.values():
        yield "Outputs of " + ", ".join(f"`{name}`" for name in names) + ":"
        yield _table(
            ("output", "meaning"), [(f"`{name}`", text) for name, text in kinds.KINDS[names[0]].outputs.items()]
        )


def _configuration(actuator: type[Any]) -> str:
    rows = [
        (
            f"`{name}`",
            "empty" if field.default == "" else f"`{field.default!r}`".replace("'", ""),
            field.description or "",
        )
        for name, field in actuator.parameters_class.model_fields.items()
        if field.description
    ]
    return _table(("parameter", "default", "meaning"), rows)


def _impossible(actuator: str) -> str:
    rows = []
    for change in IMPOSSIBLE:
        try:
            make_plan(actuator, "finetune_full_benchmark", {**WORKLOAD, **change})
        except failures.InvalidConfiguration as refused:
            rows.append((f"`{_pairs(change)}`", str(refused)))
        else:
            raise AssertionError(f"{change} is a possible workload; remove it from IMPOSSIBLE.")
    return _table(("change", "message"), rows)


def _raised() -> str:
    rows = []
    for type_name, text in RAISED:
        cause = failures.classify_exception(type_name, text)
        rows.append(
            (
                f"`{type_name.rpartition('.')[2]}: {text}`",
                cause.group,
                f"`{cause.what}`" if cause.group == "cannot run" else "",
                cause.message,
            )
        )
    return _table(("exception", "group", "`failure`", "message"), rows)


def _catalogue(actuator: type[Any]) -> list[Any]:
    return list(actuator.catalog().experiments)


def _short(experiment: str) -> str:
    return experiment.removeprefix("finetune_").removesuffix("_benchmark")


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def main() -> None:
    """Write both pages."""
    argparse.ArgumentParser(description="Write the reference pages of both actuators from the code.").parse_args()
    for name, actuator in ACTUATORS.items():
        file = DOCS / f"{name}.md"
        file.write_text(page(actuator), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
