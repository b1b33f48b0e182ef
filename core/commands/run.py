"""The ``run`` command: one measurement without ado's store and without Ray. Imports ado only for the catalogue's defaults.

python -m ado_actuators.NAME.run workload.yaml
python -m ado_actuators.NAME.run model_name=tiny-llama-5m model_max_length=128 batch_size=4 number_gpus=0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .. import failures
from ..host import state_dir as places
from ..host.local import Local
from ..measurement import verdict as measurement
from ..measurement.plugin import Plugin
from ..protocol.messages import Progress, describe

TOLD_EVERY_S = 30.0


def main(plugin: Plugin, parameters_class: type[Any], arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0 measured, 1 it cannot run or failed, 2 bad use."""
    options = _parser(plugin).parse_intermixed_args(arguments)

    try:
        values, experiment = _values(options, plugin)
        settings = _settings(options.config, parameters_class)
        made = measurement.plan(plugin.identifier, experiment, values)
        tell = _Line() if sys.stderr.isatty() else _Changes()
        with (
            _terminated_as_interrupted(),
            tell,
            Local(plugin, settings, places.state_dir(settings.state_dir), tell) as local,
        ):
            verdict = local.measure(made)
    except failures.CannotRun as failure:
        verdict = measurement.refusal(failure, plugin.identifier, experiment)
    except (failures.Failure, _BadUse) as failure:
        print(failures.plain_sentence(str(failure)), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("interrupted; nothing of this measurement is kept.", file=sys.stderr)
        return 128 + (signal.SIGTERM if interruption.args else signal.SIGINT)
    try:
        _show(verdict, options.json)
    except BrokenPipeError:  # the reader, say ``head``, has seen enough
        sys.stdout = None  # type: ignore[assignment]
    return 0 if verdict.properties.get("is_valid") else 1


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it holds is given back."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


class _BadUse(Exception):
    """The command line or a file named on it cannot be used."""


def _parser(plugin: Plugin) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m ado_actuators.{plugin.identifier}.run", description="Measure one fine-tuning workload."
    )
    parser.add_argument(
        "workload", nargs="+", help="a YAML file with the workload's properties, or property=value pairs, or both"
    )
    parser.add_argument(
        "--experiment", choices=sorted(plugin.kinds), help="what to measure (default: finetune_full_benchmark)"
    )
    parser.add_argument("--config", type=Path, help="a YAML file with the actuator configuration's parameters")
    parser.add_argument("--json", action="store_true", help="print properties and metadata as JSON")
    return parser


def _values(options: argparse.Namespace, plugin: Plugin) -> tuple[dict[str, Any], str]:
    values: dict[str, Any] = {}
    for word in options.workload:
        name, equals, value = word.partition("=")
        # os.path takes a name that no file system could hold for absent
        is_pair = equals and not os.path.exists(word)  # noqa: PTH110
        if is_pair and not name:
            raise _BadUse(f"{word!r:.60} is no property=value.")
        values.update({name: _yaml(value, name) if value else ""} if is_pair else _workload(Path(word), plugin))
    experiment = options.experiment or values.pop("experiment", "finetune_full_benchmark")
    values.pop("experiment", None)
    if not isinstance(experiment, str) or experiment not in plugin.kinds:
        raise _BadUse(f"experiment {experiment!r} does not exist; there are: {', '.join(sorted(plugin.kinds))}.")
    return values, experiment


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = _yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise _BadUse(f"{path}: {error.strerror}.") from None
    except ValueError:  # no UTF-8, or a name with a null character
        raise _BadUse(f"{path}: no text file.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise _BadUse(f"{path}: expected properties and their values.")
    return content


def _workload(path: Path, plugin: Plugin) -> dict[str, Any]:
    """Return the properties in a file; a point file of ado has them one level deeper, beside the experiment."""
    content = _mapping(path)
    if "entity" not in content:
        return content
    asked = content.get("experiments") or [{}]
    if not isinstance(content["entity"], dict) or not isinstance(asked, list) or not isinstance(asked[0], dict):
        raise _BadUse(f"{path}: expected an entity and its experiments.")
    if len(asked) > 1:
        raise _BadUse(f"{path}: has {len(asked)} experiments; name one with --experiment in a file of properties.")
    if asked[0].get("actuatorIdentifier", plugin.identifier) != plugin.identifier:
        raise _BadUse(f"{path}: is for the actuator {asked[0]['actuatorIdentifier']}, not {plugin.identifier}.")
    experiment = asked[0].get("experimentIdentifier")
    return {**content["entity"], **({"experiment": experiment} if experiment else {})}


def _yaml(text: str, where: str) -> Any:
    try:
        return _OnceLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
        mark = getattr(error, "problem_mark", None)
        raise _BadUse(f"{where}: no valid YAML" + (f" at line {mark.line + 1}." if mark else ".")) from None


class _OnceLoader(yaml.SafeLoader):
    """Reads YAML safely, and refuses a mapping that has a key twice: one of its values would go unheard."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise _BadUse(f"{twice[:60]} is given twice (line {node.start_mark.line + 1} and after).")
        return super().construct_mapping(node, deep=deep)


def _settings(path: Path | None, parameters_class: type[Any]) -> Any:
    from ..actuator.parameters import parameters

    given = _mapping(path) if path else {}
    try:
        return parameters(parameters_class, given.get("parameters", given))
    except ValueError as error:
        raise _BadUse(f"{path}: {error}") from None


def _show(verdict: measurement.Verdict, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {"properties": verdict.properties, "sentence": verdict.sentence, "metadata": verdict.metadata}, indent=2
            )
        )
    elif verdict.report is not None and not verdict.properties["is_valid"]:
        print(f"is_valid 0, {verdict.properties['failure']}: {verdict.metadata['reason']}")
    elif verdict.report is not None:
        print(f"{verdict.report.text()}\n\nlog: {verdict.metadata['log']}")
    else:
        print(f"{verdict.sentence}\nlog: {verdict.metadata.get('log') or 'none'}", file=sys.stderr)


class _Changes(contextlib.AbstractContextManager["_Changes"]):
    """A line for each new state and every half minute, where standard error is no terminal: what takes long is seen in a log too."""

    def __init__(self) -> None:
        self._last = ""
        self._told_s = 0.0

    def __call__(self, news: Progress) -> None:
        state, now = news["state"], time.monotonic()
        if state != self._last or now - self._told_s >= TOLD_EVERY_S:
            self._last, self._told_s = state, now
            print(describe(news), file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        """Leave the lines where they are."""


class _Line(contextlib.AbstractContextManager["_Line"]):
    """One line on a terminal that says how far the measurement is; gone when the block ends."""

    def __call__(self, news: Progress) -> None:
        sys.stderr.write(f"\r\033[K{describe(news)[:100]}")
        sys.stderr.flush()

    def __exit__(self, *error: object) -> None:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
