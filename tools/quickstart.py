"""The quickstart after its installation: measures the space of an example, writes a report, and prints the results.

Run by `nox -s quickstart` in the example's directory, with the plugin installed. Arguments are passed on to `ado create operation`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ado_actuators.sfttrainer.core.reporting import answers, read, tables
from ado_actuators.sfttrainer.core.reporting.rows import Row, differing, workload_label
from ado_actuators.sfttrainer.core.workload.wording import rounded

BIN = Path(sys.executable).parent
FILES = ("--with", "space=space.yaml", "--with", "actuatorconfiguration=actuatorconfiguration.yaml")
# what ado prints where Ray took longer than the 30 s that it allows a node to start; no setting changes them
RAY_TOO_SLOW = "timed out during startup"
BUSY = "The machine is busy: Ray did not start within its limit of 30 s. Trying once more."
# what to try next, with the same environment: a question of its own each
NEXT = (
    "run model_name=smollm2-135m model_max_length=64 batch_size=2 number_gpus=0 method=lora",
    "plan model_name=llama3.1-8b model_max_length=2048 gpu_model=RTX-4090,L40S,H100",
)


def main(arguments: Sequence[str]) -> int:
    """Measure, report and conclude; return the exit status of the command that failed, or 0."""
    say("Measuring four workloads: two models with random weights, each with two batch sizes.")
    measure = [str(BIN / "ado"), "create", "operation", "-f", "operation.yaml", *FILES, *arguments]
    if status := run_with_retry(measure):
        return status
    output = Path("../../ado-report")
    reported = subprocess.run(
        [str(BIN / "ado-sfttrainer"), "report", "latest", "--output", str(output)], stdout=subprocess.PIPE, check=False
    )
    if reported.returncode:
        return reported.returncode
    print("\n".join(["", *conclusion(read.rows("latest"), output.resolve())]), flush=True)
    return 0


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def run_with_retry(command: Sequence[str]) -> int:
    """Run a command and pass on its output; once more if Ray was too slow. Return its exit status."""
    status, printed = run(command)
    if status and RAY_TOO_SLOW in printed:
        say(BUSY)
        status, _ = run(command)
    return status


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; return its exit status and its output, which is passed on line by line."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    return process.returncode, "".join(lines)


def conclusion(rows: Sequence[Row], report: Path) -> list[str]:
    """Return the last lines: each rate with its interval and what makes it less sure, where the report is, and two commands to try next."""
    measured = tables.with_throughput(rows)
    varied = [name for name in differing(measured) if name != "source"]
    labels = [workload_label(row, varied) for row in measured]
    width = max(map(len, labels), default=0)
    kind, _ = tables.memory_and_rate(measured)
    lines = [
        f"{label:<{width}}  {answers.rate(row)}{_memory(row, kind)}"
        for label, row in zip(labels, measured, strict=True)
    ]
    picture = next(iter(sorted(report.glob("throughput-*.png"))), report / "report.html")
    command = shlex.quote(str(BIN / "ado-sfttrainer"))
    return [
        *lines,
        *filter(None, [answers.replayed(rows), answers.busy(rows)]),
        "",
        f"Picture: {picture}",
        f"Report:  {report / 'report.html'}",
        "",
        "Try next:",
        *(f"  {command} {words}" for words in NEXT),
    ]


def _memory(row: Row, kind: str | None) -> str:
    value = row.output(kind) if kind else None
    return "" if value is None else f", {rounded(value)} GiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
