"""The actuators' base class: passes ado's requests to the dispatcher.

The actuator's own Ray actor must not measure: ado does not notice its death, and the operation would wait forever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import ray
from ado.modules.actuators.standard import StandardActuator
from ado.schema.request import MeasurementRequest

from .. import failures
from ..host.parameters import MeasuringParameters, validate
from ..host.state_dir import state_dir
from ..measurement.plan import make_plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import refusal
from . import catalog
from .parameters import SupervisedParameters
from .results import complete, inputs, result

if TYPE_CHECKING:
    from collections.abc import Callable

    from ado.modules.actuators.catalog import ExperimentCatalog
    from ado.schema.entity import Entity
    from ado.schema.reference import ExperimentReference


class MeasuringActuator(StandardActuator):
    """Measures fine-tuning workloads. A plugin's subclass sets the class attributes."""

    identifier: str
    description: ClassVar[Plugin]
    parameters_class: type[MeasuringParameters] = SupervisedParameters
    _dispatcher: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # ado runs it in an actor; under execute() there is no Ray
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
            # imported here, as the dispatcher is: the import of an actuator loads no more of Ray than ado does
            from ..cluster import operator_waits

            threading.Thread(
                target=operator_waits.watch, args=(_report_wait,), name="operator-waits", daemon=True
            ).start()

    @classmethod
    def catalog(cls, actuator_configuration: Any = None) -> ExperimentCatalog:
        """Return the experiments, which do not depend on the configuration."""
        return catalog.experiments(cls.identifier, cls.plugin().kinds)

    @classmethod
    def validate_parameters(cls, parameters: Any) -> Any:
        """Validate a configuration; unlike ado's own validation this one rejects misspelled keys.

        Raises:
            ValueError: the configuration is invalid; the message says why.
        """
        given = parameters if isinstance(parameters, dict) else parameters.model_dump()
        return validate(cls.parameters_class, given)

    def submit(
        self, entities: list[Entity], experimentReference: ExperimentReference, requesterid: str, requestIndex: int
    ) -> list[str]:
        """Pass a request to the dispatcher and return its id immediately."""
        request = MeasurementRequest(
            operation_id=requesterid,
            requestIndex=requestIndex,
            experimentReference=experimentReference,
            entities=entities,
            requestid=str(uuid.uuid4())[:6],
        )
        experiment = type(self).catalog().experimentForReference(experimentReference, resolve=True)
        actor = None
        with contextlib.suppress(RuntimeError):
            actor = ray.get_runtime_context().current_actor
        reference = self._dispatch().measure.remote(request, experiment, self._stateUpdateQueue, actor)
        self._launch_supervisor.supervise_experiment_executor(request, reference)
        return [request.requestid]

    def _dispatch(self) -> Any:
        if self._dispatcher is None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            from .dispatcher import Dispatcher

            actor: Any = Dispatcher
            # on the operation's node, since another one may get lost; with soft affinity Ray restarts it on any
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._dispatcher = actor.options(scheduling_strategy=here).remote(self.plugin(), self._parameters)
            try:
                cleaner = ray.get_actor("resource_cleaner", namespace=self._stateUpdateQueue.ray_namespace())
                cleaner.add_to_cleanup.remote(handle=self._dispatcher)
            except ValueError:
                logging.getLogger(__name__).debug("no resource cleaner: the dispatcher ends with its job")
        return self._dispatcher

    def _get_request_executor(
        self, request: MeasurementRequest, use_ray: bool = False
    ) -> Callable[[], MeasurementRequest]:
        experiment = type(self).catalog().experimentForReference(request.experimentReference, resolve=True)
        return functools.partial(_execute, request, experiment, self.plugin(), self._parameters)

    @classmethod
    def plugin(cls) -> Plugin:
        """Return the description of the plugin for the core."""
        return cls.description


def _report_wait(text: str, lasts: bool) -> None:
    """Show in ado's console and in the log that its operator waits in Ray."""
    from ..cluster.console import line
    from .console import spinner

    logging.getLogger(__name__).log(logging.WARNING if lasts else logging.INFO, text)
    line("wait-operator", spinner)(text, "start" if lasts else "stop")


def _execute(
    request: MeasurementRequest, experiment: Any, plugin: Plugin, parameters: MeasuringParameters
) -> MeasurementRequest:
    """Measure a request in this process tree, without Ray."""
    from ..host.local import Local

    results = []
    with Local(plugin, parameters, state_dir(parameters.state_dir)) as local:
        for entity in request.entities:
            try:
                plan = make_plan(plugin.identifier, experiment.identifier, inputs(experiment, entity))
                verdict = local.measure(plan)
            except failures.Failure as failure:
                verdict = refusal(failure, plugin.identifier, experiment.identifier)
            results.append(result(entity, request, experiment, verdict))
    return complete(request, results)
