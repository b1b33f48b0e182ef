"""What the words of a command line and the files named there ask for: a workload, an experiment and the actuator configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..measurement.plugin import Plugin
from ..workload import ibm_names, yaml_input
from ..workload.experiments import KINDS
from .options import Actuator

DEFAULT_EXPERIMENT = "finetune_full_benchmark"
# a word of the command line that is not a property of the workload, and the parameter that it sets
PRICE, PRICE_PARAMETER = "price", "price_usd_per_device_hour"


class BadUse(Exception):
    """The command line or a file named on it cannot be used."""


def read_workload(
    words: list[str], experiment: str | None, plugin: Plugin, *, of_any_actuator: bool = False
) -> tuple[dict[str, Any], str]:
    """Return the property values and the experiment that the command line names, or ``method`` where none is named.

    Args:
        words: files and property=value pairs; later values replace earlier ones.
        experiment: what to measure; None: as the words say.
        plugin: to measure with.
        of_any_actuator: take the experiment of a point file that is for the other actuator, too.

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
        values.update(
            {name: _value(value, name) if value else ""} if is_pair else _workload(Path(word), plugin, of_any_actuator)
        )
    chosen = experiment or values.pop("experiment", None) or _of_method(values, plugin) or DEFAULT_EXPERIMENT
    values.pop("experiment", None)
    if not isinstance(chosen, str) or chosen not in plugin.kinds:
        answer = ibm_names.hint(str(chosen)) or f" Use {', '.join(sorted(plugin.kinds))}."
        raise BadUse(f"Experiment {chosen!r:.60} does not exist{_where(plugin, of_any_actuator)}.{answer}")
    _check_no_parameters(values)
    return values, chosen


def _check_no_parameters(values: dict[str, Any]) -> None:
    """Reject parameters of the actuator configuration among the properties, and say where they belong."""
    from ..host.parameters import MeasuringParameters

    for name in values.keys() & MeasuringParameters.model_fields.keys():
        hint = f", or {PRICE}=USD" if name == PRICE_PARAMETER else ""
        raise BadUse(
            f"{name} is a parameter of the actuator configuration, not a property: put it into a YAML file and add --config FILE{hint}."
        )


def _where(plugin: Plugin, of_any_actuator: bool) -> str:
    return f" in {plugin.identifier}" if of_any_actuator else ""


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


def _workload(path: Path, plugin: Plugin, of_any_actuator: bool) -> dict[str, Any]:
    """Return the properties in a file; a point file of ado has them one level deeper, and names the experiment."""
    content = _mapping(path, "Give a YAML file, or property=value.")
    if "entity" not in content:
        return content
    asked = content.get("experiments") or [{}]
    if not isinstance(content["entity"], dict) or not isinstance(asked, list) or not isinstance(asked[0], dict):
        raise BadUse(f"{path}: expected a mapping entity and a list experiments, as in a point file of ado.")
    if len(asked) > 1:
        raise BadUse(f"{path}: has {len(asked)} experiments, expected one. Keep one of them in the file.")
    other = asked[0].get("actuatorIdentifier", plugin.identifier)
    if other != plugin.identifier and not (of_any_actuator and other in tuple(Actuator)):
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


def _value(text: str, name: str) -> Any:
    try:
        return yaml_input.load(text)
    except yaml_input.NotYAML:
        raise BadUse(
            f"{name} {text!r:.60} is not valid YAML; a text with special characters needs quotes inside the shell's: "
            f"{name}='\"...\"'."
        ) from None
    except yaml_input.InvalidYAML as error:
        raise BadUse(f"{name}: {error}") from None


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
