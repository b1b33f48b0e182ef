"""CPU time of memory estimates: the first one of a process, further ones of the same model, and traces of all layers, in the same run.

Each estimate gives the memory and the largest batch on a GPU, as ``finetune_memory_estimate`` does. Each model has a process of its own.
The traces of all layers are those that are made where layers do not repeat; they have to give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import common

# one GPU, and the number of GPUs on which each model is sharded with FSDP2
MODELS = {"llama3.2-1b": 1, "llama3.1-8b": 1, "llama3.1-70b": 16, "llama3.1-405b": 256}
# above this a trace of all layers takes more than a minute
MOST_LAYERS = 40
FIRST_S, FURTHER_S = 10.0, 1.0
FURTHER: dict[str, dict[str, Any]] = {
    "another batch": {"batch_size": 5},
    "another length": {"model_max_length": 3000},
    "LoRA": {"method": "lora"},
}


def main() -> int:
    """Run the benchmark; 0 if all layers give the same bytes and the first estimates take at most ``FIRST_S``."""
    given = common.options(
        "Time memory estimates.", "estimates", ("--model", {"help": "estimate only this one, and print JSON"})
    )
    if given.model:
        print(json.dumps(timed(given.model, MODELS[given.model])))
        return 0
    facts = common.circumstances("cpu")
    results = {}
    for name in list(MODELS)[:1] if given.quick else MODELS:
        common.say(name)
        done = subprocess.run(
            [sys.executable, __file__, "--model", name, "--quick"], stdout=subprocess.PIPE, check=True, text=True
        )
        results[name] = json.loads(done.stdout.splitlines()[-1])
    met = all(one["same_bytes"] is not False and one["first"] <= FIRST_S for one in results.values())
    common.add_versions(facts, {})
    common.write(
        given.output, {"benchmark": "estimates", **facts, "cpu_s": results, "met": met}, text(facts, results, met)
    )
    return 0 if met else 1


def timed(name: str, gpus: int) -> dict[str, Any]:
    """Return the CPU seconds of each estimate of a model, and whether all layers give the same bytes; None where they are too many."""
    begin_s = time.process_time()
    from ado_actuators.sfttrainer import stack
    from ado_actuators.sfttrainer.core.measurement.plan import make_plan
    from ado_actuators.sfttrainer.core.trainer.memory_estimate import accounts, estimate
    from ado_actuators.sfttrainer.core.trainer.memory_estimate.kept import Kept

    values = {
        "model_name": name, "model_max_length": 2048, "batch_size": gpus, "number_gpus": gpus, "gpu_model": "H100",
        "torch_dtype": "bfloat16", "gradient_checkpointing": True, **({"distributed_backend": "FSDP2"} if gpus > 1 else {}),
    }  # fmt: skip
    kept, layers = Kept(), 0
    with tempfile.TemporaryDirectory(prefix="estimates-") as directory:

        def record(change: dict[str, Any], kept: Kept) -> tuple[float, Any]:
            nonlocal layers
            change = {**change, "batch_size": change.get("batch_size", 1) * gpus}
            plan = make_plan(common.PLUGIN.identifier, "finetune_memory_estimate", {**values, **change})
            job = plan.job(trust_remote_code=False, address=("127.0.0.1", 0), rank=0, threads=1)
            # one estimate: without those of fewer GPUs and of changes that would make it fit
            job = dataclasses.replace(job, run_dir=f"{directory}/run", counts=[], alternatives=[])
            assert job.architecture is not None
            layers = job.architecture["num_hidden_layers"]
            start_s = time.process_time()
            found = estimate.record(stack, job, lambda message: None, kept)
            return time.process_time() - start_s, (found["peaks_bytes"], found["reserved_bytes"])

        _, usual = record({}, kept)
        found: dict[str, Any] = {"first": time.process_time() - begin_s}
        for what, change in FURTHER.items():
            found[what], _ = record(change, kept)
        found |= {"all layers": None, "same_bytes": None}
        if layers <= MOST_LAYERS:
            with mock.patch.object(accounts, "depths", return_value=None):
                found["all layers"], whole = record({}, Kept())
            found["same_bytes"] = whole == usual
    return found


def text(facts: dict[str, Any], results: dict[str, dict[str, Any]], met: bool) -> str:
    """Return the report."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    columns = ["first", *FURTHER, "all layers"]
    quick = sum(one[what] <= FURTHER_S for one in results.values() for what in FURTHER)
    further = len(results) * len(FURTHER)
    rows = [
        [f"{name}, {MODELS[name]} H100", *(cell(one[column]) for column in columns)] for name, one in results.items()
    ]
    return "\n".join(
        [
            common.heading("Memory estimates", facts),
            "",
            "CPU seconds of an estimate with its largest batch. The first one includes the imports; the further ones are of the same",
            "process. `all layers` traces every layer instead of two or three, and gave the same bytes.",
            "",
            common.table(["model", *columns], rows),
            "",
            f"First at most {FIRST_S:g} s: target {'met' if met else 'missed'}. Further ones up to {FURTHER_S:g} s: {quick} of {further}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
