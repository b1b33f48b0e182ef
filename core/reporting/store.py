"""Measurement requests from ado's store, in ado's active context. Imports ado when it is called."""

from __future__ import annotations

from typing import Any

LATEST = "latest"


class NotInStore(Exception):
    """The store has no operation and no space with this identifier, or the space has no operation."""


def requests_of(identifier: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the identifier and the measurement requests of an operation (``latest``: the newest), or of all operations on a space.

    The identifier is the stored one, also for ``latest``. The requests have the form of ``ado show trace``, without the
    results that an entity has from other requests.

    Raises:
        ImportError: ado is not installed, or a version that cannot be used.
        NotInStore: nothing is stored under this identifier.
    """
    from ado.cli.core.config import AdoConfiguration
    from ado.core.resources import CoreResourceKinds
    from ado.core.samplestore.base import SampleStore
    from ado.metastore.base import NoRelatedResourcesError, ResourceDoesNotExistError
    from ado.metastore.sqlstore import SQLStore

    store: Any = SQLStore(project_context=AdoConfiguration.load().project_context)
    if identifier == LATEST:
        kind = CoreResourceKinds.OPERATION
        identifier = store.get_latest_resource_identifiers_of_kinds(kinds=[kind]).get(kind) or identifier
    found: list[Any] = []
    try:
        for operation in sorted(_operations(store, identifier)):
            samples: Any = SampleStore.from_operation_identifier(operation_id=operation, metastore=store)
            found += samples.measurement_requests_for_operation(operation_id=operation)
    except (ResourceDoesNotExistError, NoRelatedResourcesError):
        raise NotInStore(identifier) from None
    unwanted = {"entities": {"__all__": {"measurement_results"}}}
    return identifier, [request.model_dump(mode="json", exclude=unwanted) for request in found]


def _operations(store: Any, identifier: str) -> set[str]:
    """Return the identifiers of the operations that ``identifier`` stands for.

    Raises:
        NotInStore: it is neither an operation nor a space.
    """
    from ado.core.resources import CoreResourceKinds

    operation, space = CoreResourceKinds.OPERATION, CoreResourceKinds.DISCOVERYSPACE
    if store.containsResourceWithIdentifier(identifier=identifier, kind=operation):
        return {identifier}
    if not store.containsResourceWithIdentifier(identifier=identifier, kind=space):
        raise NotInStore(identifier)
    related = store.get_resources_by_relationship(
        kind=space, identifier=identifier, result_kinds={operation}, max_hops=1, identifiers_only=True
    )
    return set(related.get(operation, ()))
