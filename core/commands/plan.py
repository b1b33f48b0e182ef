"""The ``plan`` command: which GPUs and which method a model can be fine-tuned with, how fast at most and at what cost, without a GPU."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import failures
from ..host.local import Local
from ..host.state_dir import state_dir
from ..measurement.plan import Plan, make_plan
from ..measurement.plugin import Plugin
from ..metrics import accelerators, roofline
from ..metrics.accelerators import GIB
from ..protocol.outside import between_devices_bytes
from ..protocol.results import ResultMetadata
from ..workload.experiments import KINDS
from ..workload.fields import Workload
from ..workload.validation import parse
from .arguments import BadUse, read_settings, read_workload
from .console import show
from .progress import Bar, Changes, terminated_as_interrupted

EXPERIMENT = "finetune_memory_estimate"
METHODS = ("full", "lora", "qlora")
# what a plan takes where nothing is said; the rest is as in Workload
DEFAULTS: Mapping[str, Any] = {"torch_dtype": "bfloat16", "model_max_length": 2048}
# how often the length is halved in search of something that fits
MOST_HALVINGS = 4
# what a plan varies itself
VARIED = ("batch_size", "number_gpus", "number_nodes", "distributed_backend")
MOST_GIB = next(rule.le for rule in Workload.model_fields["gpu_memory_gib"].metadata if hasattr(rule, "le"))
HEAD = (
    "GPU",
    "GPUs",
    "method",
    "checkpointing",
    "fits",
    "needs",
    "usable",
    "largest batch",
    "tokens/s <=",
    "limited by",
    "USD/M >=",
)


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One way to train, on one type of GPU.

    Attributes:
        values: the properties of its workload, with the largest batch that fits.
        fits: whether ``batch_size`` of one sample a GPU fits.
        parts_bytes: predicted memory of a GPU by kind, with one sample on each; ``unused`` lies between blocks of the allocator.
        usable_bytes: what a GPU can give, beside the others.
        largest_batch_size: of all GPUs; 0: none.
        limit: bound on the speed at the largest batch, or None.
        usd_per_million_tokens: bound on the cost, where the price is known.
    """

    values: dict[str, Any]
    fits: bool
    parts_bytes: dict[str, int]
    usable_bytes: int
    largest_batch_size: int
    limit: roofline.Limit | None
    usd_per_million_tokens: float | None


def main(
    plugin: Plugin,
    parameters_class: type[Any],
    workload: list[str],
    *,
    prices: list[str],
    output: Path | None,
    config: Path | None,
) -> int:
    """Run the command; return its exit status: 0 something fits, 1 nothing does or the workload is impossible, 2 usage error.

    Args:
        plugin: to estimate with.
        parameters_class: class of the actuator configuration's parameters.
        workload: files and property=value pairs; ``gpu_model`` may name several types, separated by commas.
        prices: ``NAME=USD`` for an hour of a GPU of that type.
        output: where to write the page, the picture and ado's files; None: nowhere.
        config: a file with the actuator configuration's parameters.
    """
    try:
        values, _ = read_workload(workload, EXPERIMENT, plugin)
        unused = [name for name in VARIED if name in values]
        values = {**DEFAULTS, **{name: value for name, value in values.items() if name not in unused}}
        devices = _devices(values.pop("gpu_model", None), values.pop("gpu_memory_gib", None))
        cost = _prices(prices, devices)
        chosen = read_settings(config, parameters_class)
        progress = Bar() if sys.stderr.isatty() else Changes()
        with (
            terminated_as_interrupted(),
            progress,
            Local(plugin, chosen, state_dir(chosen.state_dir), progress) as local,
        ):
            rows, notes = _rows(local, plugin.identifier, values, devices, cost)
            if unused:
                notes.append(f"Not used: {', '.join(unused)}, which plan varies itself.")
            if rows and not any(row.fits for row in rows):
                estimated = {row.values["method"] for row in rows}
                method = next((name for name in reversed(METHODS) if name in estimated), rows[0].values["method"])
                notes += _suggestions(local, plugin.identifier, {**values, "method": method}, devices, cost)
    except (failures.Failure, BadUse) as failure:
        print(failures.plain_message(str(failure), failures.LONGEST_ON_TERMINAL), file=sys.stderr)
        return 1 if isinstance(failure, failures.CannotRun) else 2
    except KeyboardInterrupt as interruption:
        print("Interrupted. Nothing of this plan is kept.", file=sys.stderr)
        return 128 + (signal.SIGTERM if interruption.args else signal.SIGINT)
    show("\n".join([*sentences(rows), "", table(rows)]))
    show("\n".join(["", *legend(rows), *notes]))
    if output is not None:
        try:
            files = _write(output, plugin.identifier, values, rows, notes)
        except ImportError as error:
            print(f"--output needs the package {error.name}: pip install {error.name}.", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"--output {output}: {error.strerror}. Give another directory.", file=sys.stderr)
            return 2
        show(f"\nwritten: {', '.join(files)}")
    return 0 if any(row.fits for row in rows) else 1


def _devices(named: Any, memory_gib: Any) -> dict[str, int]:
    """Return the usable bytes of each GPU that is named, or of the one whose memory is given.

    Raises:
        BadUse: one is not known; nothing has been traced yet.
    """
    names = [name.strip() for name in str(named or "").split(",") if name.strip()]
    known = ", ".join(accelerators.NAMES)
    if memory_gib is not None:
        return {_one(names): _given_bytes(memory_gib)}
    if not names:
        raise BadUse(f"plan needs gpu_model=NAME,NAME,... or gpu_memory_gib=NUMBER; names are: {known}.")
    found = {name: accelerators.usable_bytes(name) for name in names}
    if unknown := [name for name, usable in found.items() if usable is None]:
        raise BadUse(f"gpu_model {unknown[0][:60]!r} is not known; set gpu_memory_gib, or use: {known}.")
    return {name: usable for name, usable in found.items() if usable is not None}


def _one(names: list[str]) -> str:
    if len(names) > 1:
        raise BadUse(f"gpu_memory_gib is that of one GPU, and gpu_model names {len(names)}: name one, or none.")
    return names[0] if names else "GPU"


def _given_bytes(memory_gib: Any) -> int:
    try:
        gib = float(memory_gib)
        usable = (accelerators.usable_bytes("", gib) or 0) if 0 < gib <= MOST_GIB else 0
    except (TypeError, ValueError):
        usable = 0
    if usable <= 0:
        raise BadUse(
            f"gpu_memory_gib {str(memory_gib)[:20]!r}: expected the GiB of one GPU, more than 0.5, at most {MOST_GIB}."
        )
    return usable


def _prices(given: list[str], devices: Mapping[str, int]) -> dict[str, float]:
    found = {}
    for word in given:
        name, equals, price = word.rpartition("=")
        if not equals:
            raise BadUse(f"--price {word[:60]!r} has no price; expected NAME=USD, such as {next(iter(devices))}=2.5.")
        if name not in devices:
            raise BadUse(
                f"--price {word[:60]!r} names no GPU of gpu_model; expected NAME=USD with one of: {', '.join(devices)}."
            )
        try:
            found[name] = float(price)
        except ValueError:
            raise BadUse(
                f"--price {word[:60]!r}: {price[:20]!r} is not a number; expected USD for an hour of a GPU."
            ) from None
        if not 0 < found[name] < float("inf"):
            raise BadUse(f"--price {word[:60]!r}: expected USD above 0 for an hour of a GPU.")
    return found


def _rows(
    local: Local, actuator: str, values: dict[str, Any], devices: dict[str, int], cost: Mapping[str, float]
) -> tuple[list[PlanRow], list[str]]:
    """Return a row for each GPU, method, with and without checkpointing, and those of several GPUs where one is too small.

    Where the values name a method, or say whether to checkpoint, there are rows of that only.
    """
    rows: list[PlanRow] = []
    notes: list[str] = []
    first: failures.CannotRun | None = None
    for method in (values["method"],) if "method" in values else METHODS:
        if method in METHODS and method not in KINDS[EXPERIMENT].limits["method"]:
            notes.append(f"Not estimated: method {method}.")
            continue
        try:
            rows += _of_method(local, actuator, {**values, "method": method}, devices, cost)
        except failures.CannotRun as failure:
            # one method may lack a package, or exclude a property; the answers for the others are worth having
            first = first or failure
            notes.append(f"Not estimated: method {method}. {failure}")
    if first is not None and not rows:
        raise first
    order = list(devices)
    return sorted(rows, key=lambda row: order.index(row.values["gpu_model"])), notes


def _of_method(
    local: Local, actuator: str, values: dict[str, Any], devices: dict[str, int], cost: Mapping[str, float]
) -> list[PlanRow]:
    """Return the rows of one method, with and without checkpointing, and those of several GPUs where one is too small."""
    rows: list[PlanRow] = []
    given = values.get("gradient_checkpointing")
    for checkpointing in (False, True) if given is None else (given,):
        asked = {**values, "gradient_checkpointing": checkpointing, "number_gpus": 1, "batch_size": 1}
        rows += _estimated(local, actuator, asked, devices, cost)
    small = {row.values["gpu_model"] for row in rows} - {row.values["gpu_model"] for row in rows if row.fits}
    if small and values["method"] != "qlora":
        asked |= {"number_gpus": 2, "batch_size": 2, "distributed_backend": "FSDP2"}
        rows += _estimated(local, actuator, asked, {name: devices[name] for name in devices if name in small}, cost)
    return rows


def _estimated(
    local: Local, actuator: str, values: dict[str, Any], devices: dict[str, int], cost: Mapping[str, float]
) -> list[PlanRow]:
    """Return the rows of one workload on each GPU, from one trace.

    Raises:
        failures.CannotRun: the workload is impossible.
        failures.Failure: it could not be estimated.
    """
    plan = make_plan(actuator, EXPERIMENT, values)
    plan = dataclasses.replace(plan, quick=True, capacities=devices)
    verdict = local.measure(plan)
    if verdict.message or not verdict.properties.get("is_valid"):
        reason = verdict.message or str(verdict.metadata["reason"])
        raise failures.InvalidConfiguration(reason)
    return list(_read(plan, verdict.metadata, devices, cost))


def _read(
    plan: Plan, metadata: ResultMetadata, devices: Mapping[str, int], cost: Mapping[str, float]
) -> Iterator[PlanRow]:
    for found in metadata["devices"]:
        name, count = found["gpu_model"], found["number_gpus"]
        batch = found["largest_batch_size"] or found["batch_size"]
        values = {**plan.given, "gpu_model": name, "number_gpus": count, "batch_size": batch}
        bound, _ = roofline.limit(
            parse(values),
            metadata["architecture"],
            model_parameters=metadata["model_parameters"],
            trainable_parameters=metadata["trainable_parameters"],
        )
        price = bound.usd_per_million_tokens(cost[name], count) if bound and name in cost else None
        fits = bool(found["fits"])
        usable = devices[name] - between_devices_bytes(plan.workload.distributed_backend, count)
        yield PlanRow(values, fits, found["parts_bytes"], usable, found["largest_batch_size"], bound, price)


def _suggestions(
    local: Local, actuator: str, values: dict[str, Any], devices: dict[str, int], cost: Mapping[str, float]
) -> list[str]:
    """Return what fits when samples are shorter, with the method of the values; each is estimated."""
    length, method = int(values["model_max_length"]), values["method"]
    for _ in range(MOST_HALVINGS):
        length //= 2
        if length < 2:
            break
        asked = {**values, "model_max_length": length, "gradient_checkpointing": True}
        rows = _estimated(local, actuator, {**asked, "number_gpus": 1, "batch_size": 1}, devices, cost)
        fitting = [row for row in rows if row.fits]
        if fitting:
            names = ", ".join(row.values["gpu_model"] for row in fitting)
            return [f"Nothing fits. With model_max_length={length}, {method} with checkpointing fits: {names}."]
    return [f"Nothing fits, not even {method} with checkpointing and model_max_length={length}: take larger GPUs."]


def _write(output: Path, actuator: str, values: dict[str, Any], rows: list[PlanRow], notes: list[str]) -> list[str]:
    from ..reporting import plan_page

    chosen = best(rows)
    candidates = [
        plan_page.Candidate(
            values=row.values,
            cells=cells(row),
            parts_gib={kind: size / GIB for kind, size in row.parts_bytes.items()},
            usable_gib=row.usable_bytes / GIB,
            fits=row.fits,
            best=row is chosen,
        )
        for row in rows
    ]
    title = f"Plan: {values['model_name']}, {values['model_max_length']} tokens"
    return plan_page.write(output, actuator, title, HEAD, candidates, notes)


def best(rows: list[PlanRow]) -> PlanRow | None:
    """Return the cheapest row that fits; without prices the one with the fewest GPUs, then with the smallest memory of a GPU."""
    fitting = [row for row in rows if row.fits]
    priced = [row for row in fitting if row.usd_per_million_tokens is not None]
    if priced:
        return min(priced, key=lambda row: row.usd_per_million_tokens or 0.0)
    return min(fitting, key=lambda row: (row.values["number_gpus"], row.usable_bytes), default=None)


def sentences(rows: list[PlanRow]) -> list[str]:
    """Return a sentence for each GPU: which methods are predicted to fit, on how many GPUs, with which batch."""
    found: dict[str, dict[int, list[str]]] = {}
    for row in rows:
        ways = found.setdefault(row.values["gpu_model"], {})
        if row.fits:
            how = row.values["method"] + (" with checkpointing" if row.values["gradient_checkpointing"] else "")
            ways.setdefault(row.values["number_gpus"], []).append(f"{how} (batch <= {row.largest_batch_size:,})")
    return [
        f"{gpu}: nothing is predicted to fit."
        if not ways
        else f"{gpu}: predicted to fit {'; '.join(f'on {_gpus(count)}: ' + ', '.join(ways[count]) for count in sorted(ways))}."
        for gpu, ways in found.items()
    ]


def _gpus(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"


def legend(rows: list[PlanRow]) -> list[str]:
    """Return what the star of ``table`` means; empty where nothing fits."""
    chosen = best(rows)
    if chosen is None:
        return []
    if chosen.usd_per_million_tokens is not None:
        return ["* the cheapest that fits"]
    return ["* of what fits, the fewest GPUs with the least memory; --price NAME=USD gives the cheapest"]


def cells(row: PlanRow) -> tuple[str, ...]:
    """Return the texts of a row, in the order of ``HEAD``."""
    return (
        row.values["gpu_model"],
        str(row.values["number_gpus"]),
        row.values["method"],
        "yes" if row.values["gradient_checkpointing"] else "no",
        "yes" if row.fits else "no",
        f"{sum(row.parts_bytes.values()) / GIB:.1f}",
        f"{row.usable_bytes / GIB:.1f}",
        f"{row.largest_batch_size:,}" if row.fits else "",
        f"{row.limit.tokens_per_second:,.0f}" if row.fits and row.limit else "",
        row.limit.resource if row.fits and row.limit else "",
        f"{row.usd_per_million_tokens:.3f}" if row.fits and row.usd_per_million_tokens is not None else "",
    )


def table(rows: list[PlanRow]) -> str:
    """Return the rows as text; the cheapest that fits has a star."""
    chosen = best(rows)
    lines = [("", *HEAD), *((("*" if row is chosen else ""), *cells(row)) for row in rows)]
    empty = [column for column in range(len(HEAD) + 1) if not any(line[column] for line in lines[1:])]
    kept = [[cell for column, cell in enumerate(line) if column not in empty or column == 0] for line in lines]
    widths = [max(len(line[column]) for line in kept) for column in range(len(kept[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in kept
    )
