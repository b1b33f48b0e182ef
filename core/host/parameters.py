"""The actuator configuration: where and how to measure, not what to measure.

ado reuses stored results under any configuration, so no parameter may change a result. Imports neither ado nor Ray: ``run`` reads these
parameters without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic

from ..failures import plain_message
from ..workload.value_errors import first_message
from .state_dir import state_dir

PENDING_S = 3600.0
# a cluster that grows may take hours to get nodes
AUTOSCALING_PENDING_S = 86400.0
# 30 days; Python's own timers refuse much larger numbers
Seconds = Annotated[float, pydantic.Field(gt=0, le=30 * 86400)]


# what ado's supervisor of requests adds to the configuration of an actuator; nothing here reads it
OF_ADO = (
    *("taskFailedGraceSeconds", "taskRunningTimeoutSeconds", "supervisorPollIntervalSeconds"),
    "taskPendingResourceTimeoutSeconds",
)


class MeasuringParameters(pydantic.BaseModel):
    """Parameters of both actuators."""

    model_config = pydantic.ConfigDict(extra="forbid")

    environment: Annotated[
        str,
        pydantic.Field(
            min_length=1,
            description="Python of the trainer: current (the plugin's own), managed (built on first use), or an interpreter's path.",
        ),
    ] = "current"
    reuse_workers: Annotated[
        bool,
        pydantic.Field(
            description="Measure several workloads in one trainer process; false starts a fresh one for each."
        ),
    ] = True
    idle_timeout_s: Annotated[
        Seconds, pydantic.Field(description="Seconds after which an unused trainer releases its CPUs and GPUs.")
    ] = 300.0
    run_timeout_s: Annotated[
        Seconds,
        pydantic.Field(description="Maximum seconds of one measurement after its trainers have received the workload."),
    ] = 3600.0
    pending_timeout_s: Annotated[
        Seconds | None,
        pydantic.Field(
            description="Maximum seconds to wait for CPUs and GPUs; None: an hour, with autoscaling a day.",
        ),
    ] = None
    max_retries: Annotated[
        int,
        pydantic.Field(
            ge=0,
            le=100,
            description="Repetitions after a transient failure (a lost worker or node, a broken transport).",
        ),
    ] = 2
    retry_backoff_s: Annotated[
        float,
        pydantic.Field(ge=0, le=3600, description="Seconds before the first repetition; doubled for each further one."),
    ] = 5.0
    skip_predicted_oom: Annotated[
        bool,
        pydantic.Field(
            description="Do not run workloads that are predicted not to fit their GPUs; return failure predicted_oom."
        ),
    ] = False
    price_usd_per_device_hour: Annotated[
        float | None,
        pydantic.Field(
            ge=0,
            le=1e6,
            description="Price of one GPU (on CPU: one process) for an hour; gives usd_per_million_tokens.",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, pydantic.Field(description="Let a model's repository run its own Python code.")
    ] = False
    autoscaling: Annotated[
        bool,
        pydantic.Field(description="The cluster can add nodes: wait for GPU types that it does not have yet."),
    ] = False
    state_dir: Annotated[
        str,
        pydantic.Field(
            description="Directory on each node for logs, run files and environments; empty: ado-actuators in the user's cache."
        ),
    ] = ""

    def pending_s(self) -> float:
        """Return the limit of waiting: ``pending_timeout_s``, or its default."""
        if self.pending_timeout_s is not None:
            return self.pending_timeout_s
        return AUTOSCALING_PENDING_S if self.autoscaling else PENDING_S

    @pydantic.field_validator("state_dir")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        # the path must name the same directory in processes with other working directories
        if value and not value.startswith(("/", "~")):
            raise ValueError("expected a path that begins with / or ~")
        if "\0" in value:
            raise ValueError("expected a path without zero bytes")
        try:
            state_dir(value)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return value


P = TypeVar("P", bound=MeasuringParameters)


def validate(parameters_class: type[P], given: Any) -> P:
    """Return the parameters of a configuration; misspelled keys are rejected, those of ado's supervisor are not.

    Raises:
        ValueError: the configuration is invalid; the message says why.
    """
    if isinstance(given, Mapping):
        foreign = [name for name in OF_ADO if name not in parameters_class.model_fields]
        given = {name: value for name, value in given.items() if name not in foreign}
    try:
        return parameters_class.model_validate(given)
    except pydantic.ValidationError as error:
        what = "parameter of the actuator configuration"
        raise ValueError(plain_message(first_message(error, what, parameters_class.model_fields))) from None
