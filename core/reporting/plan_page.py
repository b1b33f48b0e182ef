"""What ``plan`` writes: a page, a picture, and ado's space and operation files. Imports matplotlib, jinja2 and yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml

from ..workload.experiments import KINDS
from .figure_style import INK, SIZE, STYLE, Drawing, legend, plain_axes, render, style_of
from .page_style import SHEET
from .rows import DEFAULTS
from .templates import template

# a picture of more bars cannot be read
MOST_BARS = 24
# height of a bar, where one row has height 1
BAR = 0.4
OPERATION: Mapping[str, Any] = {
    "spaces": ["your-space"],
    "operation": {
        "module": {"operationType": "explore", "operatorName": "random_walk"},
        "parameters": {
            "numberEntities": "all",
            "batchSize": 1,
            "singleMeasurement": True,
            "samplerConfig": {"samplerType": "generator", "mode": "sequential"},
        },
    },
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of the plan.

    Attributes:
        values: the properties of its workload; ``batch_size`` is the largest that fits.
        cells: its texts in the table.
        parts_gib: predicted memory of a GPU by kind, GiB.
        usable_gib: what a GPU can give, GiB.
        fits: whether one sample a GPU fits.
        best: whether it is the cheapest that fits.
    """

    values: Mapping[str, Any]
    cells: Sequence[str]
    parts_gib: Mapping[str, float]
    usable_gib: float
    fits: bool
    best: bool


def write(
    directory: Path,
    actuator: str,
    title: str,
    head: Sequence[str],
    candidates: Sequence[Candidate],
    notes: Sequence[str],
) -> list[str]:
    """Write the page, the picture and ado's files; return the names of the files.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        drawing = _drawing(candidates)
    filled = [index for index in range(len(head)) if any(one.cells[index] for one in candidates)]
    files: dict[str, bytes] = {"memory.png": render(drawing, "png")}
    page = template("plan.html.jinja").render(
        title=title,
        sheet=SHEET,
        head=[head[index] for index in filled],
        lines=[(one.best, [one.cells[index] for index in filled]) for one in candidates],
        notes=[note for note in notes if note],
        picture=drawing,
        svg=render(drawing, "svg").decode(),
    )
    files["plan.html"] = page.encode()
    for name, space in spaces(actuator, candidates).items():
        files[f"space-{name}.yaml"] = yaml.safe_dump(space, sort_keys=False).encode()
    files["operation.yaml"] = yaml.safe_dump(dict(OPERATION), sort_keys=False).encode()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return [str(directory / name) for name in files]


def spaces(actuator: str, candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """Return ado's space of each candidate that fits, by a name for its file: with one sample a GPU, and with the largest batch."""
    return {_name(one): _space(actuator, one) for one in candidates if one.fits}


def _name(candidate: Candidate) -> str:
    values = candidate.values
    checkpointing = "-checkpointing" if values["gradient_checkpointing"] else ""
    return f"{values['gpu_model']}-{values['number_gpus']}-{values['method']}{checkpointing}".lower()


def _space(actuator: str, candidate: Candidate) -> dict[str, Any]:
    values = dict(candidate.values)
    method, largest = values.pop("method"), values.pop("batch_size")
    required = ("model_name", "model_max_length", "number_gpus")
    domains = {
        **{name: [values.pop(name)] for name in required},
        "batch_size": sorted({candidate.values["number_gpus"], largest}),
    }
    experiment_name = f"finetune_{method}_benchmark"
    defaults = {**DEFAULTS, **KINDS[experiment_name].defaults}
    experiment = {
        "actuatorIdentifier": actuator,
        "experimentIdentifier": experiment_name,
        "experimentVersion": "1.0.0",
        "parameterization": [
            {"property": {"identifier": name}, "value": value}
            for name, value in sorted(values.items())
            # ado rejects a value that is the default
            if name not in defaults or value != defaults[name]
        ],
    }
    return {
        "sampleStoreIdentifier": "default",
        "metadata": {"name": f"candidate {_name(candidate)} of a plan"},
        "experiments": [experiment],
        "entitySpace": [_domain(name, allowed) for name, allowed in domains.items()],
    }


def _domain(name: str, allowed: list[Any]) -> dict[str, Any]:
    named = {"variableType": "CATEGORICAL_VARIABLE_TYPE"} if isinstance(allowed[0], str) else {}
    return {"identifier": name, "propertyDomain": {**named, "values": allowed}}


def _drawing(candidates: Sequence[Candidate]) -> Drawing:
    figure, axes = plain_axes()
    shown = list(candidates)[:MOST_BARS]
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.set_size_inches(SIZE[0], 0.5 * len(shown) + 1.4)
    rows = range(len(shown))
    left = [0.0] * len(shown)
    for index, kind in enumerate(shown[0].parts_gib if shown else ()):
        widths = [one.parts_gib[kind] for one in shown]
        axes.barh(rows, widths, left=left, label=kind, color=style_of(index)["color"], height=BAR)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for row, one in zip(rows, shown, strict=True):
        axes.plot([one.usable_gib] * 2, [row - BAR / 2, row + BAR / 2], color=INK, linewidth=1.6)
        # above its bar, so that a narrow screen has room for both
        axes.annotate(_label(one), (0, row - BAR / 2), xytext=(0, 2), textcoords="offset points")
    axes.set_yticks([])
    axes.set_ylim(len(shown) - 0.5, -0.9)
    axes.set_xlabel("GiB on each GPU")
    legend(figure, axes)
    cut = f" The first {MOST_BARS} of {len(candidates)}." if len(candidates) > MOST_BARS else ""
    caption = f"Predicted memory of each GPU with one sample; the upright line is what the GPU can give.{cut}"
    return Drawing("memory", "Memory by part", caption, figure)


def _label(candidate: Candidate) -> str:
    values = candidate.values
    checkpointing = ", checkpointing" if values["gradient_checkpointing"] else ""
    return f"{values['number_gpus']} x {values['gpu_model']}, {values['method']}{checkpointing}"
