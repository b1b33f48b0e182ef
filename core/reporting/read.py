"""Rows from an exported CSV, from a trace that ado wrote, or from ado's store. ado is imported only to read its store."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..workload.experiments import KINDS
from .rows import GIVEN, INTERVAL, MEMORY, REQUIRED, THROUGHPUT, Row, experiment_of, plain, workload_value

# of bytes, tokens a second, joules: whatever is measured, a device has less
MOST = 1e15
FAILURES = ("none", "gpu_oom", "host_oom", "predicted_oom", "invalid_configuration")
BOOKKEEPING = (
    "identifier", "experiment_id", "valid", "reason", "request_id", "request_index", "entity_index", "result_index",
    "generatorid",
)  # fmt: skip
LATEST = "latest"
HOW_TO_EXPORT = "export one with: ado show measurements operation ID -o csv --output-file F"
HOW_TO_TRACE = "write it again with: ado show trace operation ID -o yaml --output-file F"


class Unreadable(Exception):
    """A source that gives no rows, in one message."""


def rows(source: str) -> list[Row]:
    """Return the measurements of ``source``.

    Args:
        source: the path of a CSV that ``ado show measurements`` wrote or of a YAML file that ``ado show trace`` wrote, or
            the identifier of an operation or a space in ado's active context, or ``latest`` for the newest operation.

    Raises:
        Unreadable: there is no such source, it is incomplete, it holds no measurement or one that cannot be.
    """
    path = Path(source)
    if path.is_file():
        found = from_csv(path) if path.suffix.lower() == ".csv" else from_trace(path)
    elif path.suffix.lower() in (".csv", ".yaml", ".yml") or path.is_dir():
        raise Unreadable(f"{source} is no file; {HOW_TO_EXPORT}.")
    else:
        found = from_store(source)
    found = _of_fine_tuning(found)
    if not found:
        raise Unreadable(f"{source} holds no measurement of fine-tuning.")
    for row in found:
        if message := _impossible(row):
            raise Unreadable(f"{source} holds {message}")
    return found


def _impossible(row: Row) -> str | None:
    """Return what of a row no measurement gives, or None."""
    for name in row.outputs.keys() & KINDS[row.experiment].outputs.keys():
        value = row.outputs[name]
        if name == "failure":
            if value not in FAILURES:
                return f"a failure {value!r:.40}; there are {', '.join(FAILURES)}."
        elif row.output(name) is None or abs(value) > MOST:
            text = f"{value:g}" if row.output(name) is not None else f"{value!r:.40}"
            return f"a {name} of {text}, which no measurement gives."
    if row.output("is_valid") not in (None, 0, 1):
        return f"an is_valid of {row.outputs['is_valid']!r:.40}; it is 0 or 1."
    if row.throughput is not None and row.throughput <= 0:
        return f"a {THROUGHPUT} of {row.throughput:g}; every rate is positive."
    if memory := next((name for name in MEMORY if row.output(name) is not None and (row.output(name) or 0) <= 0), None):
        return f"a {memory} of {row.outputs[memory]:g}; every process takes some memory."
    if row.half_width is not None and row.half_width < 0:
        return f"a {INTERVAL} of {100 * row.half_width:g}; no interval is negative."
    # what was refused may have been asked for with anything
    sizes = ("model_max_length", "batch_size") if row.throughput is not None else ()
    for name in ("number_gpus", "number_nodes", *sizes):
        count = row.value(name)
        if not isinstance(count, int) or count < (1 if name in sizes else 0):
            return f"a {name} of {count!r:.40}, which is no number of them."
    return None


def from_csv(path: Path) -> list[Row]:
    """Return the rows of an exported CSV."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            table = [_complete(cells, reader.line_num, path) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(
            f"{path} cannot be read as CSV: {'it is no UTF-8 text' if isinstance(error, UnicodeDecodeError) else error}."
        ) from None
    if table and not {"identifier", "experiment_id"} <= table[0].keys():
        raise Unreadable(
            f"{path} is no export of ado's measurements: it lacks the column experiment_id; {HOW_TO_EXPORT}."
        )
    found = _of_fine_tuning([_from_cells(cells, path.name) for cells in table])
    # with --property ado leaves out the workload: rows that nothing tells apart
    lacking = [name for name in REQUIRED if any(name not in row.workload for row in found)]
    if lacking:
        raise Unreadable(f"{path} has rows without {', '.join(lacking)}: export it again without --property.")
    return found


def _of_fine_tuning(found: list[Row]) -> list[Row]:
    """Leave out what other actuators have measured: a space may hold anything."""
    return [row for row in found if row.experiment in KINDS]


def _complete(cells: dict[str, str], line: int, path: Path) -> dict[str, str]:
    # the reader gives None where a line is short, and the key None to what is too much
    if None in cells or None in cells.values():
        raise Unreadable(f"line {line} of {path} has not as many cells as its header: the file is incomplete.")
    return cells


def _from_cells(cells: Mapping[str, Any], source: str) -> Row:
    actuator, experiment, parameters = experiment_of(cells["experiment_id"])
    given = {name: workload_value(name, cells[name]) for name in GIVEN if plain(cells.get(name)) is not None}
    outputs = {
        name: plain(value)
        for name, value in cells.items()
        if name not in GIVEN and name not in BOOKKEEPING and plain(value) is not None
    }
    return Row(source, actuator, experiment, {**parameters, **given}, outputs, str(plain(cells.get("reason")) or ""))


def from_trace(path: Path) -> list[Row]:
    """Return the rows of a trace: ``ado show trace operation ID -o yaml --output-file F``."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        requests = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise Unreadable(f"{path} is neither a CSV nor a YAML trace of ado's measurements; {HOW_TO_EXPORT}.") from None
    if not isinstance(requests, list) or not all(isinstance(one, dict) and "entities" in one for one in requests):
        raise Unreadable(f"{path} is no trace of ado's measurements; {HOW_TO_EXPORT}.")
    try:
        return _from_requests(requests, path.name)
    except (AttributeError, KeyError, TypeError):
        raise Unreadable(f"{path} is an incomplete trace of ado's measurements; {HOW_TO_TRACE}.") from None


def from_store(identifier: str) -> list[Row]:
    """Return the rows of an operation (``latest``: the newest), or of all operations on a space, in ado's active context."""
    try:
        from ado.cli.core.config import AdoConfiguration
        from ado.core.resources import CoreResourceKinds
        from ado.core.samplestore.base import SampleStore
        from ado.metastore.base import NoRelatedResourcesError, ResourceDoesNotExistError
        from ado.metastore.sqlstore import SQLStore
    except ImportError as error:
        raise Unreadable(f"ado's store cannot be read here ({error}); {HOW_TO_EXPORT}.") from None
    context = AdoConfiguration.load().project_context
    store: Any = SQLStore(project_context=context)
    absent = Unreadable(
        f"{identifier} is neither a file nor an operation or a space with measurements in ado's active context; "
        "see: ado get operations"
    )
    if identifier == LATEST:
        newest = store.get_latest_resource_identifiers_of_kinds(kinds=[CoreResourceKinds.OPERATION])
        identifier = newest.get(CoreResourceKinds.OPERATION) or identifier
    try:
        if store.containsResourceWithIdentifier(identifier=identifier, kind=CoreResourceKinds.OPERATION):
            operations = {identifier}
        elif store.containsResourceWithIdentifier(identifier=identifier, kind=CoreResourceKinds.DISCOVERYSPACE):
            operations = store.get_resources_by_relationship(
                kind=CoreResourceKinds.DISCOVERYSPACE, identifier=identifier, result_kinds={CoreResourceKinds.OPERATION},
                max_hops=1, identifiers_only=True,
            ).get(CoreResourceKinds.OPERATION, set())  # fmt: skip
        else:
            raise absent
        requests = []
        for operation in sorted(operations):
            samples: Any = SampleStore.from_operation_identifier(operation_id=operation, metastore=store)
            requests += samples.measurement_requests_for_operation(operation_id=operation)
    except (ResourceDoesNotExistError, NoRelatedResourcesError):
        raise absent from None
    # an entity brings all results it ever had
    unwanted = {"entities": {"__all__": {"measurement_results"}}}
    return _from_requests([request.model_dump(mode="json", exclude=unwanted) for request in requests], identifier)


def _from_requests(requests: Iterable[Mapping[str, Any]], source: str) -> list[Row]:
    found: dict[str, Row] = {}
    # of a repeated workload the last one counts, whichever operation asked for it
    for request in sorted(requests, key=lambda one: str(one["timestamp"])):
        reference = request["experimentReference"]
        parameters = _values(reference.get("parameterization") or [])
        entities = {
            entity["identifier"]: _values(entity.get("constitutive_property_values") or [])
            for entity in request["entities"]
        }
        for result in request.get("measurements") or []:
            metadata = result.get("metadata") or {}
            outputs = {
                one["property"]["targetProperty"]["identifier"]: plain(one["value"])
                for one in result.get("measurements") or []
                if plain(one["value"]) is not None
            }
            # a result that an operation replays has the identifier it had when it was measured
            found[result["uid"]] = Row(
                source=source,
                actuator=reference["actuatorIdentifier"],
                experiment=reference["experimentIdentifier"],
                workload={**parameters, **entities[result["entityIdentifier"]]},
                outputs=outputs,
                message=result.get("reason") or metadata.get("reason") or "",
                metadata=metadata,
            )
    return list(found.values())


def _values(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = ((one["property"]["identifier"], one["value"]) for one in values)
    return {name: workload_value(name, value) for name, value in pairs}
