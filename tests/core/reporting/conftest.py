"""Rows for the tests: recorded from a real operation, or made by hand where a CPU cannot give them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.reporting import read
from ado_actuators.sfttrainer.core.reporting.rows import Row

RECORDINGS = Path(__file__).parents[2] / "recordings"
# those of a report on ``everything``
FIGURES = [
    *("throughput-actuator", "throughput-batch-size", "throughput-model-max-length", "throughput-number-gpus"),
    *("stacks", "memory", "frontier", "pareto", "scaling-strong", "scaling-weak", "cost", "energy", "traces"),
]


@pytest.fixture(scope="session")
def recorded() -> list[Row]:
    """Ten results of a real operation on two cores, with metadata: six measured, three that cannot run, one failed."""
    return read.rows(str(RECORDINGS / "operation.yaml"))


@pytest.fixture(scope="session")
def report_of_recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Directory and printed lines of the command ``report`` with page, images and a budget of tokens."""
    directory = tmp_path_factory.mktemp("report") / "a" / "b"
    budget = ["--tokens", "100e6", "--price", "2.5"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["report", str(RECORDINGS / "operation.yaml"), "-o", str(directory), *budget]) == 0
    return directory, printed.getvalue().splitlines()


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    """Function that makes a row of a workload on GPUs; ``tokens`` is its throughput, ``oom`` an out-of-memory."""

    def make(
        tokens: float | None = None, ci: float | None = 1.0, *, oom: bool = False, failed: str = "", **given: Any
    ) -> Row:
        source, actuator = given.pop("source", "test"), given.pop("actuator", "sfttrainer")
        experiment = given.pop("experiment", "finetune_full_benchmark")
        memory, metadata = given.pop("memory", None), given.pop("metadata", {})
        extra = given.pop("outputs", {})
        workload = {"model_name": "m", "model_max_length": 1024, "batch_size": 8, "number_gpus": 1, **given}
        if failed:
            return Row(source, actuator, experiment, workload, {}, failed, metadata)
        if oom:
            return Row(source, actuator, experiment, workload, {"is_valid": 0, "failure": "gpu_oom"}, "", metadata)
        outputs = {"is_valid": 1, "failure": "none", "dataset_tokens_per_second": tokens, **extra}
        if ci is not None:
            outputs["throughput_ci95_percent"] = ci
        if memory is not None:
            outputs["gpu_memory_peak_gib"] = memory
        return Row(source, actuator, experiment, workload, outputs, "", metadata)

    return make


@pytest.fixture(scope="session")
def everything(row: Callable[..., Row]) -> list[Row]:
    """Rows for every figure: two actuators, lengths, batches and numbers of GPUs, some out of memory."""
    rows = []
    for actuator, factor in (("sfttrainer", 1.0), ("fms_hf_tuning", 0.9)):
        for length in (512, 2048):
            for gpus in (1, 2):
                for batch in (4, 8, 16):
                    fits = batch * length <= 16384 * gpus
                    given = {"actuator": actuator, "model_max_length": length, "batch_size": batch, "number_gpus": gpus}
                    outputs = {"energy_joules_per_token": 0.2, "usd_per_million_tokens": 0.1 / factor}
                    metadata = {"step_s": [2.0, 1.1, 1.0, 1.2], "steps": {"warmup": 1}}
                    rows.append(
                        row(1e4 * factor * gpus**0.9 * batch**0.1, 1.5, memory=4 + batch * length / 512, outputs=outputs,
                            metadata=metadata, **given)
                        if fits else row(oom=True, **given)
                    )  # fmt: skip
    return rows


def html_of(rows: list[Row]) -> str:
    """Return the HTML page for these rows."""
    from ado_actuators.sfttrainer.core.reporting import figure_style, figures, page

    drawn, left_out = figures.draw(rows)
    pictures = [
        page.Picture(one.name, one.title, one.caption, figure_style.render(one, "svg").decode()) for one in drawn
    ]
    return page.html(rows, pictures, left_out, "Made by a test.")


@pytest.fixture(scope="session")
def full_page(everything: list[Row], row: Callable[..., Row]) -> str:
    """The page with every figure, and a table of failures."""
    return html_of([*everything, row(failed="the disk is full.", batch_size=32)])
