"""Checks on one GPU, in at most 8 minutes, what CPUs cannot show: memory, out-of-memory, fidelity, rates, energy, stopping and reuse.

    python benchmarks/gpu.py

It needs the training stack, but no network, ado or Ray. Each part prints its checks and writes the results when it ends, so an
interrupted run keeps them. ``--device cpu --quick`` runs the same code on a CPU. Exit status: 0 no target is missed, 1 at least one is,
2 nothing can be measured here, 130 a signal ended the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_checks import packages
from gpu_checks.schedule import BUDGETS, LIMIT_S, OutOfTime, alarm, allowance_s

if TYPE_CHECKING:
    from gpu_checks.bench import Bench

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "sfttrainer" / "src"
NAMES = tuple(budget.name for budget in BUDGETS)
# with more memory in use before anything is started, another process uses the GPU
FOREIGN_BYTES = 2**30
# exit status of a run that a signal ended
ENDED = 130


class Ended(BaseException):
    """SIGTERM ends the run."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--part", action="append", choices=NAMES, help="run this part only; may be given again (default: all)"
    )
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="the first visible GPU, or the CPU")
    parser.add_argument(
        "--limit", type=_seconds, default=LIMIT_S, help=f"seconds for all parts, above 0 (default {LIMIT_S:.0f})"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer and shorter measurements: a smoke test whose numbers have no meaning",
    )
    parser.add_argument(
        "--output",
        type=_json_file,
        help="JSON file; the report (.md) and recordings are written next to it (default: benchmarks/results/gpu-DEVICE.json, "
        "with --part gpu-DEVICE-PART.json, with --quick none)",
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the report of a JSON file and measure nothing")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _json_file(text: str) -> Path:
    if Path(text).suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text} does not end in .json; the report gets the same name with .md")
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    given = options(arguments)
    use_source_tree()
    if given.show:
        return show(given.show)
    try:
        return measure(given)
    except (KeyboardInterrupt, Ended):
        print("The run was ended.", file=sys.stderr)
        return ENDED


def show(path: Path) -> int:
    """Print the report of a results file; return the exit status."""
    from gpu_checks import report

    try:
        text = report.markdown(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        print(f"{path} cannot be read: {error.strerror}. --show needs a results file of this script.", file=sys.stderr)
    except (ValueError, LookupError, TypeError, AttributeError):
        print(f"{path} holds no results of this script: --show needs such a JSON file.", file=sys.stderr)
    else:
        print(text)
        return 0
    return 2


def measure(given: argparse.Namespace) -> int:
    """Run the parts that were asked for; return the exit status."""
    packages.go_offline()
    if lacking := packages.missing(given.device):
        print(f"Not installed: {', '.join(lacking)}. Install them: pip install {' '.join(lacking)}", file=sys.stderr)
        return 2
    if unfit := packages.unfit(SOURCE.parent / "pyproject.toml"):
        print(f"{'; '.join(unfit)}. Install versions that the plugin supports.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as directory:
        made = prepare(given, Path(directory))
        if isinstance(made, str):
            print(made, file=sys.stderr)
            return 2
        return GpuRun(given, *made).run()


def use_source_tree() -> None:
    """Use the plugin of this source tree, installed or not, in this process and in those it starts."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(SOURCE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *others])


def prepare(given: argparse.Namespace, state_dir: Path) -> tuple[Bench, dict[str, Any]] | str:
    """Return the bench and the results without any part, or the reason why nothing can be measured here."""
    # imported here because their requirements have been checked only now
    import common
    from gpu_checks import nvml_facts
    from gpu_checks.bench import Bench
    from gpu_checks.workloads import Choice

    from ado_actuators.sfttrainer.core import failures
    from ado_actuators.sfttrainer.core.host import node, nvml

    device, facts = None, {}
    if given.device == "gpu":
        try:
            visible = nvml.visible_devices(node.visible_mask(1))
        except failures.Failure as refused:
            return str(refused)
        if not len(visible):
            return f"{visible.absent} `python benchmarks/gpu.py --device cpu --quick` runs the same code without a GPU."
        (device,) = visible
        assert isinstance(device, nvml.NvmlDevice)
        facts = nvml_facts.facts(device.nvml, device.handle)
    name = device.name if device else "cpu"
    gib = (device.memory_total_bytes or 0) / 2**30 if device else 0.0
    output = given.output
    if output is None and not given.quick:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        # a run of some parts leaves the results of a whole run as they are
        parts = "".join(f"-{part}" for part in NAMES if part in (given.part or ()))
        output = given.output = ROOT / "benchmarks" / "results" / f"gpu-{slug}{parts}.json"
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"{output.parent} cannot be made: {error.strerror}. Name another file with --output."
        if not os.access(output.parent, os.W_OK):
            return f"{output.parent} cannot be written to. Name another file with --output."
    results = {
        "benchmark": "gpu",
        "device": given.device,
        "quick": given.quick,
        **common.circumstances(given.device),
        "limit_s": given.limit,
        "took_s": 0.0,
        "complete": False,
        "left_out": packages.left_out(),
        "notes": [],
        "parts": {},
    }
    results["hardware"]["nvml"] = facts
    results["versions"] |= packages.versions()
    bench = Bench(
        choice=Choice(given.device, gib, nvml_facts.computes_in(facts), given.quick),
        device=device,
        state_dir=state_dir,
        absent=results["left_out"],
        name=name,
        recordings=output,
    )
    used = bench.used_bytes()
    if used is not None and used > FOREIGN_BYTES:
        results["notes"].append(f"{used / 2**30:.1f} GiB of the GPU were in use before anything was started.")
    return bench, results


class GpuRun:
    """A run: its parts one after the other, each with a time limit."""

    def __init__(self, given: argparse.Namespace, bench: Bench, results: dict[str, Any]) -> None:
        self.given = given
        self.bench = bench
        self.results = results
        self.begin_s = time.perf_counter()
        self.useless = ""

    def run(self) -> int:
        """Run the chosen parts; return the exit status."""
        from gpu_checks import report

        chosen = [name for name in NAMES if name in (self.given.part or NAMES)]
        status = 0
        try:
            for name in chosen:
                if begin := getattr(report.PARTS[name], "prepare", None):
                    begin(self.bench)
            for name in chosen:
                self._part(name, chosen)
            self.results["complete"] = True
        except (KeyboardInterrupt, Ended):
            status = ENDED
        finally:
            self.bench.close()
            self._write()
        print(report.markdown(self.results))
        if self.given.output:
            print(f"\nwritten: {self.given.output} and {self.given.output.with_suffix('.md').name}")
        return status or int(report.total(self.results)["missed"] > 0 and not self.given.quick)

    def _part(self, name: str, chosen: list[str]) -> None:
        from gpu_checks import report

        begin_s = time.perf_counter()
        part: dict[str, Any] = {"state": "ran", "reason": "", "took_s": 0.0, "found": {}}
        self.results["parts"][name] = part
        left_s = self.given.limit - (begin_s - self.begin_s)
        seconds = allowance_s(name, chosen, left_s, self.given.limit)
        try:
            if self.useless:
                part.update(state="skipped", reason=self.useless)
            elif not seconds:
                part.update(state="skipped", reason=f"{max(0.0, left_s):.0f} s were left: use --part {name}")
            else:
                self._measure(name, part, seconds)
        except (KeyboardInterrupt, Ended):
            part.update(state="cut off", reason="the run was ended")
            raise
        finally:
            part["took_s"] = round(time.perf_counter() - begin_s, 1)
            self._write()
        print(report.lines(name, part), flush=True)

    def _measure(self, name: str, part: dict[str, Any], seconds: float) -> None:
        from gpu_checks import report
        from gpu_checks.bench import Failed

        self.bench.may_take(seconds)
        try:
            with alarm(seconds):
                report.PARTS[name].run(self.bench, part["found"])
        except OutOfTime as over:
            part.update(state="cut off", reason=str(over))
        except Failed as failed:
            part.update(state="failed", reason=str(failed), log=failed.log)
        # the other benchmarks report failures with sys.exit
        except (Exception, SystemExit) as error:
            part.update(state="failed", reason=f"{type(error).__name__}: {str(error)[-1000:]}")
        if torch_error := part["found"].get("torch_error"):
            self.useless = f"torch cannot use the GPU: {torch_error}"

    def _write(self) -> None:
        from common import add_versions
        from gpu_checks import report

        self.results["took_s"] = round(time.perf_counter() - self.begin_s, 1)
        add_versions(self.results, self.bench.versions)
        for name, part in self.results["parts"].items():
            part["checks"] = [vars(one) for one in report.judge(name, part)]
        output = self.given.output
        if output is None:
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        # files are always complete, even if the run is killed
        for path, text in (
            (output, json.dumps(self.results, indent=1, allow_nan=False)),
            (output.with_suffix(".md"), report.markdown(self.results)),
        ):
            unfinished = path.with_name(path.name + ".part")
            unfinished.write_text(text + "\n", encoding="utf-8")
            unfinished.replace(path)


def _end(number: int, frame: object) -> None:
    raise Ended


if __name__ == "__main__":
    sys.exit(main())
