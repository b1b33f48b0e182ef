"""Measurements in the columns that the recommenders of ado-autoconf train on.

Source: the training guide of ado-autoconf 2.1: its classifier reads model, method, GPUs, GPU model, tokens of a sample, batch and
``is_valid``; its regressor ``dataset_tokens_per_second`` of those that are valid.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable

from .rows import FAILED, THROUGHPUT, Row

COLUMNS = (
    "model_name", "method", "gpu_model", "number_gpus", "tokens_per_sample", "batch_size", "is_valid", THROUGHPUT,
)  # fmt: skip
# its names of methods; it knows no others
METHODS = {
    "finetune_full_benchmark": "full",
    "finetune_lora_benchmark": "lora",
    "finetune_gptq_lora_benchmark": "gptq-lora",
    "finetune_prompt_tuning_benchmark": "pt",
}
OUT_OF_MEMORY = ("gpu_oom", "host_oom")


@dataclasses.dataclass(frozen=True)
class Export:
    """A CSV file.

    Attributes:
        text: its content.
        count: lines without the header.
        left_out: how many measurements are not in it, by reason.
    """

    text: str
    count: int
    left_out: dict[str, int]


def export(rows: Iterable[Row]) -> Export:
    """Return measurements as ado-autoconf trains on them; those that it cannot use are counted."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    count, left_out = 0, dict[str, int]()
    for row in rows:
        if reason := _unusable(row):
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        valid = int(row.outputs["is_valid"])
        writer.writerow(
            [
                row.value("model_name"), METHODS[row.experiment], _gpu_model(row), row.value("number_gpus"),
                row.value("model_max_length"), row.value("batch_size"), valid, row.throughput if valid else "",
            ]
        )  # fmt: skip
        count += 1
    return Export(stream.getvalue(), count, left_out)


def _unusable(row: Row) -> str | None:
    """Return why a measurement cannot be used, or None."""
    failure = row.outputs.get("failure", "none")
    if row.experiment not in METHODS:
        return "no benchmark of a method that it knows"
    if row.state == FAILED or "is_valid" not in row.outputs:
        return "failed"
    if not row.value("number_gpus"):
        return "measured on CPUs"
    if not row.outputs["is_valid"] and failure not in (*OUT_OF_MEMORY, "none"):
        # IBM's actuator does not say why
        return "not tried, or an impossible combination"
    return None if _gpu_model(row) else "GPU model unknown"


def _gpu_model(row: Row) -> str:
    """Return the requested GPU model, else the one that was used, in the form of NVIDIA's node labels."""
    asked = str(row.value("gpu_model"))
    if asked != "any":
        return asked
    devices = (row.metadata.get("device") or {}).get("devices") or []
    return str(devices[0].get("name", "")).replace(" ", "-") if devices else ""
