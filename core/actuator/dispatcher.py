"""The dispatcher: an asynchronous Ray actor that takes ado's requests, leases hosts, measures and puts results on ado's queue.

It reserves no CPU. ado's own task for a request reserves one, and would wait forever while hosts hold all CPUs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray

from .. import failures
from ..cluster import nodes
from ..cluster.console import line
from ..cluster.hosts import Lease, Shape, answer, remove_groups
from ..cluster.pool import Pool
from ..cluster.snapshot import owner_name
from ..host import environment
from ..host.host import RELEASE_TIMEOUT_S, STARTUP_TIMEOUT_S, HostSpec
from ..host.parameters import MeasuringParameters
from ..measurement import attempts
from ..measurement.outcome import Outcome
from ..measurement.plan import Plan, make_plan
from ..measurement.plugin import Plugin
from ..measurement.verdict import Verdict, refusal
from ..protocol.results import DeviceSummary
from ..workload.fields import Workload
from .console import spinner
from .results import complete, inputs, result

# time a host may need beyond run_timeout_s: to build an environment, import the stack, free memory and end trainers
HOST_ALLOWANCE_S = environment.BUILD_TIMEOUT_S + STARTUP_TIMEOUT_S + RELEASE_TIMEOUT_S + 300.0
# interval of pings to a measuring host, which is lost if it does not answer within HOST_SILENT_S
HOST_PING_INTERVAL_S = 15.0
HOST_SILENT_S = 60.0
# a Ray worker may start slowly: on a busy node it also installs its job's packages
HOST_START_S = 900.0


# if the dispatcher is killed, Ray ends its hosts, restarts it and repeats its unfinished calls. Restarts are not limited: an operation may
# take weeks. A call is limited, so that one that kills the dispatcher each time ends
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=10)
class Dispatcher:
    """Measures any number of requests concurrently."""

    def __init__(self, plugin: Plugin, parameters: MeasuringParameters) -> None:
        self._plugin = plugin
        self._parameters = parameters
        # a restarted actor keeps its id, so it finds its previous placement groups
        owner = owner_name(ray.get_runtime_context().get_actor_id())
        remove_groups(owner)
        self._pool = Pool(
            parameters.idle_timeout_s, owner, autoscaling=parameters.autoscaling, report=self._report_wait
        )
        self._waits: dict[str, Callable[[str, str], None]] = {}
        self._known_out_of_memory = attempts.KnownOutOfMemory()
        self._shares = nodes.StableShares()

    async def measure(self, request: Any, experiment: Any, queue: Any, actuator: Any) -> None:
        """Measure every entity of ``request`` and put the completed request on ado's ``queue``."""
        verdicts = await asyncio.gather(
            *(self._verdict(experiment, inputs(experiment, entity)) for entity in request.entities)
        )
        results = [
            result(entity, request, experiment, verdict)
            for entity, verdict in zip(request.entities, verdicts, strict=True)
        ]
        await queue.put_async(complete(request, results))
        if actuator is not None:
            actuator.mark_measurement_request_completed.remote(request.requestid)

    async def cleanup(self) -> None:
        """End every host; ado calls it when the operation ends."""
        self._pool.close()

    def _report_wait(self, identifier: str, text: str, lasts: bool, warn: bool) -> None:
        """Show a long wait in ado's console and in the log, which ``run_experiment`` prints."""
        logging.getLogger(__name__).log(logging.WARNING if warn else logging.INFO, text)
        show = self._waits.pop(identifier, None) or line(f"wait-{identifier}", spinner)
        show(text, "start" if lasts else "stop")
        if lasts:
            self._waits[identifier] = show

    async def _verdict(self, experiment: Any, values: dict[str, Any]) -> Verdict:
        """Return a verdict also for errors, because a request without an answer would block the operation."""
        try:
            plan = make_plan(self._plugin.identifier, experiment.identifier, values)
            if plan.kind.task != "memory_estimate":
                self._plugin.check(plan.workload, plan.source.architecture, environment=self._parameters.environment)
            self._check(plan.runs_on)
            return await self._measure(plan)
        except failures.Failure as failure:
            return refusal(failure, self._plugin.identifier, experiment.identifier)
        except Exception as error:
            unexpected = failures.classify_exception(type(error).__name__, str(error), "scheduling the measurement")
            return refusal(failures.raised(unexpected), self._plugin.identifier, experiment.identifier)

    async def _measure(self, plan: Plan) -> Verdict:
        same_gpus = plan.workload.gpu_model != "any" or nodes.alike()
        steps = attempts.procedure(plan, self._parameters, self._known_out_of_memory, same_gpus=same_gpus)
        outcomes: list[Outcome] | None = None
        while True:
            try:
                step = steps.send(outcomes)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            outcomes = None
            if isinstance(step, attempts.Attempt):
                outcomes = await self._attempt(step.plan)
            else:
                await asyncio.sleep(step.seconds)

    async def _attempt(self, plan: Plan) -> list[Outcome]:
        lease = await self._pool.acquire(
            self._shape(plan.runs_on),
            self._parameters.pending_s(),
            lambda: self._check(plan.runs_on),
        )
        keep = False
        try:
            outcomes = await self._on(lease, plan)
            measured = all(outcome.cause is None for outcome in outcomes)
            # a single host that answered has replaced its failed trainers, so it can be reused
            answered = len(outcomes) == len(lease.hosts) == 1 and not outcomes[0].host_lost
            keep = measured or answered
            return outcomes
        finally:
            self._pool.give_back(lease, keep=keep)

    async def _on(self, lease: Lease, plan: Plan) -> list[Outcome]:
        """Measure on the hosts of a lease; after one host fails, wait only briefly for the others."""
        try:
            address = await asyncio.wait_for(answer(lease.hosts[0].address.remote()), HOST_START_S)
        except Exception as error:
            return [_lost(error)]
        per_host = lease.shape.host.processes
        calls = [
            host.measure.remote(
                plan.job(
                    trust_remote_code=self._parameters.trust_remote_code,
                    address=address,
                    rank=index * per_host,
                    threads=lease.shape.host.threads,
                ),
                self._parameters.run_timeout_s,
                plan.workload.model_name,
                spinner,
            )
            for index, host in enumerate(lease.hosts)
        ]
        tasks = [asyncio.ensure_future(_outcome(call, host)) for call, host in zip(calls, lease.hosts, strict=True)]
        limit = self._parameters.run_timeout_s + HOST_ALLOWANCE_S
        pending: set[asyncio.Future[Outcome]] = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return [_lost(TimeoutError("The host does not answer."))]
            if any(task.result().cause is not None for task in done):
                _, pending = await asyncio.wait(pending, timeout=3.0) if pending else (set(), set())
                break
        return [task.result() for task in tasks if task.done()]

    def _check(self, workload: Workload) -> None:
        nodes.check(workload, self._shares.cpus_per_host(workload), autoscaling=self._parameters.autoscaling)

    def _shape(self, workload: Workload) -> Shape:
        cpus = self._shares.cpus_per_host(workload)
        processes = max(1, workload.gpus_per_node)
        return Shape(
            host=HostSpec(
                environment=self._parameters.environment,
                requirements=self._plugin.requirements_of(workload)
                if self._parameters.environment == "managed"
                else None,
                processes=processes,
                gpus=workload.gpus_per_node,
                threads=max(1, cpus // processes),
                state_dir=self._parameters.state_dir,
                reuse=self._parameters.reuse_workers,
            ),
            nodes=workload.number_nodes,
            cpus=cpus,
            gpu_model=workload.gpu_model,
            roce=workload.enable_roce,
        )


async def _outcome(call: Any, host: Any) -> Outcome:
    """Return a host's outcome; a host that stops answering pings is lost."""
    answered = asyncio.ensure_future(answer(call))
    try:
        while not (await asyncio.wait([answered], timeout=HOST_PING_INTERVAL_S))[0]:
            await asyncio.wait_for(answer(host.ping.remote()), HOST_SILENT_S)
        outcome: Outcome = await answered
        return outcome
    except ray.exceptions.RayTaskError as error:
        # an exception was raised in the host itself, which leaves its trainers in an unknown state
        return _failed(failures.classify_exception(type(error.cause).__name__, str(error.cause), "running the host"))
    except Exception as error:
        answered.cancel()
        return _lost(error)


def _lost(error: Exception) -> Outcome:
    cause = failures.Transient(
        f"The host of the trainer was lost ({type(error).__name__}): its node or Ray worker ended; see Ray's logs of the node."
    ).cause
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        # Ray's memory monitor has ended the host before the kernel would have
        cause = failures.OutOfMemory("host").cause
    return _failed(cause)


def _failed(cause: failures.Cause) -> Outcome:
    empty: DeviceSummary = {"properties": {}, "omitted": {}, "describe": {}}
    return Outcome([], cause, empty, total_s=0.0, startup_s=0.0, log="", hostname="", reused=False, host_lost=True)
