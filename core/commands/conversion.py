"""Converts ado's YAML documents for IBM's actuator ``SFTTrainer`` into documents for an actuator here.

Documents are edited as ruamel.yaml has read them, so that comments and order stay. Values are those that PyYAML reads, as ado does.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.util import load_yaml_guess_indent

from ..workload import ibm, ibm_names, yaml_input
from ..workload.ibm_values import Choices, Finding, InvalidValue
from . import yaml_trees

VERSION = "1.0.0"
DEFAULTS_BELOW = f"defaults of IBM's actuator {ibm_names.ACTUATOR} that differ from those here"
RANDOM_WALK = {"operatorName": "random_walk", "operationType": "explore"}
# what replaces each parameter of IBM's actuator configuration
PARAMETERS = {
    "match_exact_dependencies": "the environment follows from number_gpus",
    "hf_home": "export HF_HOME where Ray's nodes start",
    "data_directory": "--data DIR takes its files",
    "model_map": "model_name is the path itself",
}


class Unusable(Exception):
    """A file that cannot be converted, in one message."""


@dataclasses.dataclass
class Document:
    """A YAML file.

    Attributes:
        path: where it was read.
        kind: ``space``, ``point``, ``operation`` or ``actuator configuration``.
        tree: as ruamel.yaml reads it, with comments; it is edited.
        plain: as PyYAML reads it.
        indents: spaces before the items of a list, dash included, and before its dash.
        findings: notes and differences, for the report.
        steps: what was done, in order.
        line_end: its line ending.
    """

    path: Path
    kind: str
    tree: Any
    plain: dict[str, Any]
    indents: tuple[int, int]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)
    line_end: str = "\n"

    def note(self, text: str, *, same: bool = True) -> None:
        """Add a finding, once; ``same`` is False for a difference of the study."""
        self.add([Finding(text, same)])

    def add(self, findings: Iterable[Finding]) -> None:
        """Add those findings that are new."""
        self.findings += [finding for finding in findings if finding not in self.findings]

    def step(self, text: str) -> None:
        """Add what was done, once."""
        self.steps += [text] if text not in self.steps else []

    def text(self) -> str:
        """Return the file as it is now."""
        writer = _round_trip()
        sequence, dash = self.indents
        writer.indent(mapping=2, sequence=sequence, offset=dash)
        stream = io.StringIO()
        writer.dump(self.tree, stream)
        return stream.getvalue().replace("\n", self.line_end)


def read(path: Path) -> Document:
    """Read one file.

    Raises:
        Unusable: the file does not exist, is not YAML, or is not a document of ado.
    """
    try:
        content = path.read_bytes().decode()
        text = content.replace("\r\n", "\n")
        plain = yaml_input.load(text)
        tree = _round_trip().load(text)
        _, sequence, dash = load_yaml_guess_indent(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unusable(f"{path} cannot be read: {reason}. Give a YAML file of ado.") from None
    except yaml_input.InvalidYAML as invalid:
        raise Unusable(f"{path}: {invalid}") from None
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise Unusable(f"{path}: not valid YAML" + (f" at line {mark.line + 1}." if mark else ".")) from None
    kind = _kind(plain)
    if not kind:
        raise Unusable(f"{path} is not a space, point, operation or actuator configuration of ado.")
    return Document(path, kind, tree, plain, (sequence or 2, dash or 0), line_end="\r\n" if "\r\n" in content else "\n")


def _round_trip() -> YAML:
    """Return what reads and writes YAML with comments, order and quotes."""
    round_trip = YAML()
    round_trip.preserve_quotes = True
    round_trip.width = 4096
    return round_trip


def _kind(plain: Any) -> str:
    if not isinstance(plain, dict):
        return ""
    if isinstance(plain.get("experiments"), list) and all(isinstance(one, dict) for one in plain["experiments"]):
        if isinstance(plain.get("entity"), dict):
            return "point"
        if isinstance(plain.get("entitySpace"), list):
            return "space"
    if isinstance(plain.get("operation"), dict):
        return "operation"
    return "actuator configuration" if "actuatorIdentifier" in plain else ""


def model_map(documents: Iterable[Document]) -> dict[str, str]:
    """Return the paths of models by name, from those documents that are actuator configurations of IBM's.

    Raises:
        Unusable: parameters or the map are not mappings, or a path is not text.
    """
    found: dict[str, str] = {}
    for document in documents:
        if document.plain.get("actuatorIdentifier") != ibm_names.ACTUATOR:
            continue
        parameters = _mapping(document, "parameters", document.plain.get("parameters"))
        for name, path in _mapping(document, "model_map", parameters.get("model_map")).items():
            # a path, or one for each form of the weights
            paths = path.values() if isinstance(path, dict) else [path]
            chosen = next((one for one in paths if isinstance(one, str)), None)
            if chosen is None:
                raise Unusable(f"{document.path}: model_map gives {name} the path {path!r:.40}; expected text.")
            found[str(name)] = chosen
    return found


def _mapping(document: Document, name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict | None):
        raise Unusable(f"{document.path}: {name} is {value!r:.40}; expected a mapping of names to values.")
    return value or {}


def convert(document: Document, choices: Choices) -> None:
    """Edit a document so that it describes the same study for another actuator, and note what was done.

    Raises:
        Unusable: the document lacks a required part.
    """
    try:
        match document.kind:
            case "space" | "point":
                _convert_experiments(document, choices)
            case "operation":
                _convert_operation(document)
            case _:
                _convert_configuration(document, choices)
    except InvalidValue as invalid:
        raise Unusable(f"{document.path}: {invalid}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        text = f"{document.path}: incomplete {document.kind} ({type(error).__name__}: {error})"
        raise Unusable(f"{text:.150}; ado create {document.kind.split()[-1]} --dry-run shows what is wrong.") from None
    if not document.steps:
        document.step(f"nothing to convert: it does not name the actuator {ibm_names.ACTUATOR}.")


# -- spaces and points ------------------------------------------------------------------------------------------


def _convert_experiments(document: Document, choices: Choices) -> None:
    varied = _varied(document.plain)
    changed: dict[str, tuple[str, list[Any]] | None] = {}
    for tree, plain in zip(document.tree["experiments"], document.plain["experiments"], strict=True):
        name = plain["experimentIdentifier"]
        if plain.get("actuatorIdentifier") != ibm_names.ACTUATOR:
            continue
        ours = ibm_names.EXPERIMENTS.get(name)
        if ours is None:
            known = ", ".join(ibm_names.EXPERIMENTS)
            raise Unusable(f"{document.path}: experiment {name} of {ibm_names.ACTUATOR} is unknown; there are {known}.")
        asked = plain.get("parameterization") or []
        given = {item["property"]["identifier"]: item["value"] for item in asked}
        found = ibm.translate(ours, given, varied, choices)
        changed |= {key: pair for key, pair in found.varied.items() if pair or key not in changed}
        yaml_trees.set_scalar(tree, "actuatorIdentifier", choices.actuator)
        yaml_trees.set_scalar(tree, "experimentIdentifier", ours)
        at = list(tree).index("experimentIdentifier") + 1
        tree.insert(at, "experimentVersion", DoubleQuotedScalarString(VERSION))
        _set_parameterization(tree, given, found, indent=2 * document.indents[1] + 2)
        written = ", ".join(
            f"{key} {yaml_trees.number(value)}" for key, value in found.fixed.items() if key not in found.origin
        )
        document.step(f"{name} is {ours} {VERSION} of {choices.actuator}")
        if written:
            document.step(f"also written: {written}")
        document.add(found.findings)
    if document.steps:
        _leave_out_copies(document)
        edit = _edit_space if document.kind == "space" else _edit_point
        edit(document, changed)
        if choices.weights == "random":
            text = "weights are random: the speed of dense models does not depend on them; --weights pretrained loads them."
            document.note(text)


def _varied(plain: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the properties of an entity or an entity space with their values; for a range, its first and last value."""
    if "entity" in plain:
        return {name: [value] for name, value in plain["entity"].items()}
    found = {}
    for dimension in plain["entitySpace"]:
        domain = dimension.get("propertyDomain") or {}
        ends = domain.get("domainRange")
        found[dimension["identifier"]] = domain.get("values") or ([ends[0], ends[1] - 1] if ends else [])
    return found


def _set_parameterization(tree: Any, given: dict[str, Any], found: ibm.Translation, *, indent: int) -> None:
    items, pending = CommentedSeq(), ""
    old = tree.get("parameterization") or CommentedSeq()
    if getattr(old, "ca", None) is not None and old.ca.comment:
        items.ca.comment = old.ca.comment
    for item in old:
        name = str(item["property"]["identifier"])
        wanted = [ours for ours in found.fixed if found.origin.get(ours) == name]
        if not wanted:
            pending += yaml_trees.comments(item)
            continue
        copied = yaml_trees.copy_of(item)
        yaml_trees.set_scalar(copied["property"], "identifier", wanted[0])
        if wanted[0] != name or found.fixed[wanted[0]] != given[name]:
            copied["value"] = yaml_trees.scalar(found.fixed[wanted[0]])
        for new in (copied, *(_item(ours, found.fixed[ours]) for ours in wanted[1:])):
            items.append(new)
        if pending:
            items.yaml_set_comment_before_after_key(len(items) - len(wanted), before=pending.strip(), indent=indent)
            pending = ""
    defaults = [ours for ours in found.fixed if ours not in found.origin]
    for ours in defaults:
        items.append(_item(ours, found.fixed[ours]))
    if defaults:
        before = "\n".join(filter(None, (pending.strip(), DEFAULTS_BELOW)))
        items.yaml_set_comment_before_after_key(len(items) - len(defaults), before=before, indent=indent)
    if items:
        tree["parameterization"] = items
    else:
        tree.pop("parameterization", None)


def _item(name: str, value: Any) -> CommentedMap:
    return CommentedMap({"property": CommentedMap({"identifier": name}), "value": yaml_trees.scalar(value)})


def _edit_space(document: Document, changed: dict[str, tuple[str, list[Any]] | None]) -> None:
    dimensions = document.tree["entitySpace"]
    for at in reversed(range(len(dimensions))):
        dimension = dimensions[at]
        pair = changed.get(str(dimension["identifier"]))
        if pair is None:
            document.step(f"{dimension['identifier']} is not a dimension here")
            comments = yaml_trees.comments(dimension)
            del dimensions[at]
            yaml_trees.comment_before(dimensions, min(at, len(dimensions) - 1), comments, indent=document.indents[1])
            continue
        name, values = pair
        if name != dimension["identifier"]:
            document.step(f"{dimension['identifier']} is {name}")
            yaml_trees.set_scalar(dimension, "identifier", name)
        domain, plain = dimension.get("propertyDomain"), document.plain["entitySpace"][at].get("propertyDomain") or {}
        if "values" in plain and (plain["values"] != values or any(map(yaml_trees.differ, plain["values"], values))):
            yaml_trees.set_values(domain["values"], values)
            if plain.get("variableType") != "CATEGORICAL_VARIABLE_TYPE":
                domain.pop("variableType", None)


def _edit_point(document: Document, changed: dict[str, tuple[str, list[Any]] | None]) -> None:
    entity = document.tree["entity"]
    for name, value in list(document.plain["entity"].items()):
        pair = changed.get(name)
        if pair is None:
            document.step(f"{name} is not a property here")
            yaml_trees.remove(entity, name)
        elif pair[0] != name:
            document.step(f"{name} is {pair[0]}")
            entity.insert(list(entity).index(name), pair[0], yaml_trees.scalar(pair[1][0]))
            comments = entity.ca.items.pop(name, None)
            del entity[name]
            if comments:
                entity.ca.items[pair[0]] = comments
        elif pair[1][0] != value or yaml_trees.differ(pair[1][0], value):
            entity[name] = yaml_trees.scalar(pair[1][0])


def _leave_out_copies(document: Document) -> None:
    """Remove experiments that have become equal, which ado rejects."""
    experiments, seen = document.tree["experiments"], []
    for at in range(len(experiments)):
        said = yaml.safe_load(yaml_trees.dumped(experiments[at]))
        said["parameterization"] = sorted(map(str, said.get("parameterization") or []))
        seen.append(said)
    for at in reversed(range(len(seen))):
        if seen[at] in seen[:at]:
            text = f"two experiments {seen[at]['experimentIdentifier']} are the same here: one of them is left out."
            document.note(text, same=False)
            del experiments[at]


# -- operations and configurations ------------------------------------------------------------------------------


def _convert_operation(document: Document) -> None:
    module = document.tree["operation"].get("module")
    if module is not None and str(module.get("moduleClass")) == "RandomWalk":
        document.tree["operation"]["module"] = CommentedMap(RANDOM_WALK)
        document.step("the module RandomWalk is the operator random_walk")
    _rename_outputs(document, document.tree["operation"].get("parameters"))
    if not document.steps:
        document.step("nothing to convert: an operation names no actuator")


def _rename_outputs(document: Document, node: Any) -> None:
    """Give measured properties in an operation's parameters, such as an optimizer's metric, the names they have here."""
    pairs = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    for key, value in pairs:
        if not isinstance(value, str):
            _rename_outputs(document, value)
        elif value in ibm_names.OUTPUTS:
            new = ibm_names.OUTPUTS[value]
            if new is None:
                document.note(f"{key} {value} has no counterpart: it is not measured here.", same=False)
            else:
                document.step(f"{key} {value} is {new}")
                yaml_trees.set_scalar(node, key, new)


def _convert_configuration(document: Document, choices: Choices) -> None:
    if document.plain["actuatorIdentifier"] != ibm_names.ACTUATOR:
        return
    yaml_trees.set_scalar(document.tree, "actuatorIdentifier", choices.actuator)
    document.step(f"the configuration is one of {choices.actuator}")
    for name in list(document.plain.get("parameters") or {}):
        document.note(f"{name} is left out: {PARAMETERS.get(name, 'there is nothing to set')}.")
    document.tree["parameters"] = CommentedMap()
    document.tree["parameters"].fa.set_flow_style()
