"""The ``run`` command: one measurement without ado's store and without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import failures
from ..host.local import Local
from ..host.state_dir import state_dir
from ..measurement.plan import make_plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import Verdict, refusal
from ..protocol.messages import Progress, describe
from ..workload import ibm_names, yaml_input
from ..workload.experiments import KINDS
from ..workload.outputs import OUTPUTS
from .console import show

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_EXPERIMENT = "finetune_full_benchmark"
REPORT_EVERY_S = 30.0
# a word of the command line that is not a property of the workload, and the parameter that it sets
PRICE, PRICE_PARAMETER = "price", "price_usd_per_device_hour"
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


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that its trainers end, too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


class BadUse(Exception):
    """The command line or a file named on it cannot be used."""


def read_workload(words: list[str], experiment: str | None, plugin: Plugin) -> tuple[dict[str, Any], str]:
    """Return the property values and the experiment that the command line names, or ``method`` where none is named.

    Raises:
        BadUse: a word, a file or the experiment cannot be used.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        # Path.exists would raise for a name that no file system can hold, os.path.exists returns False
        is_pair = equals and not os.path.exists(word)  # noqa: PTH110
        if is_pair and not name:
            raise BadUse(f"{word!r:.60} has no property before the equals sign; expected property=value.")
        values.update({name: _yaml(value, name) if value else ""} if is_pair else _workload(Path(word), plugin))
    chosen = experiment or values.pop("experiment", None) or _of_method(values, plugin) or DEFAULT_EXPERIMENT
    values.pop("experiment", None)
    if not isinstance(chosen, str) or chosen not in plugin.kinds:
        answer = ibm_names.hint(str(chosen)) or f" Use {', '.join(sorted(plugin.kinds))}."
        raise BadUse(f"Experiment {chosen!r:.60} does not exist.{answer}")
    return values, chosen


def _of_method(values: dict[str, Any], plugin: Plugin) -> str | None:
    """Take ``method`` out of the values where a benchmark of this plugin sets it, and return that experiment; else None."""
    for name in plugin.kinds:
        if KINDS[name].task == "benchmark" and KINDS[name].sets.get("method") == values.get("method", ""):
            del values["method"]
            return name
    return None


def _mapping(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = _yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadUse(f"{path} cannot be read: {reason}. {remedy}") from None
    except ValueError:  # not UTF-8, or a path with a null character
        raise BadUse(f"{path}: not a UTF-8 text file.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadUse(f"{path}: expected a YAML mapping of properties to values.")
    return content


def _workload(path: Path, plugin: Plugin) -> dict[str, Any]:
    """Return the properties in a file; a point file of ado has them one level deeper, and names the experiment."""
    content = _mapping(path, "Give a YAML file, or property=value.")
    if "entity" not in content:
        return content
    asked = content.get("experiments") or [{}]
    if not isinstance(content["entity"], dict) or not isinstance(asked, list) or not isinstance(asked[0], dict):
        raise BadUse(f"{path}: expected a mapping entity and a list experiments, as in a point file of ado.")
    if len(asked) > 1:
        raise BadUse(f"{path}: has {len(asked)} experiments, expected one. Keep one of them in the file.")
    if asked[0].get("actuatorIdentifier", plugin.identifier) != plugin.identifier:
        other = asked[0]["actuatorIdentifier"]
        text = f"{path}: is for the actuator {other!r:.60}; expected {plugin.identifier}."
        raise BadUse(f"{text}{ibm_names.hint(str(other))}")
    experiment = asked[0].get("experimentIdentifier")
    fixed = _parameterization(asked[0].get("parameterization") or [], path)
    return {**content["entity"], **fixed, **({"experiment": experiment} if experiment else {})}


def _parameterization(items: Any, path: Path) -> dict[str, Any]:
    """Return the properties that an experiment of a point file fixes."""
    try:
        return {item["property"]["identifier"]: item["value"] for item in items}
    except (KeyError, TypeError):
        text = "each item of parameterization needs property, with its identifier, and value."
        raise BadUse(f"{path}: {text}") from None


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml_input.load(text)
    except yaml_input.InvalidYAML as error:
        raise BadUse(f"{where}: {error}") from None


def read_settings(path: Path | None, parameters_class: type[Any], *, price: Any = None) -> Any:
    """Return the actuator configuration of a file, or the defaults.

    Args:
        path: the file; None: the defaults.
        parameters_class: class of the parameters.
        price: of a device-hour, USD; it replaces that of the file. None: none was given.

    Raises:
        BadUse: the file or the price cannot be used.
    """
    from ..host.parameters import validate

    given = _mapping(path, "Give a YAML file of parameters.") if path else {}
    parameters = given.get("parameters", given)
    priced = {} if price is None else {PRICE_PARAMETER: price}
    try:
        if priced:
            validate(parameters_class, priced)
    except ValueError as error:
        raise BadUse(str(error).replace(PRICE_PARAMETER, PRICE)) from None
    try:
        return validate(parameters_class, {**parameters, **priced} if isinstance(parameters, dict) else parameters)
    except ValueError as error:
        raise BadUse(f"{path}: {error}") from None


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


class Changes(contextlib.AbstractContextManager["Changes"]):
    """Print a line for each new state and every half minute, where standard error is not a terminal."""

    def __init__(self) -> None:
        self._last = ""
        self._printed_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Print a new state, and the same one again after half a minute."""
        state, now = str(progress.get("state", "")), time.monotonic()
        if state != self._last or now - self._printed_s >= REPORT_EVERY_S:
            self._last, self._printed_s = state, now
            print(describe(progress), file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        """Leave the lines where they are."""


class Bar(contextlib.AbstractContextManager["Bar"]):
    """Show state, steps, rate and the time left at most on a terminal; removed when the block ends."""

    def __init__(self, console: Console | None = None) -> None:
        # imported here: where standard error is not a terminal nothing is drawn
        from rich import console as terminal
        from rich import progress as bars

        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console or terminal.Console(stderr=True),
            transient=True,
            # drawing takes CPU time from trainers on CPUs
            refresh_per_second=2,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task("", total=None, rate="")

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __call__(self, progress: Progress) -> None:
        """Show the state; with steps also how far it is, at most: a measurement ends earlier once it is precise enough."""
        step, most, rate = progress.get("step"), progress.get("of"), progress.get("tokens_per_second")
        state = str(progress.get("state", ""))
        self._bars.update(
            self._task,
            description=f"{state}, step {step} of at most {most}" if step else state,
            completed=step or 0,
            total=most if step else None,
            rate=f"{rate:.0f} tok/s" if rate else "",
        )

    def __exit__(self, *error: object) -> None:
        """Remove the bar, so that only the report is left."""
        self._bars.stop()
