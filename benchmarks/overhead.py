"""Overhead: the time of a measurement beyond its training steps, in a reused trainer, a fresh one, and a fresh process of a plain script.

The same ten workloads on every side, in turns, in one run. Overhead is the wall time the requester waits, minus all steps, warm-up
included. The warm side is requested as ado does it: actuator, Ray, dispatcher, host, trainer.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import fidelity
import ray
from ado.modules.actuators.measurement_queue import MeasurementQueue
from ado.schema.point import SpacePoint

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict
from ado_actuators.sfttrainer.core.protocol.results import ResultMetadata

WARM_LIMIT_S = 0.6
FACTOR = 10
# model, length and batch size; fast ones show the constant overhead, slow ones the part that grows with the model
CPU_WORKLOADS = [
    *(("tiny-llama-5m", length, batch) for length in (32, 64, 128, 256) for batch in (1, 4)),
    ("smollm2-135m", 32, 1),
    ("smollm2-135m", 64, 1),
]
GPU_WORKLOADS = [(model, *rest) for model in ("smollm2-135m", "llama3.2-1b") for rest in
                 ((256, 1), (512, 1), (512, 4), (1024, 1), (1024, 4))]  # fmt: skip
SIDES = {
    "warm": "ours, warm trainer, through Ray",
    "warm_without_ray": "ours, warm trainer, without Ray",
    "fresh": "ours, fresh trainer, without Ray",
    "bare": "bare TRL script, fresh process",
}
PHASES = ("start", "model_load", "data", "setup", "train_edges", "rest")


def main() -> int:
    """Run the benchmark; 0 if the target is met."""
    given = common.options(
        "Compare what a measurement costs beyond its training.",
        "overhead",
        ("--steps", {"type": int, "default": None, "help": "optimizer steps of each run (default 10)"}),
        ("--repeats", {"type": int, "default": None, "help": "rounds over the workloads (default 1)"}),
    )
    chosen = workloads(given.device, given.steps or (4 if given.quick else 10))
    chosen = dict(list(chosen.items())[:2]) if given.quick else chosen
    facts = common.circumstances(given.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="overhead-", dir="/tmp") as directory:
        sides = Sides(Path(directory))
        try:
            first = {side: sides.take(side, next(iter(chosen.values()))) for side in ("warm", "warm_without_ray")}
            for number in range((given.repeats or 1) * len(chosen)):
                name = list(chosen)[number % len(chosen)]
                turn = number % len(SIDES)
                order = [*SIDES][turn:] + [*SIDES][:turn]
                rows.append({"workload": name, **{side: sides.take(side, chosen[name]) for side in order}})
                beyond = ", ".join(f"{side} {rows[-1][side]['overhead_s']:.2f}" for side in SIDES)
                common.say(f"{name} ({number + 1}): seconds beyond training: {beyond}")
        finally:
            sides.close()
    for row in [*rows, first]:
        for side in row.values():
            if isinstance(side, dict) and "versions" in side:
                common.add_versions(facts, side.pop("versions"))
    summary = summarise(rows)
    results = {"benchmark": "overhead", "quick": given.quick, **facts, "first": first, "results": rows, **summary}
    common.write(given.output, results, report(facts, first, rows, summary))
    return 0 if summary["met"] or given.quick else 1


def workloads(device: str, steps: int) -> dict[str, dict[str, Any]]:
    """Return the ten workloads by name; all runs have the same number of steps."""
    gpu = {"number_gpus": 1, "torch_dtype": "bfloat16", "optim": "adamw_torch_fused"}
    chosen = GPU_WORKLOADS if device == "gpu" else CPU_WORKLOADS
    return {
        f"{model} {length}x{batch}": {
            "model_name": model,
            "model_max_length": length,
            "batch_size": batch,
            **(gpu if device == "gpu" else {"number_gpus": 0}),
            "max_steps": steps,
            "stop_after_seconds": 0,
            "target_ci_percent": 0,
        }
        for model, length, batch in chosen
    }


class Sides:
    """The ways to run a workload; each returns wall time and step times of a run, in seconds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ray.init(include_dashboard=False, log_to_driver=False, num_cpus=common.threads(), num_gpus=len(common.gpus()))
        self._queue = MeasurementQueue()
        parameters = SFTTrainer.parameters_class(state_dir=str(directory), max_retries=0)
        self._actuator = SFTTrainer(queue=self._queue, params=parameters)
        self._reference = SFTTrainer.catalog().experiments[0].reference
        self._locals = {
            "warm_without_ray": Local(common.PLUGIN, common.Settings(reuse_workers=True), directory),
            "fresh": Local(common.PLUGIN, common.Settings(), directory),
        }

    def take(self, side: str, values: dict[str, Any]) -> dict[str, Any]:
        """Run a workload once on a side of ``SIDES``.

        Raises:
            SystemExit: it gave no result.
        """
        begin = time.perf_counter()
        if side == "bare":
            steps_s = fidelity.child(
                "bare_trl.py", fidelity.bare_spec(values, 1, self._directory), values, self._directory
            )["step_s"]
            return _row(time.perf_counter() - begin, steps_s, {})
        if side == "warm":
            properties, metadata = self._through_ray(values)
        else:
            verdict = self._locals[side].measure(common.plan(values))
            properties, metadata = verdict.properties, _checked(values, verdict)
        wall_s = time.perf_counter() - begin
        made = _row(wall_s, metadata["step_s"], {"start": properties["startup_s"], **metadata["phases_s"]})
        return made | {"reused": metadata["reused"], "versions": metadata["versions"]}

    def _through_ray(self, values: dict[str, Any]) -> tuple[dict[str, Any], ResultMetadata]:
        self._actuator.submit([SpacePoint(entity=values).to_entity()], self._reference, "overhead", 0)
        (result,) = self._queue.get(timeout=3600).measurements
        if not hasattr(result, "measurements"):
            sys.exit(f"{values}: {result.reason}")
        return {one.property.targetProperty.identifier: one.value for one in result.measurements}, result.metadata

    def close(self) -> None:
        """End all processes."""
        for local in self._locals.values():
            local.__exit__()
        self._actuator._launch_supervisor.stop()
        # after Ray's end, a supervisor that asks it once more would connect to any other cluster
        self._actuator._launch_supervisor._thread.join(timeout=30)
        ray.get(self._actuator._dispatch().cleanup.remote())
        ray.shutdown()


def _checked(values: dict[str, Any], verdict: Verdict) -> ResultMetadata:
    if not verdict.properties.get("is_valid"):
        sys.exit(f"{values}: {verdict.message or verdict.metadata.get('reason')}\nlog: {verdict.metadata.get('log')}")
    return verdict.metadata


def _row(wall_s: float, steps_s: list[float], spent_s: dict[str, float]) -> dict[str, Any]:
    """Return wall time, steps and overhead of a run, and the overhead of each of ``PHASES`` where it is known."""
    steps = math.fsum(steps_s)
    made: dict[str, Any] = {"wall_s": wall_s, "steps_s": steps, "steps": len(steps_s), "overhead_s": wall_s - steps}
    if spent_s:
        phases = {name: spent_s[name] for name in ("start", "model_load", "data", "setup")}
        # before the first step and after the last, inside the training library's train()
        phases["train_edges"] = spent_s["train"] - steps
        phases["rest"] = made["overhead_s"] - math.fsum(phases.values())
        made["phases_s"] = phases
    return made


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over workloads, and whether the target is met."""
    medians = {side: statistics.median(row[side]["overhead_s"] for row in rows) for side in SIDES}
    phases = {
        side: {name: statistics.median(row[side]["phases_s"][name] for row in rows) for name in PHASES}
        for side in SIDES
        if side != "bare"
    }
    factor = medians["bare"] / medians["warm"]
    stayed = all(row[side]["reused"] for row in rows for side in ("warm", "warm_without_ray"))
    return {
        "median_overhead_s": medians,
        "median_phases_s": phases,
        "bare_over_warm": factor,
        "warm_stayed_warm": stayed,
        "met": medians["warm"] <= WARM_LIMIT_S and factor >= FACTOR and stayed,
    }


def report(facts: dict[str, Any], first: dict[str, Any], rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Return the benchmark's report as Markdown."""
    blocks = [common.heading("Overhead: what a measurement costs beyond its training", facts)]
    lines = [
        [row["workload"], f"{row['warm']['steps_s']:.2f}", *(f"{row[side]['overhead_s']:.3f}" for side in SIDES)]
        for row in rows
    ]
    lines.append(["median", "", *(f"{summary['median_overhead_s'][side]:.3f}" for side in SIDES)])
    blocks.append(common.table(["seconds beyond training", "training, warm", *SIDES.values()], lines))
    blocks.append(
        f"Beyond training: wall time of one measurement for who asked for it, minus all its {rows[0]['warm']['steps']} steps, warm-up "
        f"included. Target: warm at most {WARM_LIMIT_S:g} s in the median, a fresh process at least {FACTOR} times as much; it is "
        f"{summary['bare_over_warm']:.1f} times as much. The first measurement of a warm trainer starts it, and is in no row above: "
        f"{first['warm']['overhead_s']:.1f} s through Ray, {first['warm_without_ray']['overhead_s']:.1f} s without."
    )
    head = ["median seconds of", "start", "model", "data", "set-up", "train(), before and after the steps", "rest"]
    blocks.append(
        common.table(
            head,
            [
                [SIDES[side], *(f"{phases[name]:.3f}" for name in PHASES)]
                for side, phases in summary["median_phases_s"].items()
            ],
        )
    )
    blocks.append(
        "Rest: giving memory back, sampling, messages between processes and, through Ray, ado's and Ray's part."
    )
    if not summary["warm_stayed_warm"]:
        blocks.append("**A warm trainer was replaced in between.**")
    blocks.append("Target met." if summary["met"] else "**Target missed.**")
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
