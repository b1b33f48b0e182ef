"""Rows from an exported CSV, from a trace that ado wrote, or from ado's store. ado is imported only to read its store."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..protocol.results import ResultMetadata
from ..workload import ibm_names
from ..workload.experiments import KINDS
from ..workload.ibm_values import InvalidValue
from . import checks, ibm, store
from .rows import GIVEN, REQUIRED, Row, experiment_of, plain, workload_value

# columns of ado's export that are neither properties of the workload nor outputs
BOOKKEEPING = (
    "identifier", "experiment_id", "valid", "reason", "request_id", "request_index", "entity_index", "result_index",
    "generatorid",
)  # fmt: skip
HOW_TO_EXPORT = "export one with: ado show measurements operation ID -o csv --output-file F"
# how ado names a request that it answers with a stored measurement
REPLAYED = "replayed-measurement-"
HOW_TO_TRACE = "write it again with: ado show trace operation ID -o yaml --output-file F"


class Unreadable(Exception):
    """A source gives no rows; the message says why and what to do."""


def rows(source: str) -> list[Row]:
    """Return the measurements of ``source``.

    Args:
        source: the path of a CSV file that ``ado show measurements`` wrote or of a YAML file that ``ado show trace`` wrote, or
            the identifier of an operation or a space in ado's active context, or ``latest`` for the newest operation.

    Raises:
        Unreadable: the source does not exist, is incomplete, or holds no measurement of fine-tuning or an impossible value.
    """
    try:
        found = _of_fine_tuning(_from_anywhere(source))
    except InvalidValue as invalid:
        raise Unreadable(f"{source}: {invalid}") from None
    if not found:
        raise Unreadable(f"{source} holds no measurement of fine-tuning.")
    for row in found:
        if problem := checks.problem(row):
            raise Unreadable(f"{source}: {problem}")
    return found


def _from_anywhere(source: str) -> list[Row]:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_file():
        return from_csv(path) if suffix == ".csv" else from_trace(path)
    if suffix in (".csv", ".yaml", ".yml") or path.is_dir():
        raise Unreadable(f"{source} is not a file; {HOW_TO_EXPORT}.")
    return from_store(source)


def _of_fine_tuning(found: Iterable[Row | None]) -> list[Row]:
    """Leave out what other actuators have measured: a space may hold anything."""
    return [row for row in found if row is not None and row.experiment in KINDS]


# -- a CSV file -------------------------------------------------------------------------------------------------


def from_csv(path: Path) -> list[Row]:
    """Return the rows of an exported CSV file."""
    table = _table(path)
    if table and not {"identifier", "experiment_id"} <= table[0].keys():
        raise Unreadable(
            f"{path} is not an export of ado's measurements: the column experiment_id is missing; {HOW_TO_EXPORT}."
        )
    found = _of_fine_tuning([_from_cells(cells, path.name) for cells in table])
    # with --property ado leaves out the workload, and the rows cannot be distinguished
    lacking = [name for name in REQUIRED if any(name not in row.workload for row in found)]
    if lacking:
        raise Unreadable(f"{path} has rows without {', '.join(lacking)}: export it again without --property.")
    return found


def _table(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file as cells by column."""
    try:
        # spreadsheet programs write a byte order mark
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            return [_complete(cells, reader.line_num, path) for cells in reader]
    except UnicodeDecodeError:
        raise Unreadable(f"{path} cannot be read as CSV: it is not UTF-8 text.") from None
    except (OSError, csv.Error) as error:
        raise Unreadable(f"{path} cannot be read as CSV: {error}.") from None


def _complete(cells: dict[str, str], line: int, path: Path) -> dict[str, str]:
    # the reader fills a short line with None, and stores surplus cells under the key None
    if None in cells or None in cells.values():
        raise Unreadable(
            f"{path} is incomplete: line {line} has not as many cells as the header. Export the file again."
        )
    return cells


def _from_cells(cells: Mapping[str, Any], source: str) -> Row | None:
    if str(cells["experiment_id"]).startswith(f"{ibm_names.ACTUATOR}."):
        return ibm.from_cells(cells, source, BOOKKEEPING)
    actuator, experiment, parameters = experiment_of(cells["experiment_id"])
    given = {name: workload_value(name, cells[name]) for name in GIVEN if plain(cells.get(name)) is not None}
    outputs = {
        name: plain(value)
        for name, value in cells.items()
        if name and name not in GIVEN and name not in BOOKKEEPING and plain(value) is not None
    }
    message, replayed = str(plain(cells.get("reason")) or ""), str(cells.get("request_id")).startswith(REPLAYED)
    return Row(source, actuator, experiment, {**parameters, **given}, outputs, message, replayed=replayed)


# -- ado's measurement requests, from a trace or the store ------------------------------------------------------


def from_trace(path: Path) -> list[Row]:
    """Return the rows of a trace: ``ado show trace operation ID -o yaml --output-file F``."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        requests = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise Unreadable(f"{path} is neither a CSV nor a YAML trace of ado's measurements; {HOW_TO_EXPORT}.") from None
    if not isinstance(requests, list) or not all(isinstance(one, dict) and "entities" in one for one in requests):
        raise Unreadable(f"{path} is not a trace of ado's measurements; {HOW_TO_EXPORT}.")
    try:
        return _from_requests(requests, path.name)
    except (AttributeError, KeyError, TypeError):
        raise Unreadable(f"{path} is an incomplete trace of ado's measurements; {HOW_TO_TRACE}.") from None


def from_store(identifier: str) -> list[Row]:
    """Return the rows of an operation (``latest``: the newest), or of all operations on a space, in ado's active context."""
    try:
        stored, requests = store.requests_of(identifier)
    except ImportError as error:
        raise Unreadable(f"ado's store cannot be read here ({error}); {HOW_TO_EXPORT}.") from None
    except store.NotInStore:
        raise Unreadable(
            f"{identifier} is neither a file nor an operation or a space with measurements in ado's active context; "
            "see: ado get operations"
        ) from None
    return _from_requests(requests, stored)


def _from_requests(requests: Iterable[Mapping[str, Any]], source: str) -> list[Row]:
    """Return one row per measurement; a result that a later operation replays keeps its identifier and counts once."""
    found: dict[str, Row] = {}
    for request in sorted(requests, key=lambda one: str(one["timestamp"])):
        replayed = str(request.get("requestid")).startswith(REPLAYED)
        for uid, row in _from_request(request, source):
            # of all operations on a space one has measured it
            if uid not in found:
                found[uid] = dataclasses.replace(row, replayed=replayed)
            elif not replayed:
                found[uid] = row
    return list(found.values())


def _from_request(request: Mapping[str, Any], source: str) -> Iterator[tuple[str, Row]]:
    reference = request["experimentReference"]
    if reference["actuatorIdentifier"] == ibm_names.ACTUATOR:
        yield from _from_request_of_ibm(request, source)
        return
    parameters = _values(reference.get("parameterization") or [])
    entities = {
        entity["identifier"]: _values(entity.get("constitutive_property_values") or [])
        for entity in request["entities"]
    }
    for result in request.get("measurements") or []:
        metadata = result.get("metadata") or ResultMetadata()
        yield (
            result["uid"],
            Row(
                source=source,
                actuator=reference["actuatorIdentifier"],
                experiment=reference["experimentIdentifier"],
                workload={**parameters, **entities[result["entityIdentifier"]]},
                outputs=_outputs(result),
                message=result.get("reason") or metadata.get("reason") or "",
                metadata=metadata,
            ),
        )


def _from_request_of_ibm(request: Mapping[str, Any], source: str) -> Iterator[tuple[str, Row]]:
    reference = request["experimentReference"]
    parameters = _plain(reference.get("parameterization") or [])
    entities = {one["identifier"]: _plain(one.get("constitutive_property_values") or []) for one in request["entities"]}
    for result in request.get("measurements") or []:
        metadata = result.get("metadata") or ResultMetadata()
        properties = parameters | entities[result["entityIdentifier"]]
        message = result.get("reason") or metadata.get("reason") or ""
        experiment = reference["experimentIdentifier"]
        if found := ibm.row(source, experiment, properties, _outputs(result), message, metadata):
            yield result["uid"], found


def _plain(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {one["property"]["identifier"]: plain(one["value"]) for one in values}


def _outputs(result: Mapping[str, Any]) -> dict[str, Any]:
    pairs = (
        (one["property"]["targetProperty"]["identifier"], plain(one["value"]))
        for one in result.get("measurements") or []
    )
    return {name: value for name, value in pairs if value is not None}


def _values(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = ((one["property"]["identifier"], one["value"]) for one in values)
    return {name: workload_value(name, value) for name, value in pairs}
