"""Rows of IBM's own actuator ``SFTTrainer``: its columns and properties under the names that they have here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..protocol.results import ResultMetadata
from ..workload import ibm, ibm_names
from ..workload.ibm_values import number
from .rows import Row, plain, workload_value

PROPERTIES = (*ibm_names.REQUIRED, *ibm_names.DEFAULTS, *ibm_names.ADAPTER_DEFAULTS)
PARAMETER = re.compile(rf"-(?=(?:{'|'.join(PROPERTIES)})\.)")
# wrong if IBM's actuator stopped the run early: it divides the size of the whole data set by the time until then
WRONG_AFTER_STOP = (
    "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second", "train_tokens_per_second_per_gpu",
)  # fmt: skip
# properties in which a study of IBM's actuator and the same study with this project's actuators differ anyway
IGNORED = (
    "fms_hf_tuning_version", "weights", "dataset_id", "dataset_text_field", "max_steps", "num_train_epochs", "stop_after_seconds",
    "min_steps", "target_ci_percent", "cpus_per_process", "seed",
)  # fmt: skip


def is_from(row: Row) -> bool:
    """Whether IBM's actuator measured this row."""
    return row.actuator == ibm_names.ACTUATOR


def row(
    source: str,
    experiment: str,
    properties: Mapping[str, Any],
    outputs: Mapping[str, Any],
    message: str = "",
    metadata: ResultMetadata | None = None,
) -> Row | None:
    """Return a measurement of IBM's actuator as a row, or None if it has no such experiment.

    Args:
        source: where it was read.
        experiment: IBM's identifier of the experiment.
        properties: its properties that were given, by IBM's names.
        outputs: what it measured, by IBM's names; None where it did not.
        message: why it failed, or empty.
        metadata: of ado's result.
    """
    ours = ibm_names.EXPERIMENTS.get(experiment)
    if ours is None:
        return None
    given = {name: value for name, value in properties.items() if name in PROPERTIES}
    workload = {name: workload_value(name, value) for name, value in ibm.workload(ours, given).items()}
    # what was measured, not what a translation would measure
    for name in ("fms_hf_tuning_version", "dataset_id"):
        workload[name] = str(given.get(name, ibm_names.DEFAULTS[name]))
    return Row(source, ibm_names.ACTUATOR, ours, workload, _outputs(given, outputs), message, metadata or {})


def from_cells(cells: Mapping[str, Any], source: str, bookkeeping: tuple[str, ...]) -> Row | None:
    """Return the row of a line of ado's export; ``bookkeeping`` names the columns that are neither properties nor outputs."""
    reference = str(cells["experiment_id"]).partition(".")[2]
    experiment, *pieces = PARAMETER.split(reference)
    pairs = (piece.partition(".") for piece in pieces)
    parameters = {name: plain(value) for name, _, value in pairs}
    columns = {name: plain(value) for name, value in cells.items() if name and name not in bookkeeping}
    given = {name: value for name, value in columns.items() if name in PROPERTIES and value is not None}
    outputs = {name: value for name, value in columns.items() if name not in PROPERTIES}
    return row(source, experiment, parameters | given, outputs, str(plain(cells.get("reason")) or ""))


def _outputs(given: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    named = {ibm_names.OUTPUTS.get(name, name): value for name, value in outputs.items() if value is not None}
    # without GPUs it reports 0 for them
    on_cpu = not given.get("number_gpus")
    stated = {name: value for name, value in given.items() if value not in (None, "None")}
    after = number("stop_after_seconds", stated.get("stop_after_seconds", -1))
    stopped = after > 0 or "auto_stop_method" in stated
    return {
        name: value
        for name, value in named.items()
        if name and not (on_cpu and name.startswith("gpu_")) and not (stopped and name in WRONG_AFTER_STOP)
    }


def key(row: Row) -> tuple[Any, ...]:
    """Return what makes two rows the same workload, whichever actuator measured it and when it ended."""
    asked = ((name, row.value(name)) for name in row.workload)
    return (row.experiment, *sorted((pair for pair in asked if not _is_ignored(row, *pair)), key=lambda pair: pair[0]))


def _is_ignored(row: Row, name: str, value: Any) -> bool:
    backend = name == "distributed_backend" and row.devices < 2
    return name in IGNORED or backend or row.is_default(name)
