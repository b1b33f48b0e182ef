"""The ``run`` command: one measurement without ado's store and without Ray."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import failures
from ..host.local import Local
from ..host.state_dir import state_dir
from ..measurement.plan import make_plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import Verdict, refusal
from ..workload.outputs import OUTPUTS
from .arguments import PRICE, BadUse, read_settings, read_workload
from .console import show
from .progress import Bar, Changes, terminated_as_interrupted

# without GPUs these repeat the rates of all devices
PER_GPU = tuple(name for name in OUTPUTS if name.endswith("_per_gpu"))


def main(
    plugin: Plugin,
    parameters_class: type[Any],
    workload: list[str],
    *,
    experiment: str | None,
    config: Path | None,
    vary: str | None = None,
    as_json: bool,
) -> int:
    """Run the command; return its exit status: 0 measured, 1 the workload cannot run or failed, 2 usage error.

    Args:
        plugin: to measure with.
        parameters_class: class of the actuator configuration's parameters.
        workload: files and property=value pairs, ``price`` among them; later values replace earlier ones.
        experiment: what to measure; None: the experiment that a file names, else the full benchmark.
        config: a file with the actuator configuration's parameters.
        vary: a property and its values, which are measured and compared; None: one measurement.
        as_json: print JSON.
    """
    try:
        if vary is not None:
            from . import vary as command

            return command.run(
                vary, plugin, parameters_class, workload, experiment=experiment, config=config, as_json=as_json
            )
        values, chosen = read_workload(workload, experiment, plugin)
        settings = read_settings(config, parameters_class, price=values.pop(PRICE, None))
        plan = make_plan(plugin.identifier, chosen, values)
        progress = Bar() if sys.stderr.isatty() else Changes()
        with (
            terminated_as_interrupted(),
            progress,
            Local(plugin, settings, state_dir(settings.state_dir), progress) as local,
        ):
            verdict = local.measure(plan)
    except failures.CannotRun as failure:
        verdict = refusal(failure, plugin.identifier, chosen)
    except (failures.Failure, BadUse) as failure:
        print(failures.plain_message(str(failure), failures.LONGEST_ON_TERMINAL), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("Interrupted. Nothing of this measurement is kept.", file=sys.stderr)
        return 128 + (signal.SIGTERM if interruption.args else signal.SIGINT)
    _show(verdict, as_json, without=() if values.get("number_gpus") else PER_GPU)
    return 0 if verdict.properties.get("is_valid") else 1


def _show(verdict: Verdict, as_json: bool, without: Collection[str]) -> None:
    if as_json:
        found = {"properties": verdict.properties, "message": verdict.message, "metadata": verdict.metadata}
        show(json.dumps(found, indent=2))
    elif verdict.report is not None and not verdict.properties["is_valid"]:
        show(f"is_valid 0, {verdict.properties['failure']}: {verdict.metadata['reason']}")
    elif verdict.report is not None:
        show(f"{verdict.report.text(without)}\n\nlog: {verdict.metadata['log']}")
    else:
        print(f"{verdict.message}\nlog: {verdict.metadata.get('log') or 'none'}", file=sys.stderr)
