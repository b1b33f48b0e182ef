"""Compares predicted memory with published measurements, the rows of published/measurements.csv.

Needs no GPU. Prints one row per measurement and the errors; ``--output`` writes them as JSON, and as a table beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PLACE = Path(__file__).resolve().parent / "published"
GIB, MIB = 2**30, 2**20
PAGE = PLACE.parent.parent / "docs" / "memory-estimate.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
NOT_RUN = "not run"
GOAL_SINGLE, GOAL_SEVERAL = 0.02, 0.03
# dense models that are small beside the device, in whose rows nothing had to be given back
SMALL_MODELS = ("santacoder", "mistral-7b-v0.1")
# kernels that a trace does not show
UNTRACED = re.compile(r"scattermoe")


@dataclasses.dataclass(frozen=True)
class Row:
    """One published measurement.

    Attributes:
        source: key in sources.yaml.
        configuration: as the source names it.
        values: properties of the workload.
        ran: whether it ended; else it ran out of memory.
        allocated, reserved, device: bytes of torch's peaks and of nvidia-smi; None where not published.
    """

    source: str
    configuration: str
    values: Mapping[str, str]
    ran: bool
    allocated: int | None
    reserved: int | None
    device: int | None

    @property
    def name(self) -> str:
        """The workload in a few words."""
        shown = {"model_name": "", "method": "", "number_gpus": " GPU", "batch_size": " samples"}
        words = " ".join(f"{self.values[key]}{unit}" for key, unit in shown.items())
        return f"{words} ({self.configuration})" if self.configuration not in ("", "none") else words


@dataclasses.dataclass
class Result:
    """A row with its prediction.

    Attributes:
        row: the measurement.
        allocated, reserved: predicted peaks, bytes; ``reserved`` is at most what the device has.
        fits: whether what the allocator needs fits.
        seconds: how long the prediction took.
        message: why there is none.
        needed: bytes of segments with a used block.
        full: whether the allocator would reserve more than the device has.
    """

    row: Row
    allocated: int | None = None
    reserved: int | None = None
    fits: bool | None = None
    seconds: float = 0.0
    message: str = ""
    needed: int | None = None
    full: bool = False

    @property
    def error(self) -> float | None:
        """Predicted over measured peak of allocated, else reserved memory, less 1."""
        for predicted, measured in ((self.allocated, self.row.allocated), (self.reserved, self.row.reserved)):
            if predicted and measured:
                return predicted / measured - 1
        return None

    @property
    def single(self) -> bool:
        """Whether the row is of one GPU."""
        return self.row.values["number_gpus"] == "1"

    @property
    def outside(self) -> bool:
        """Whether the error of allocated memory exceeds the goal: 2 % on one GPU, 3 % on several."""
        limit = GOAL_SINGLE if self.single else GOAL_SEVERAL
        return self.row.allocated is not None and self.error is not None and abs(self.error) > limit


def rows() -> list[Row]:
    """Return all published measurements."""
    sources = yaml.safe_load((PLACE / "sources.yaml").read_text())
    with (PLACE / "measurements.csv").open(newline="") as file:
        return [_row(line, sources[line["source"]]) for line in csv.DictReader(file)]


def _row(line: Mapping[str, str], source: Mapping[str, str]) -> Row:
    values = dict(pair.split("=", 1) for pair in f"{source['workload']} {line['workload']}".split())
    device = float(line["device_mib"]) * MIB if line["device_mib"] else None
    return Row(
        source=line["source"],
        configuration=line["configuration"],
        values=values,
        ran=line["ran"] == "1",
        allocated=int(line["peak_allocated_bytes"] or 0) or None,
        reserved=int(line["peak_reserved_bytes"] or 0) or None,
        device=None if device is None else int(device),
    )


def predict(row: Row) -> Result:
    """Return the row with its prediction, made in this process."""
    from ado_actuators.sfttrainer.core.measurement.plan import make_plan
    from ado_actuators.sfttrainer.core.metrics import memory_estimate
    from ado_actuators.sfttrainer.core.trainer.memory_estimate.estimate import Estimator

    begin = time.perf_counter()
    if message := _impossible(row):
        return Result(row, message=message)
    stack = _stack(row)
    try:
        values, architecture = _typed(row.values)
        method = values["method"]
        # the plugins measure quantised methods on one GPU only, and each with one library
        asked = {**values, "method": "lora" if method in ("qlora", "gptq_lora") else method}
        plan = make_plan("sfttrainer", "finetune_memory_estimate", asked)
        job = plan.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
        job = dataclasses.replace(job, workload=dataclasses.replace(job.workload, method=method))
        with tempfile.TemporaryDirectory() as directory, _quiet():
            job = dataclasses.replace(job, run_dir=directory, architecture=architecture or job.architecture)
            estimator = Estimator(stack, job, lambda message: None)
            peaks = estimator.peaks(job.workload.batch_size // estimator.processes)
    except Exception as error:  # a row that cannot be estimated must not end the others
        return Result(row, message=f"{type(error).__name__}: {error}"[:160], seconds=time.perf_counter() - begin)
    allocated = max(peak.total for peak in peaks.values())
    usable = memory_estimate.usable_bytes(plan.workload)
    held = estimator.reserved[job.workload.batch_size // estimator.processes]
    fits = None if usable is None else held.needed <= usable
    reserved = held.most if usable is None else min(held.most, max(usable, held.needed))
    full = usable is not None and held.most > usable
    return Result(row, allocated, reserved, fits, time.perf_counter() - begin, needed=held.needed, full=full)


def _impossible(row: Row) -> str:
    """Return why a row cannot be predicted; empty if it can."""
    if not yaml.safe_load((PLACE / "sources.yaml").read_text())[row.source]["stack"]:
        return "the workload is not published in full"
    found = UNTRACED.search(row.configuration)
    return f"kernels of {found.group()} are not traced" if found else ""


def _stack(row: Row) -> Any:
    import published_stack

    source = yaml.safe_load((PLACE / "sources.yaml").read_text())[row.source]
    found: Any = {
        "TRL 1.4": published_stack.LossOfTorch(),
        "transformers 4.48": published_stack.PlainTrainer(
            older=True,
            # PEFT's preparation, which the accelerated configurations leave out, and TRL does not make under FSDP
            prepares=row.configuration == "baseline-peft-bnb" and row.values["number_gpus"] == "1",
            fused="foak" in row.configuration,
            gptq_group=source.get("gptq_groups", {}).get(row.values["model_name"], 128),
        ),
        "transformers 5": published_stack.PlainTrainer(older=False),
    }[source["stack"]]
    return published_stack.WithAccelerate(found, source["accelerate"])


def _typed(given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return property values with their types, and the architecture of a model that the catalogue does not name."""
    values = {name: yaml.safe_load(value) for name, value in given.items()}
    own = yaml.safe_load((PLACE / "architectures.yaml").read_text())
    architecture = own.get(values["model_name"])
    if architecture:
        # any name of the catalogue does; its architecture is replaced
        values["model_name"] = "tiny-llama-5m"
    return values, architecture


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of predicted against measured."""
    lines = [
        "| workload | measured, GiB | predicted, GiB | error | device, GiB | reserved, GiB | fits | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        row = result.row
        measured = row.allocated or row.reserved
        lines.append(
            f"| {row.name} | {_gib(measured) if row.ran else 'out of memory'} | {_gib(result.allocated)} | "
            f"{'' if result.error is None else f'{100 * result.error:+.2f} %'} | {_gib(row.device)} | {_gib(result.reserved)} | "
            f"{'' if result.fits is None else int(result.fits)} | {result.message or f'{result.seconds:.1f}'} |"
        )
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """Return the errors in a few lines, with the rows outside the goals and those whose ``fits`` is wrong."""
    lines = []
    groups = {
        "one GPU": [r for r in results if r.row.allocated is not None and r.single],
        "several GPUs": [r for r in results if r.row.allocated is not None and not r.single],
        # of programs other than the trainers of the stacks, with samples of unknown lengths
        "reserved memory only": [r for r in results if r.row.allocated is None],
    }
    for title, group in groups.items():
        errors = [100 * r.error for r in group if r.error is not None]
        if errors:
            lines.append(
                f"{title}: {len(errors)} rows, error {min(errors):+.2f} to {max(errors):+.2f} %, "
                f"median of its size {statistics.median(map(abs, errors)):.2f} %"
            )
    known, wrong = verdicts(results)
    share = f" ({100 * (1 - len(wrong) / len(known)):.1f} %)" if known else ""
    lines.append(
        f"fits: {len(known) - len(wrong)} of {len(known)} predicted correctly{share}" if known else "fits: no row"
    )
    lines += [f"fits is wrong: {_described(result)}" for result in wrong]
    lines += [f"outside the goal: {_described(result)}" for result in results if result.outside]
    for count, sizes in outside(results).items():
        lines.append(
            f"nvidia-smi less reserved, {count} GPU: {len(sizes)} rows, {_gib(sizes[0])} to {_gib(sizes[-1])} GiB, "
            f"median {statistics.median(sizes) / GIB:.2f} GiB"
        )
    missing = sum(result.message == NOT_RUN for result in results)
    impossible = sum(bool(result.message) for result in results) - missing
    lines.append(f"not predicted: {impossible} of {len(results)} rows")
    lines += [f"not run: {missing} of {len(results)} rows"] if missing else []
    return "\n".join(lines)


def verdicts(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Return the rows with a prediction of whether they fit, and those of them where it is wrong."""
    known = [result for result in results if result.fits is not None]
    return known, [result for result in known if result.fits != result.row.ran]


def by_kind(results: Sequence[Result]) -> str:
    """Return a Markdown table with a line for each model, method, number of GPUs and kind of kernels."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        values = result.row.values
        kernels = "fused" if "foak" in result.row.configuration else "plain"
        key = (values["model_name"], values["method"], values["number_gpus"], kernels)
        if not result.message:
            groups.setdefault(key, []).append(result)
    lines = [
        "| model | method | GPUs | kernels | measured, GiB | error | ran | out of memory | fits is right |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group, rows_of in groups.items():
        sizes = [row.allocated or row.reserved for row in (result.row for result in rows_of) if row.ran]
        errors = [100 * result.error for result in rows_of if result.error is not None]
        known, wrong = verdicts(rows_of)
        ran = sum(result.row.ran for result in rows_of)
        spread = _range([f"{_gib(size)}" for size in sorted(filter(None, sizes))], "")
        found = _range([f"{error:+.2f}" for error in sorted(errors)], " %")
        lines.append(
            f"| {' | '.join(group)} | {spread} | {found} | {ran} | {len(rows_of) - ran} | "
            f"{len(known) - len(wrong)} of {len(known)} |"
        )
    return "\n".join(lines)


def write_docs(results: Sequence[Result], page: Path = PAGE) -> None:
    """Replace the part of the page on memory estimates that this script makes."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{by_kind(results)}\n\n```text\n{summary(results)}\n```\n{END}{after}")


def outside(results: Sequence[Result]) -> dict[str, list[int]]:
    """Return by which bytes nvidia-smi exceeds the replay of the allocator, by number of GPUs, in increasing order.

    Of ``SMALL_MODELS`` with plain kernels, where the device had memory left.
    """
    found: dict[str, list[int]] = {}
    for result in results:
        row, values = result.row, result.row.values
        plain = values["model_name"] in SMALL_MODELS and "foak" not in row.configuration
        if row.ran and plain and row.device and result.reserved and not result.full:
            found.setdefault(values["number_gpus"], []).append(row.device - result.reserved)
    return {count: sorted(sizes) for count, sizes in found.items()}


def _described(result: Result) -> str:
    error = "" if result.error is None else f", error {100 * result.error:+.2f} %"
    measured = "ran" if result.row.ran else "ran out of memory"
    return f"{result.row.name} ({measured}, needs {_gib(result.allocated)} GiB allocated{error})"


def _range(values: Sequence[str], unit: str) -> str:
    if not values:
        return ""
    return f"{values[0]}{unit}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}{unit}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the rows asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="regular expression that the name of a row contains")
    parser.add_argument("--output", type=Path, help="JSON file to write; the table goes beside it as .md")
    parser.add_argument("--resume", action="store_true", help="take the rows that the output file has from it")
    parser.add_argument(
        "--docs", action="store_true", help="write the table and the summary into docs/memory-estimate.md"
    )
    parser.add_argument(
        "--stored", action="store_true", help="predict nothing, and take the rows that the output file has"
    )
    asked = parser.parse_args(argv)
    reads = (asked.resume or asked.stored) and asked.output and asked.output.exists()
    known = [one for one in _read(asked.output) if one.message != NOT_RUN] if reads else []
    results: list[Result] = []
    for row in rows():
        if re.search(asked.rows, f"{row.source}: {row.name}"):
            found = next((one for one in known if one.row == row), None) or _alike(row, results)
            unknown = Result(row, message=_impossible(row) or NOT_RUN) if asked.stored else None
            results.append(found or unknown or predict(row))
            print(table(results[-1:]).splitlines()[-1], flush=True)
            if asked.output:
                # after each row: all of them take long
                asked.output.write_text(json.dumps([_written(result) for result in results], indent=1) + "\n")
                asked.output.with_suffix(".md").write_text(f"{table(results)}\n\n{summary(results)}\n")
    print(summary(results))
    if asked.docs:
        write_docs(results)
    return 0


def _written(result: Result) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"error": result.error}


def _alike(row: Row, results: Sequence[Result]) -> Result | None:
    """Return the prediction of an earlier row with the same workload and stack, for this row; None without one."""
    for result in results:
        if result.row.values == row.values and not result.message and _stack(result.row) == _stack(row):
            return dataclasses.replace(result, row=row)
    return None


def _read(file: Path) -> list[Result]:
    found = json.loads(file.read_text())
    for one in found:
        del one["error"]
    return [Result(**{**one, "row": Row(**one["row"])}) for one in found]


if __name__ == "__main__":
    sys.exit(main())
