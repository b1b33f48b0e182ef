"""Scale: ado operations of 1, 10, 100 and 300 tiny measurements. Do later measurements take longer, and is any lost?

Each operation has a home, a store and a Ray instance of its own, and is started as a user starts it. Seconds per measurement are those
between two requests of ado, by ado's own record, so that everything is in them: ado, its store, Ray, the dispatcher, the trainer.

Before each request ado compares the new entity with every stored one, which takes it longer with each result. With two requests in
flight it does so while the trainer trains; the largest operation is repeated with one in flight, to show the difference.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import yaml

ADO = str(Path(sys.executable).parent / "ado")
SIZES = (1, 10, 100, 300)
LIMIT = 1.1
PART = 100
STEPS = 4
IN_FLIGHT = 2
WORKLOAD = {"model_name": "tiny-llama-5m", "model_max_length": 32, "batch_size": 1}
FIXED = {"max_steps": STEPS, "stop_after_seconds": 0, "target_ci_percent": 0}
OPERATION = {
    "spaces": ["to-be-set"],
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


def main() -> int:
    """Run the benchmark; 0 if the target is met."""
    given = common.options(
        "Make many tiny measurements through ado.",
        "scale",
        ("--sizes", {"type": int, "nargs": "+", "default": None, "help": f"measurements of each operation (default {SIZES})"}),
        ("--batch-size", {"type": int, "default": IN_FLIGHT, "help": f"requests ado has in flight (default {IN_FLIGHT})"}),
    )  # fmt: skip
    sizes = given.sizes or ((1, 6) if given.quick else SIZES)
    facts = common.circumstances(given.device)
    results = []
    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as directory:
        runs = [(size, given.batch_size) for size in sizes]
        if given.batch_size > 1:
            runs.append((sizes[-1], 1))
        for size, in_flight in runs:
            results.append(operate(size, in_flight, given.device, Path(directory) / f"{size}-{in_flight}"))
            common.add_versions(facts, results[-1].pop("versions"))
            common.say(f"{size}, {in_flight} in flight: {results[-1]['whole_s']:.1f} s, lost {results[-1]['lost']}")
    largest = results[len(sizes) - 1]
    met = not any(result["lost"] for result in results) and largest.get("ratio", math.inf) <= LIMIT
    results_file = {"benchmark": "scale", "quick": given.quick, **facts, "results": results, "met": met}
    common.write(given.output, results_file, report(facts, results, largest, met))
    return 0 if met or given.quick else 1


def operate(size: int, batch_size: int, device: str, home: Path) -> dict[str, Any]:
    """Run an operation of ``size`` measurements and return their outcomes and times in seconds."""
    (home / "r").mkdir(parents=True)
    files = {"space": space(size, device), "operation": OPERATION}
    for name, content in files.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    begin = time.perf_counter()
    printed = ado(
        home, "create", "operation", "-f", "operation.yaml", "--with", "space=space.yaml",
        "--set", f"operation.parameters.batchSize={batch_size}",
    )  # fmt: skip
    whole_s = time.perf_counter() - begin
    operation = re.findall(r"random_walk@[\w.]+-[0-9a-f]+", printed)[-1]
    measured = trace(home, operation)
    made = {
        "measurements": size,
        "in_flight": batch_size,
        "whole_s": whole_s,
        "lost": size - len({one["seed"] for one in measured}),
        "attempts": sum(one["attempts"] for one in measured),
        "trainers": len({one["log"] for one in measured}),
        "versions": measured[0]["versions"],
    }
    return made | durations(measured)


def space(size: int, device: str) -> dict[str, Any]:
    """Return a space of ``size`` entities that differ in their seed only."""
    values = {**WORKLOAD, "number_gpus": 1 if device == "gpu" else 0}
    return {
        "sampleStoreIdentifier": "default",
        "experiments": [
            {
                "actuatorIdentifier": "sfttrainer",
                "experimentIdentifier": common.EXPERIMENT,
                "experimentVersion": "1.0.0",
                "parameterization": [
                    {"property": {"identifier": name}, "value": value} for name, value in FIXED.items()
                ],
            }
        ],
        "entitySpace": [
            *(
                {
                    "identifier": name,
                    "propertyDomain": {
                        "values": [value],
                        **({"variableType": "CATEGORICAL_VARIABLE_TYPE"} if isinstance(value, str) else {}),
                    },
                }
                for name, value in values.items()
            ),
            {"identifier": "seed", "propertyDomain": {"values": list(range(size))}},
        ],
    }


def ado(home: Path, *arguments: str) -> str:
    """Run ado with a home of its own and return its output.

    Raises:
        SystemExit: it failed.
    """
    own = {"HOME": home, "XDG_CONFIG_HOME": home / "config", "XDG_CACHE_HOME": home / "cache", "RAY_TMPDIR": home / "r"}
    environ = {**os.environ, **{key: str(path) for key, path in own.items()}, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([ADO, *arguments], cwd=home, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ado {' '.join(arguments)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def trace(home: Path, operation: str) -> list[dict[str, Any]]:
    """Return the stored result of each measurement, in the order of the requests."""
    ado(home, "show", "trace", "operation", operation, "--unroll-entities", "-o", "json", "--output-file", "trace.json")
    columns = json.loads((home / "trace.json").read_text(encoding="utf-8"))
    measured = []
    for row, begin_ms in columns["Timestamp"].items():
        metadata = columns["Result Metadata"][row]
        if not columns["Valid"][row] or "step_s" not in metadata:
            common.say(f"{columns['Entity ID'][row]}: {columns['Invalid Reason'][row] or metadata.get('reason')}")
            continue
        measured.append(
            {
                "begin_s": begin_ms / 1e3,
                "steps_s": math.fsum(metadata["step_s"]),
                "seed": metadata["workload"]["seed"],
                **{key: metadata[key] for key in ("attempts", "log", "versions")},
            }
        )
    if not measured:
        sys.exit(f"nothing of {operation} was measured.")
    return sorted(measured, key=lambda one: one["begin_s"])


def durations(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return seconds per measurement, and the last hundred's mean ÷ the first hundred's.

    A measurement lasts until the next is asked for; the first, which starts the trainer, is left out, and so is the last, which no other
    follows.
    """
    begins = [one["begin_s"] for one in measured]
    lasted = [after - before for before, after in itertools.pairwise(begins)][1:]
    if not lasted:
        return {}
    beyond = [whole - one["steps_s"] for whole, one in zip(lasted, measured[1:], strict=False)]
    made: dict[str, Any] = {
        "median_s": statistics.median(lasted),
        "mean_s": statistics.fmean(lasted),
        "median_beyond_training_s": statistics.median(beyond),
        "lasted_s": lasted,
    }
    part = min(PART, len(lasted) // 2)
    if part:
        first, last = lasted[:part], lasted[-part:]
        made |= {
            "part": part,
            "first_mean_s": statistics.fmean(first),
            "last_mean_s": statistics.fmean(last),
            "ratio": statistics.fmean(last) / statistics.fmean(first),
            "ratio_of_medians": statistics.median(last) / statistics.median(first),
            "ratio_beyond_training": statistics.fmean(beyond[-part:]) / statistics.fmean(beyond[:part]),
        }
    return made


def report(facts: dict[str, Any], results: list[dict[str, Any]], largest: dict[str, Any], met: bool) -> str:
    """Return the benchmark's report as Markdown; ``largest`` is the operation that the target is for."""
    blocks = [common.heading("Scale: many measurements through ado", facts)]
    head = [
        "measurements",
        "in flight",
        "whole operation",
        "lost",
        "attempts",
        "trainers",
        "each, mean",
        "median",
        "beyond training, median",
        "last ÷ first",
    ]
    lines = []
    for result in results:
        each = [
            f"{result[key]:.3f} s" if key in result else ""
            for key in ("mean_s", "median_s", "median_beyond_training_s")
        ]
        ratio = f"{result['ratio']:.3f}" if "ratio" in result else ""
        counts = [str(result[key]) for key in ("lost", "attempts", "trainers")]
        numbers = [str(result[key]) for key in ("measurements", "in_flight")]
        lines.append([*numbers, f"{result['whole_s']:.1f} s", *counts, *each, ratio])
    blocks.append(common.table(head, lines))
    if "ratio" in largest:
        blocks.append(
            "Last ÷ first: mean seconds per measurement of the last ÷ the first "
            f"{largest['part']} of the largest operation (smaller ones: of their halves, at most {PART}); target at most {LIMIT:g}. "
            f"Of medians {largest['ratio_of_medians']:.3f}, of what is beyond training {largest['ratio_beyond_training']:.3f}."
        )
    if results[-1] is not largest:
        blocks.append(
            "The last row is the same operation with one request in flight. ado compares each new entity with every stored one before it "
            "asks for a measurement, and nothing trains meanwhile: that is what grows there."
        )
    blocks.append(
        f"Each: from one request of ado to the next, {STEPS} steps of training included, without the first, which waits for its trainer. "
        "Whole operation: with the start and the end of ado and Ray."
    )
    blocks.append("Target met." if met else "**Target missed.**")
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
