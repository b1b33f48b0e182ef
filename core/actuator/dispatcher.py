"""The one place that knows what is in flight: takes requests, leases hosts, waits, retries, answers. Ray room.

ado's own outer task needs a CPU to start and would wait for ever behind a host that holds all of them. The dispatcher
is an asynchronous actor that needs none.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from .. import failures
from ..cluster import nodes as cluster
from ..cluster.pool import Lease, Pool, Shape, remove_groups
from ..host import environment
from ..host.host import RELEASE_TIMEOUT_S, STARTUP_TIMEOUT_S, HostSpec
from ..measurement import verdict as measurement
from ..measurement.attempts import Knowledge
from ..measurement.outcome import Outcome
from ..measurement.plugin import Plugin
from ..protocol.messages import DeviceSummary
from ..workload.fields import Workload
from .parameters import MeasuringParameters
from .results import complete, inputs, result

# what a host may need beyond run_timeout_s: building an environment, importing the stack, giving memory back, ending trainers
HOST_ALLOWANCE_S = environment.BUILD_TIMEOUT_S + STARTUP_TIMEOUT_S + RELEASE_TIMEOUT_S + 300.0
# how often a host that measures is asked whether it is there, and how long it may take to say so
HOST_ASKED_EVERY_S = 15.0
HOST_SILENT_S = 60.0
# a Ray worker that starts on a busy node, its job's packages included
HOST_START_S = 900.0


# should it be killed, Ray ends its hosts, starts it again and asks it again for what it had not answered
@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)
class Dispatcher:
    """Measures requests; any number at once."""

    def __init__(self, plugin: Plugin, parameters: MeasuringParameters) -> None:
        self._plugin = plugin
        self._parameters = parameters
        # the same in each life of this actor
        owner = f"dispatcher-{ray.get_runtime_context().get_actor_id()}"
        remove_groups(owner)
        self._pool = Pool(parameters.idle_timeout_s, owner)
        self._knowledge = Knowledge()

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

    async def _verdict(self, experiment: Any, values: dict[str, Any]) -> measurement.Verdict:
        """Return a verdict whatever happens: a request without an answer would hang the operation."""
        try:
            plan = measurement.plan(self._plugin.identifier, experiment.identifier, values)
            if plan.kind.task != "memory_estimate":
                self._plugin.check(plan.workload, plan.source.architecture, environment=self._parameters.environment)
            cluster.check(plan.runs_on, autoscaling=self._parameters.autoscaling)
            if self._parameters.skip_predicted_oom and plan.kind.task == "benchmark":
                await self._refuse_too_large(plan)
            verdict = await self._runs(plan)
            self._knowledge.note(plan.workload, verdict.properties.get("failure"))
            return verdict
        except failures.Failure as failure:
            return measurement.refusal(failure, self._plugin.identifier, experiment.identifier)
        except Exception as error:
            unexpected = failures.classify_exception(type(error).__name__, str(error))
            return measurement.refusal(failures.raised(unexpected), self._plugin.identifier, experiment.identifier)

    async def _refuse_too_large(self, plan: measurement.Plan) -> None:
        known = plan.workload.gpu_model != "any" or cluster.alike()
        sentence = self._knowledge.too_large(plan.workload) if known else None
        if sentence is None and (estimate := plan.estimate()) is not None:
            sentence = measurement.too_large(estimate, await self._attempts(estimate))
        if sentence is not None:
            raise failures.PredictedOutOfMemory(sentence)

    async def _runs(self, plan: measurement.Plan) -> measurement.Verdict:
        runs: list[measurement.Run] = []
        while measurement.wants_run(plan, runs):
            runs.append(await self._attempts(plan))
        price = self._parameters.price_usd_per_device_hour
        return measurement.conclude(plan, runs, price=price)

    async def _attempts(self, plan: measurement.Plan) -> measurement.Run:
        attempt = 0
        while True:
            attempt += 1
            outcomes = await self._attempt(plan)
            run = measurement.Run(outcomes, attempt)
            if not run.may_be_repeated(plan) or attempt > self._parameters.max_retries:
                return run
            await asyncio.sleep(measurement.backoff_s(self._parameters.retry_backoff_s, attempt))

    async def _attempt(self, plan: measurement.Plan) -> list[Outcome]:
        lease = await self._pool.acquire(self._shape(plan.runs_on), self._parameters.pending_timeout_s)
        keep = False
        try:
            outcomes = await self._on(lease, plan)
            measured = all(outcome.cause is None for outcome in outcomes)
            # a lone host that has answered has already ended what failed on it, and is as good as new
            answered = len(outcomes) == len(lease.hosts) == 1 and not outcomes[0].host_lost
            keep = measured or answered
            return outcomes
        finally:
            self._pool.give_back(lease, keep=keep)

    async def _on(self, lease: Lease, plan: measurement.Plan) -> list[Outcome]:
        """Measure on the hosts of a lease; when one fails the others are not waited for long."""
        try:
            address = await asyncio.wait_for(_answer(lease.hosts[0].address.remote()), HOST_START_S)
        except Exception as error:
            return [_lost(error)]
        per_host = lease.shape.host.processes
        calls = [
            host.measure.remote(
                plan.job(
                    trust_remote_code=self._parameters.trust_remote_code,
                    address=address,
                    rank=index * per_host,
                    threads=lease.shape.cpus // per_host,
                ),
                self._parameters.run_timeout_s,
                plan.workload.model_name,
            )
            for index, host in enumerate(lease.hosts)
        ]
        tasks = [asyncio.ensure_future(_outcome(call, host)) for call, host in zip(calls, lease.hosts, strict=True)]
        limit = self._parameters.run_timeout_s + HOST_ALLOWANCE_S
        pending: set[asyncio.Future[Outcome]] = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return [_lost(TimeoutError("the host stopped answering"))]
            if any(task.result().cause is not None for task in done):
                _, pending = await asyncio.wait(pending, timeout=3.0) if pending else (set(), set())
                break
        return [task.result() for task in tasks if task.done()]

    def _shape(self, workload: Workload) -> Shape:
        cpus = cluster.cpus_per_host(workload)
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


async def _answer(call: Any) -> Any:
    return await call


async def _outcome(call: Any, host: Any) -> Outcome:
    """Return what a host's measurement gives; a host that is silent meanwhile is lost."""
    answer = asyncio.ensure_future(_answer(call))
    try:
        while not (await asyncio.wait([answer], timeout=HOST_ASKED_EVERY_S))[0]:
            await asyncio.wait_for(_answer(host.ping.remote()), HOST_SILENT_S)
        return await answer
    except ray.exceptions.RayTaskError as error:
        # the host is there, and says what went wrong in it
        return _failed(failures.classify_exception(type(error.cause).__name__, str(error.cause)))
    except Exception as error:
        answer.cancel()
        return _lost(error)


def _lost(error: Exception) -> Outcome:
    cause = failures.Transient(f"the host of the trainer was lost ({type(error).__name__}).").cause
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        # Ray's memory monitor has ended the host before the kernel had to
        cause = failures.OutOfMemory("host").cause
    return _failed(cause)


def _failed(cause: failures.Cause) -> Outcome:
    empty: DeviceSummary = {"properties": {}, "omitted": {}, "describe": {}}
    return Outcome([], cause, empty, total_s=0.0, startup_s=0.0, log="", hostname="", reused=False, host_lost=True)
