"""Shared functions of the benchmarks: workloads, measuring without ado and Ray, hardware description, tables, files.

Imports ``host``, ``measurement``, ``metrics`` and ``workload`` of the installed plugin; neither ado nor Ray is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ado_actuators.sfttrainer.core.host import node
from ado_actuators.sfttrainer.core.host import sampler as devices
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.core.measurement.plugin import Plugin
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict
from ado_actuators.sfttrainer.core.protocol.messages import Progress

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "finetune_full_benchmark"
PLUGIN = Plugin(identifier="sfttrainer", kinds=(EXPERIMENT,))
DISTRIBUTION = "ado-sfttrainer"

# one thread: with two, each step waits for the slower core, which changes on a shared machine
CPU_CASES = {
    "tiny-llama-5m 128x4": {
        "model_name": "tiny-llama-5m",
        "model_max_length": 128,
        "batch_size": 4,
        "number_gpus": 0,
        "cpus_per_process": 1,
    },
    "tiny-llama-5m 64x2": {
        "model_name": "tiny-llama-5m",
        "model_max_length": 64,
        "batch_size": 2,
        "number_gpus": 0,
        "cpus_per_process": 1,
    },
}
GPU_CASES = {
    "llama3.2-1b 2048x4 bf16": {
        "model_name": "llama3.2-1b",
        "model_max_length": 2048,
        "batch_size": 4,
        "number_gpus": 1,
        "torch_dtype": "bfloat16",
        "optim": "adamw_torch_fused",
    },
}


@dataclasses.dataclass
class Settings:
    """The actuator's default configuration, but a fresh trainer for every measurement and no second attempt."""

    environment: str = "current"
    reuse_workers: bool = False
    run_timeout_s: float = 3600.0
    max_retries: int = 0
    retry_backoff_s: float = 0.0
    price_usd_per_device_hour: float | None = None
    trust_remote_code: bool = False
    skip_predicted_oom: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement through the plugin.

    Attributes:
        verdict: what the plugin concluded.
        step_s: duration of every step, warm-up included, seconds.
        host_cpu_percent: CPU time this process, the host with its sampler, used from the begin of training on, percent of one core.
    """

    verdict: Verdict
    step_s: list[float]
    host_cpu_percent: float


def threads(values: dict[str, Any] | None = None) -> int:
    """Return the CPU threads of a single trainer: those of the workload's ``values`` if given."""
    return int((values or {}).get("cpus_per_process") or node.cpu_count())


def plan(values: dict[str, Any]) -> Plan:
    """Return the plan of a workload."""
    return make_plan(PLUGIN.identifier, EXPERIMENT, values)


@contextlib.contextmanager
def measuring(state_dir: Path, *, reuse: bool = False) -> Iterator[Callable[[dict[str, Any]], Measured]]:
    """Return a function that measures a workload, in a fresh trainer each time or in one that is reused.

    The function raises SystemExit when a measurement gave no result.
    """
    began: list[tuple[float, float]] = []

    def note_begin(progress: Progress) -> None:
        if progress["state"] == "training" and not began:
            began.append((time.perf_counter(), time.process_time()))

    with Local(PLUGIN, Settings(reuse_workers=reuse), state_dir, note_begin) as local:

        def measured(values: dict[str, Any]) -> Measured:
            began.clear()
            verdict = local.measure(plan(values))
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            if verdict.report is None or not verdict.properties.get("is_valid"):
                reason = verdict.message or verdict.metadata.get("reason")
                sys.exit(f"{values}: {reason}\nlog: {verdict.metadata.get('log')}")
            percent = 100 * (cpu_s - began[0][1]) / (wall_s - began[0][0])
            return Measured(verdict, verdict.report.raw_step_s, percent)

        yield measured


def measure(values: dict[str, Any], state_dir: Path) -> Measured:
    """Measure a workload in a fresh trainer process."""
    with measuring(state_dir) as measured:
        return measured(values)


def options(description: str, name: str, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Read the command line: ``--quick``, ``--output`` and ``--device``, and the options that ``more`` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute; its numbers say nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help=f"JSON file; a .md is written next to it (default: benchmarks/results/{name}-cpu.json or -gpu.json, "
        "with --quick none)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: a GPU if there is one"
    )
    for flag, arguments in more:
        parser.add_argument(flag, **arguments)
    given = parser.parse_args()
    if given.device == "auto":
        given.device = "gpu" if gpus() else "cpu"
    if given.output is None and not given.quick:
        given.output = ROOT / "benchmarks" / "results" / f"{name}-{given.device}.json"
    return given


def gpus() -> list[devices.Device]:
    """Return the GPU the benchmarks use: the first visible one, if there is any."""
    return list(devices.visible_devices(node.visible_mask(1)))[:1]


def cases(device: str, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the workloads for ``cpu`` or ``gpu``, by name; the last, smallest one if it is to be ``quick``."""
    every = GPU_CASES if device == "gpu" else CPU_CASES
    return dict(list(every.items())[-1:] if quick else every)


def circumstances(device: str) -> dict[str, Any]:
    """Return what is needed to repeat the benchmark: hardware, load, versions of the plugins, commit, command."""
    hardware = dict(devices.describe(gpus() if device == "gpu" else []))
    for gpu in hardware["devices"]:  # type: ignore[attr-defined]
        gpu.pop("uuid", None)
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware | {"usable_cores": node.cpu_count()},
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": {DISTRIBUTION: _own_version()},
        "commit": _commit(),
        "command": shlex.join(["python", str(script), *sys.argv[1:]]),
    }


def add_versions(facts: dict[str, Any], versions: dict[str, str]) -> None:
    """Add the trainer's versions and the load at the end to the circumstances."""
    facts["versions"] |= {name: version for name, version in versions.items() if name != DISTRIBUTION}
    facts["load_average_after"] = round(os.getloadavg()[0], 2)


def _own_version() -> str:
    # in a source tree an installed version is not the version of the code that runs
    if "site-packages" not in Path(devices.__file__).parts:
        return "from the source tree"
    return importlib.metadata.version(DISTRIBUTION)


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "core", "sfttrainer", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with uncommitted changes" if changed.strip() else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, readable on a terminal: first column left, others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([row(head), rule, *(row(line) for line in lines[1:])])


def heading(title: str, facts: dict[str, Any]) -> str:
    """Return title and circumstances as Markdown."""
    hardware = facts["hardware"]
    named = [
        f"{gpu['name']}, {gpu['memory_gib']} GiB, power limit {gpu['power_limit_watts']} W, driver {hardware['driver']}"
        for gpu in hardware["devices"]
    ]
    named.append(f"{hardware['cpu']}, {hardware['usable_cores']} usable cores, {hardware['memory_gib']} GiB")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join(
        [
            f"# {title}",
            "",
            f"- {facts['date']}, `{facts['command']}`",
            f"- {'; '.join(named)}",
            f"- load average {facts['load_average_before']} before, {facts.get('load_average_after', 'unknown')} after",
            f"- {versions}",
            f"- commit {facts['commit'] or 'unknown'}",
        ]
    )


def write(output: Path | None, results: dict[str, Any], markdown: str) -> None:
    """Print the report, and write it and the numbers to files unless ``output`` is None."""
    print(markdown)
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    print(f"\nwritten: {output} and {output.with_suffix('.md').name}")


def say(text: str) -> None:
    """Show progress on standard error."""
    print(text, file=sys.stderr, flush=True)
