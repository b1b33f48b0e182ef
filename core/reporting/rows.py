"""One measurement of a report: the workload, its outputs, and the message where there are none. Imports pydantic."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from ..protocol.results import ResultMetadata
from ..workload.experiments import KINDS
from ..workload.fields import Workload

THROUGHPUT = "dataset_tokens_per_second"
INTERVAL = "throughput_ci95_percent"
# ado's export writes this where there is no value
NOT_MEASURED = "not_measured"
# memory metrics in order of preference: the driver's value decides whether a workload fits
MEMORY = {
    "gpu_memory_peak_gib": "peak memory of a GPU",
    "torch_peak_reserved_gib": "peak memory reserved by torch",
    "cpu_memory_peak_gib": "peak memory of the training processes",
}
MEASURED, CANNOT_RUN, FAILED = "measured", "cannot run", "failed"
GIVEN = tuple(Workload.model_fields)
REQUIRED = tuple(name for name, field in Workload.model_fields.items() if field.is_required())
DEFAULTS = {name: field.default for name, field in Workload.model_fields.items() if not field.is_required()}
# ``Row.method`` gives the method: most experiments have it in their name instead of a property
FIELDS = tuple(name for name in GIVEN if name != "method")
# attributes of a row that labels have before the properties of the workload
KEYS = ("source", "actuator", "method")
# short forms for labels
SHORT = {"model_max_length": "length {}", "batch_size": "batch {}", "number_gpus": "{} GPU", "number_nodes": "{} node"}
PARAMETER = re.compile(rf"-(?=(?:{'|'.join(GIVEN)})\.)")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        source: where the row was read: the name of a file, or an identifier in ado's store.
        actuator: identifier of the actuator.
        experiment: identifier of the experiment, without version.
        workload: property values by name; properties with their default may be absent.
        outputs: measured values by identifier.
        message: why the workload cannot run or failed; empty where that is not known.
        metadata: metadata of ado's result; a CSV file has none.
        replayed: whether ado showed a stored measurement of an earlier operation instead of measuring.
    """

    source: str
    actuator: str
    experiment: str
    workload: dict[str, Any]
    outputs: dict[str, Any]
    message: str = ""
    metadata: ResultMetadata = dataclasses.field(default_factory=lambda: ResultMetadata())
    replayed: bool = False

    @property
    def state(self) -> str:
        """``measured``, ``cannot run`` or ``failed``."""
        if "is_valid" not in self.outputs:
            return MEASURED if self.outputs else FAILED
        return MEASURED if self.outputs["is_valid"] else CANNOT_RUN

    @property
    def method(self) -> str:
        """The experiment's short name, such as ``full`` for ``finetune_full_benchmark``, and the method where it was given."""
        short = self.experiment.removeprefix("finetune_").removesuffix("_benchmark")
        return f"{short} of {self.workload['method']}" if "method" in self.workload else short

    @property
    def throughput(self) -> float | None:
        """Real tokens per second of all devices."""
        return number(self.outputs.get(THROUGHPUT))

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % confidence interval of the throughput, as a fraction of the throughput."""
        percent = number(self.outputs.get(INTERVAL))
        return None if percent is None else percent / 100

    @property
    def devices(self) -> int:
        """Number of training processes: one per GPU, or one per node without GPUs."""
        return int(self.workload.get("number_gpus") or self.workload.get("number_nodes") or 1)

    def value(self, name: str) -> Any:
        """Return a property's value, or its default where none was given, or an attribute from ``KEYS``."""
        if name in KEYS:
            return getattr(self, name)
        return self.workload[name] if name in self.workload else self._default(name)

    def output(self, name: str) -> float | None:
        """Return an output as a number, or None."""
        return number(self.outputs.get(name))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows of the same workload: actuator, experiment and all properties that differ from their default."""
        asked = sorted((name, self.value(name)) for name in self.workload if not self.is_default(name))
        return (self.actuator, self.experiment, *asked)

    def is_default(self, name: str) -> bool:
        """Whether a property that was given has its default."""
        default = self._default(name)
        return default is not None and self.workload[name] == default

    def _default(self, name: str) -> Any:
        """Return the default that the experiment gives a property; None without one."""
        kind = KINDS.get(self.experiment)
        return kind.defaults[name] if kind is not None and name in kind.defaults else DEFAULTS.get(name)


def number(value: Any) -> float | None:
    """Return ``value`` as a finite number, or None."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def plain(value: Any) -> Any:
    """Return a stored value in its own type: 4.0 becomes 4, ``"True"`` True, and an empty text None."""
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
        # -r in /data/train-r.jsonl looks like the property r, but is part of the value before it
        while len(parameters) > 1 and not _is_parameter(parameters[-1]):
            end = parameters.pop()
            parameters[-1] += f"-{end}"
    pairs = (parameter.partition(".") for parameter in parameters)
    return actuator, head.partition("@")[0], {name: workload_value(name, value) for name, _, value in pairs}


def _is_parameter(text: str) -> bool:
    """Whether the value in ``name.value`` is valid for the property, as text or in its own type."""
    name, _, value = text.partition(".")
    return any(_takes(name, candidate) for candidate in (value, plain(value)))


def _takes(name: str, value: Any) -> bool:
    try:
        Workload.model_validate({name: value})
    except pydantic.ValidationError as error:
        # errors of other properties, which are missing, do not matter
        return all(one["loc"][0] != name for one in error.errors())
    return True


def differing(rows: Iterable[Row]) -> list[str]:
    """Return the properties, ``KEYS`` first, in which these rows differ."""
    rows = list(rows)
    names = [*KEYS, *FIELDS]
    return [name for name in names if len({_hashable(row.value(name)) for row in rows}) > 1]


def shown(value: Any, longest: int = 28) -> str:
    """Return a value as a label of at most ``longest`` characters, cut at the front, since the end of a path identifies it better."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= longest else "…" + text[1 - longest :]


def yes_or_no(value: bool) -> str:
    """Return a truth value in words."""
    return "yes" if value else "no"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 workload``, ``2 workloads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def label(row: Row, names: Iterable[str]) -> str:
    """Return the values of ``names`` in a row as a label."""
    return ", ".join(worded(name, row.value(name)) for name in names)


def workload_label(row: Row, varied: Sequence[str]) -> str:
    """Return the label of a row by the varied properties, or by the model and its sizes where none is varied."""
    return label(row, varied or ("model_name", "model_max_length", "batch_size"))


def worded(name: str, value: Any) -> str:
    """Return a property and its value for a label; models and stacks are clear without the property's name."""
    if name in (*KEYS, "model_name"):
        return shown(value)
    if name in SHORT:
        return SHORT[name].format(shown(value)) + ("s" if name.startswith("number_") and value != 1 else "")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {shown(value)}"


def grouped_names(rows: Sequence[Row], names: Sequence[str], most: int) -> tuple[dict[str, list[Row]], list[str]]:
    """Return at most ``most`` groups of rows by label, and the names that the labels leave out to keep to that number."""
    kept: list[str] = []
    for name in names:
        if len({label(row, [*kept, name]) for row in rows}) <= most:
            kept.append(name)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row, kept), []).append(row)
    return groups, [name for name in names if name not in kept]


def memory_kind(rows: Iterable[Row]) -> str | None:
    """Return the preferred memory metric that at least one row has, or None."""
    rows = list(rows)
    return next((name for name in MEMORY if any(row.output(name) is not None for row in rows)), None)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Mapping) else value
