"""One measurement as a report sees it. Imports pydantic and the workload's fields.

A row holds what was asked (``workload``), the results (``outputs``), and the message that says why there are none.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from ..workload.fields import Workload

THROUGHPUT = "dataset_tokens_per_second"
INTERVAL = "throughput_ci95_percent"
# what ado's export writes where there is no value
NOT_MEASURED = "not_measured"
# the first one that a row has is its memory; what the driver sees decides whether something fits
MEMORY = {
    "gpu_memory_peak_gib": "peak memory of a GPU",
    "torch_peak_reserved_gib": "peak memory reserved by torch",
    "cpu_memory_peak_gib": "peak memory of the training processes",
}
MEASURED, CANNOT_RUN, FAILED = "measured", "cannot run", "failed"
GIVEN = tuple(Workload.model_fields)
REQUIRED = tuple(name for name, field in Workload.model_fields.items() if field.is_required())
# the method is mostly said by the experiment's name: ``Row.method`` knows
FIELDS = tuple(name for name in GIVEN if name != "method")
# what describes a row beside its workload, and stands before it in labels
KEYS = ("source", "actuator", "method")
# what nearly every label holds is said in short
SHORT = {"model_max_length": "length {}", "batch_size": "batch {}", "number_gpus": "{} GPU", "number_nodes": "{} node"}
PARAMETER = re.compile(rf"-(?=(?:{'|'.join(GIVEN)})\.)")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        source: where it was read: a file's name, or an identifier in ado's store.
        actuator: identifier of the actuator.
        experiment: identifier of the experiment, without version.
        workload: property values that were given, by name; what has its default may be left out.
        outputs: what was measured, by identifier.
        message: why it cannot run or failed; empty where that is not known.
        metadata: of ado's result; empty when read from a CSV, which has none.
    """

    source: str
    actuator: str
    experiment: str
    workload: dict[str, Any]
    outputs: dict[str, Any]
    message: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def state(self) -> str:
        """``measured``, ``cannot run`` or ``failed``."""
        if "is_valid" not in self.outputs:
            return MEASURED if self.outputs else FAILED
        return MEASURED if self.outputs["is_valid"] else CANNOT_RUN

    @property
    def method(self) -> str:
        """What was done, in short: ``full`` of ``finetune_full_benchmark``."""
        short = self.experiment.removeprefix("finetune_").removesuffix("_benchmark")
        return f"{short} of {self.workload['method']}" if "method" in self.workload else short

    @property
    def throughput(self) -> float | None:
        """Real tokens a second of all devices."""
        return number(self.outputs.get(THROUGHPUT))

    @property
    def half_width(self) -> float | None:
        """Half the 95 % confidence interval of the throughput, as a share of it."""
        percent = number(self.outputs.get(INTERVAL))
        return None if percent is None else percent / 100

    @property
    def devices(self) -> int:
        """Training processes: one a GPU, or on CPU one a node."""
        return int(self.workload.get("number_gpus") or self.workload.get("number_nodes") or 1)

    def value(self, name: str) -> Any:
        """Return a property of the workload, its default where none was given, or one of ``KEYS``."""
        if name in KEYS:
            return getattr(self, name)
        if name in self.workload or name not in Workload.model_fields:
            return self.workload.get(name)
        field = Workload.model_fields[name]
        return None if field.is_required() else field.default

    def output(self, name: str) -> float | None:
        """Return an output as a number, or None."""
        return number(self.outputs.get(name))

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same workload: everything but where they were read and what defaults say."""
        asked = sorted((name, self.value(name)) for name in self.workload if not self._is_default(name))
        return (self.actuator, self.experiment, *asked)

    def _is_default(self, name: str) -> bool:
        field = Workload.model_fields.get(name)
        return field is not None and not field.is_required() and self.workload[name] == field.default


def number(value: Any) -> float | None:
    """Return ``value`` as a finite number, or None."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def plain(value: Any) -> Any:
    """Return what a CSV or ado stored as the value that was meant: 4.0 is 4, ``"True"`` is True, blank is None."""
    if isinstance(value, str):
        text = value.strip()
        if text == NOT_MEASURED:
            return None
        if text in ("True", "False"):
            return text == "True"
        try:
            value = float(text)
        except ValueError:
            return text or None
        if math.isnan(value):
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def workload_value(name: str, value: Any) -> Any:
    """Return a property's value in the property's own type."""
    value = plain(value)
    field = Workload.model_fields.get(name)
    if field is not None and value is not None:
        if field.annotation is bool:
            return bool(value)
        if field.annotation is str or isinstance(field.default, str):
            return str(value)
    return value


def experiment_of(reference: str) -> tuple[str, str, dict[str, Any]]:
    """Split ado's ``ACTUATOR.EXPERIMENT@VERSION-name.value-...`` into actuator, experiment and parameters."""
    actuator, _, rest = reference.partition(".")
    head, *pieces = PARAMETER.split(rest)
    parameters: list[str] = []
    for piece in pieces:
        parameters.append(piece)
        # what only looks like a property is the end of a path: /data/train-r.jsonl
        while len(parameters) > 1 and not _is_parameter(parameters[-1]):
            end = parameters.pop()
            parameters[-1] += f"-{end}"
    pairs = (parameter.partition(".") for parameter in parameters)
    return actuator, head.partition("@")[0], {name: workload_value(name, value) for name, _, value in pairs}


def _is_parameter(text: str) -> bool:
    """Whether ``name.value`` has a value that the property can have, as it stands or as what it means."""
    name, _, value = text.partition(".")
    return any(_takes(name, candidate) for candidate in (value, plain(value)))


def _takes(name: str, value: Any) -> bool:
    try:
        Workload.model_validate({name: value})
    except pydantic.ValidationError as error:
        # other properties are missing, which is not the question
        return all(one["loc"][0] != name for one in error.errors())
    return True


def differing(rows: Iterable[Row]) -> list[str]:
    """Return the properties, ``KEYS`` first, in which these rows differ."""
    rows = list(rows)
    names = [*KEYS, *FIELDS]
    return [name for name in names if len({_hashable(row.value(name)) for row in rows}) > 1]


def shown(value: Any, longest: int = 28) -> str:
    """Return a value as a label of at most ``longest`` characters; the end of a path says more than its beginning."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= longest else "…" + text[1 - longest :]


def counted(number: int, noun: str) -> str:
    """Return how many there are, in words: ``1 workload``, ``2 workloads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def label(row: Row, names: Iterable[str]) -> str:
    """Return what tells a row from others that differ in ``names``."""
    return ", ".join(worded(name, row.value(name)) for name in names)


def workload_label(row: Row, varied: Sequence[str]) -> str:
    """Return what tells a row from the others of a report, or, where all are the same workload, which one that is."""
    return label(row, varied or ("model_name", "model_max_length", "batch_size"))


def worded(name: str, value: Any) -> str:
    """Return a property and its value in words; names and stacks speak for themselves."""
    if name in (*KEYS, "model_name"):
        return shown(value)
    if name in SHORT:
        return SHORT[name].format(shown(value)) + ("s" if name.startswith("number_") and value != 1 else "")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {shown(value)}"


def grouped_names(rows: Sequence[Row], names: Sequence[str], most: int) -> tuple[dict[str, list[Row]], list[str]]:
    """Return rows by label in at most ``most`` groups, and the names that had to stay out of the labels for that."""
    kept: list[str] = []
    for name in names:
        if len({label(row, [*kept, name]) for row in rows}) <= most:
            kept.append(name)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row, kept), []).append(row)
    return groups, [name for name in names if name not in kept]


def memory_kind(rows: Iterable[Row]) -> str | None:
    """Return the kind of memory that these rows can be compared in, or None when none has any."""
    rows = list(rows)
    return next((name for name in MEMORY if any(row.output(name) is not None for row in rows)), None)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Mapping) else value
