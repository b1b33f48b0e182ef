"""Keeps what estimates of one trainer process have in common, so that each trace is made once. Imports torch.

A trace depends on the model, the method and the samples of one device. It does not depend on the type of the device, on its memory or,
with the same wrapper, on the number of devices. Further workloads of a model therefore often need no trace of their own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch

from ...protocol.messages import Job

# a trace of a few layers takes about 1 MB
MOST_KEPT = 64
# properties that a trace of one process does not use
UNUSED = ("gpu_memory_gib",)

Made = TypeVar("Made")


class Kept:
    """Results by key; of more than ``most`` the one that was used least recently is dropped."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._made: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable | None, make: Callable[[], Made]) -> Made:
        """Return the result for a key, made by ``make`` where it is not known; None as the key keeps nothing."""
        if key is None:
            return make()
        if key not in self._made:
            self._made[key] = make()
            while len(self._made) > self._most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        found: Made = self._made[key]
        return found


class Outline:
    """The configuration of a model and its parameters without data, which keeps nothing else of the model alive."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._parameters = {name: _without_data(one) for name, one in model.named_parameters()}

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield names and parameters, as the model does."""
        yield from self._parameters.items()


def key(job: Job, *further: Hashable) -> Hashable | None:
    """Return a value that is equal for jobs with equal traces; None if files that may change decide what is traced.

    Args:
        job: a job for one process.
        further: what else a trace depends on.
    """
    if job.architecture is None or job.trust_remote_code or not job.workload.dataset_id.startswith("synthetic-"):
        return None
    values = dataclasses.asdict(job.workload).items()
    return (repr(job.architecture), job.source, *(repr(one) for one in values if one[0] not in UNUSED), *further)


def key_of_model(job: Job) -> Hashable | None:
    """Return a value that is equal for jobs whose models have the same layers, and repeat them in the same number of periods."""
    if job.architecture is None or job.trust_remote_code:
        return None
    workload = job.workload
    checked = (workload.weights, workload.method, workload.dataset_image_field)
    repeated = (workload.distributed_backend == "FSDP2", workload.gradient_checkpointing_every_n_layers > 1)
    return (repr(job.architecture), *checked, *repeated)


def _without_data(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    made = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    if (state := getattr(parameter, "quant_state", None)) is not None:
        made.quant_state = state
    return made
