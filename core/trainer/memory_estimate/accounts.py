"""Traces a workload at the requested batch sizes. A model whose layers repeat is traced at two small depths only. Imports torch.

An *account* (see ``ledger``) lists the allocations and frees of a traced step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch

from ...protocol.messages import Job
from . import kept
from .depth import Depths, depths
from .extrapolation import Grown, Irregular, batches, deeper, grown_like
from .ledger import Ledger

# with this many tokens a loss that is computed in chunks has several of them
TOKENS = 8192

Trace = Callable[[Job, int, bool], tuple[Ledger, kept.Outline]]


class Layered:
    """The parameters and the configuration of a model, which was traced as it is or as two models of fewer layers."""

    def __init__(self, model: Any, shallow: Any = None, depths: Depths | None = None) -> None:
        self.config = model.config
        self.architecture = depths.architecture if depths else model.config.to_dict()
        self._parameters = dict(model.named_parameters())
        self._more: list[torch.nn.Parameter] = []
        if depths is not None:
            known = {name for name, _ in shallow.named_parameters()}
            more = [one for name, one in self._parameters.items() if name not in known]
            self._more = more * (depths.times - 1)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the parameters of all layers. Layers that were not traced are represented by the parameters of a traced equal layer."""
        yield from self._parameters.values()
        yield from self._more


@dataclasses.dataclass(frozen=True)
class Passes:
    """Accounts of the passes through the model, for each batch size per device from ``base``."""

    grown: Grown
    base: int

    def part(self, batch: int) -> Fraction:
        """Return ``batch`` divided by ``base``."""
        return Fraction(batch, self.base)

    def at(self, batch: int) -> Ledger:
        """Return the ledger of ``batch`` samples per device."""
        return self.grown.at(self.part(batch))


class Accounts:
    """Accounts of one workload.

    Args:
        job: the workload.
        trace: traces a job with a batch size per device, with or without the optimizer's update.
        earlier: what earlier workloads had in common with this one.
    """

    def __init__(self, job: Job, trace: Trace, earlier: kept.Kept) -> None:
        self._job = job
        self._trace = trace
        self._depths = earlier.get(kept.key_of_model(job), lambda: depths(job))
        self._kept: tuple[int, tuple[Ledger, Layered]] | None = None

    def traced(self, batch: int, *, update: bool) -> tuple[Ledger, Layered]:
        """Return the ledger of ``batch`` samples per device, and the model. The last result with ``update`` is cached."""
        if update and self._kept is not None and self._kept[0] == batch:
            return self._kept[1]
        made = self._traced(batch, update)
        if update:
            self._kept = batch, made
        return made

    def _traced(self, batch: int, update: bool) -> tuple[Ledger, Layered]:
        if self._depths is not None:
            try:
                return self._two_depths(self._depths, batch, update)
            except Irregular:
                self._depths = None
        ledger, model = self._trace(self._job, batch, update)
        return ledger, Layered(model)

    def passes(self) -> Passes:
        """Return the accounts of the passes for each batch size from ``Passes.base``.

        Raises:
            Irregular: memory does not grow linearly with the batch.
        """
        # at least two samples: with one, some operations need no copy, because a dimension of size one has no order
        base = max(2, -(-TOKENS // self._job.workload.model_max_length))
        if self._depths is None:
            return Passes(self._grown(self._job, base), base)
        shallow = self._grown(self._with(self._depths.shallow), base)
        more_layers = self._with(self._depths.deep)
        once, _ = self._trace(more_layers, base, False)
        try:
            deep = grown_like(shallow, once)
        except Irregular:
            deep = batches(once, self._trace(more_layers, 2 * base, False)[0])
        return Passes(deeper(shallow, deep, self._depths.times), base)

    def _grown(self, job: Job, base: int) -> Grown:
        return batches(self._trace(job, base, False)[0], self._trace(job, 2 * base, False)[0])

    def _two_depths(self, found: Depths, batch: int, update: bool) -> tuple[Ledger, Layered]:
        shallow, few = self._trace(self._with(found.shallow), batch, update)
        deep, more = self._trace(self._with(found.deep), batch, update)
        made = deeper(fixed(shallow), fixed(deep), found.times)
        return made.at(Fraction(1)), Layered(more, few, found)

    def _with(self, architecture: dict[str, Any]) -> Job:
        return dataclasses.replace(self._job, architecture=architecture)


def fixed(ledger: Ledger) -> Grown:
    """Return the account of a single batch size in the form of one whose storages do not grow."""
    account = ledger.account()
    return Grown(account, account.sizes, account.sizes)
