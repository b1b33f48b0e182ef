"""Rows from ado's store: recorded requests in a real database."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ado.cli.core.config import AdoConfiguration
from ado.core.discoveryspace.resource import DiscoverySpaceResource
from ado.core.operation.resource import OperationResource
from ado.core.samplestore.config import SampleStoreConfiguration
from ado.core.samplestore.utils import create_sample_store_resource
from ado.metastore.sqlstore import SQLStore
from ado.schema.request import MeasurementRequest

from ado_actuators.sfttrainer.core.reporting import read
from ado_actuators.sfttrainer.core.reporting.rows import Row

from .conftest import RECORDINGS

pytestmark = pytest.mark.ray

LATER, EARLIER = "random_walk-0", "random_walk-1"


@pytest.fixture(scope="module")
def space() -> str:
    """A space that has the recorded operation as two; the later one is the first by name."""
    context = AdoConfiguration.load().project_context
    metastore: Any = SQLStore(project_context=context)
    module = {"moduleClass": "SQLSampleStore", "moduleName": "ado.core.samplestore.sql"}
    specification = {"module": module, "storageLocation": context.metadataStore.model_dump()}
    configuration = SampleStoreConfiguration.model_validate({"specification": specification})
    stored, samples = create_sample_store_resource(configuration=configuration, resource_store=metastore)
    asked: Any = {"sampleStoreIdentifier": stored.identifier}
    one = DiscoverySpaceResource(config=asked)
    metastore.addResourceWithRelationships(one, [stored.identifier])
    requests = yaml.safe_load((RECORDINGS / "operation.yaml").read_text())
    for operation, mine in ((EARLIER, requests[:6]), (LATER, requests[6:])):
        walk = {"operatorName": "random_walk", "operationType": "explore"}
        resource = OperationResource.model_validate({
            "identifier": operation, "operationType": "explore", "operatorIdentifier": "random_walk",
            "config": {"spaces": [one.identifier], "operation": {"module": walk}},
        })  # fmt: skip
        metastore.addResourceWithRelationships(resource, [one.identifier])
        for request in mine:
            whole = MeasurementRequest.model_validate({**request, "operation_id": operation})
            added = samples.add_measurement_request(whole)
            samples.add_measurement_results(whole.measurements, False, added)
    return one.identifier


def contents(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Return the contents of rows without their source."""
    return [(row.key, row.outputs, row.message, row.metadata) for row in rows]


def test_a_space_gives_the_rows_of_all_its_operations(space: str, recorded: list[Row]) -> None:
    """In the order of the requests, whatever the names of the operations."""
    found = read.rows(space)
    assert contents(found) == contents(recorded)
    assert {row.source for row in found} == {space}


@pytest.mark.usefixtures("space")
def test_an_operation_gives_its_own_rows(recorded: list[Row]) -> None:
    """By its identifier; latest is the newest operation, under its own identifier."""
    assert contents(read.rows(EARLIER)) == contents(recorded[:6])
    assert contents(read.rows("latest")) == contents(read.rows(LATER)) == contents(recorded[6:])
    assert {row.source for row in read.rows("latest")} == {LATER}
