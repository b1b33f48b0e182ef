"""Simulates FSDP in the trace of one process: gathered parameters, and gradients that are not reduced yet. Imports torch.

Under FSDP a device holds a share of parameters, gradients and optimizer state. Only the current *units* are held in full; a unit is a
wrapped layer, or the modules outside the layers. Hooks on the modules of a model that is not sharded simulate when PyTorch
(``torch.distributed.fsdp``, versions 1 and 2) gathers and releases a unit, and how long its gradients are held in full:

- A unit is gathered before its forward pass and released after it, and the same in the backward pass. SHARD_GRAD_OP does not release
  it in between.
- Version 1 keeps the modules outside the layers until the backward pass has ended, and so does version 2 with accelerate before 1.14, which
  makes one unit of them; since then version 2 keeps only the output layer. Version 2 gathers into a separate buffer first, and in the
  backward pass prefetches the next unit.
- Gradients are held in full until those of the whole unit are complete. Version 1 concatenates them in one tensor; version 2 copies
  them to a buffer, which it frees when the next unit has filled its own.
- Version 1 releases a frozen unit when the gradient of its input exists. If the unit is inside a checkpoint, the hook for this keeps the
  layer's input and that gradient until the backward pass has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .ledger import GATHERED, UNREDUCED, Ledger


@dataclasses.dataclass(frozen=True)
class Wrapping:
    """How FSDP is used.

    Attributes:
        version: 1 or 2.
        releases: whether layers are released between forward and backward pass.
        layers: names of the wrapped classes.
        one_type: whether units are gathered in the type of the frozen weights, adapters included: mixed precision.
        divides_outside: whether embedding and output layer are units of their own under version 2, as with accelerate since 1.14.
    """

    version: int
    releases: bool
    layers: frozenset[str]
    one_type: bool = False
    divides_outside: bool = True


class Unit:
    """Parameters that are gathered, released and reduced together."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, kept: bool) -> None:
        self.parameters = list(parameters)
        self.trained = [one for one in self.parameters if one.requires_grad]
        self.kept = kept
        self.bytes = sum(map(_bytes, self.parameters))
        self.trained_bytes = sum(map(_bytes, self.trained))
        self.gathered: int | None = None
        self.buffer: int | None = None
        self.before: Unit | None = None
        self.waiting = 0
        self.registered: Any = None


class FullySharded:
    """Simulates FSDP on a model: records gathered parameters and unreduced gradients in a ledger."""

    def __init__(self, model: torch.nn.Module, wrapping: Wrapping, ledger: Ledger, see: Callable[[torch.Tensor], int]):
        self._ledger = ledger
        self._see = see
        self._wrapping = wrapping
        self._backward = False
        self._last: Unit | None = None
        self._buffers: list[int] = []
        self._reducing: int | None = None
        # gradients of micro-batches before the present one, by parameter
        self._kept: dict[torch.Tensor, torch.Tensor | None] = {}
        self._units: list[Unit] = []
        self._of: dict[torch.Tensor, Unit] = {}
        self._wrap(model)
        for unit in self._units:
            for parameter in unit.trained:
                self._of[parameter] = unit
                parameter.register_post_accumulate_grad_hook(self._has_gradient)

    # -- which modules are units ---------------------------------------------------------------------------------

    def _wrap(self, model: torch.nn.Module) -> None:
        layers = [
            (parent, name, child)
            for parent in list(model.modules())
            for name, child in list(parent.named_children())
            if type(child).__name__ in self._wrapping.layers
        ]
        taken: set[torch.Tensor] = set()
        for _, _, layer in layers:
            taken |= set(layer.parameters())
        # PEFT wraps each trained parameter of a layer separately; each is small, and reduced at once
        adapted = hasattr(model, "peft_config")
        for parent, name, layer in layers:
            mine = list(layer.parameters())
            small = [one for one in mine if one.requires_grad] if adapted else []
            unit = self._unit([one for one in mine if not any(one is other for other in small)])
            for one in small:
                self._unit([one])
            if self._wrapping.version == 1:
                setattr(parent, name, _Wrapped(layer, self, unit))
            else:
                self._hook(layer, unit)
        rest = [one for one in model.parameters() if one not in taken]
        divides = self._wrapping.version == 2 and self._wrapping.divides_outside
        outside = self._outside(model, rest) if divides else []
        for module, unit in outside:
            self._hook(module, unit)
        done = {one for _, unit in outside for one in unit.parameters}
        self._root(model, self._unit([one for one in rest if one not in done], kept=True))

    def _outside(self, model: Any, rest: list[torch.nn.Parameter]) -> list[tuple[torch.nn.Module, Unit]]:
        """Return the units of embedding and output layer, for releases of accelerate that wrap these."""
        embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
        if embedding is None or output is None or embedding.weight is output.weight:
            # shared weights belong to the root unit, which stays gathered
            return []
        inside = [(embedding, False), (output, True)]
        return [
            (module, self._unit([one for one in module.parameters() if any(one is other for other in rest)], kept=kept))
            for module, kept in inside
        ]

    def _unit(self, parameters: Iterable[torch.nn.Parameter], *, kept: bool = False) -> Unit:
        unit = Unit(parameters, kept=kept or not self._wrapping.releases)
        self._units.append(unit)
        return unit

    def _hook(self, module: torch.nn.Module, unit: Unit) -> None:
        module.register_forward_pre_hook(lambda *given: self.enter(unit, given[1:]), with_kwargs=True)
        module.register_forward_hook(lambda module, given, made: self.leave(unit, made))

    def _root(self, model: torch.nn.Module, unit: Unit) -> None:
        def begin(module: Any, given: Any) -> None:
            self._begin()
            self.enter(unit, given)

        def end(module: Any, given: Any, made: Any) -> None:
            self.leave(unit, made)
            self._drop_buffers()

        model.register_forward_pre_hook(begin)
        model.register_forward_hook(end)

    # -- forward -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Set gradients of earlier micro-batches aside, since new gradients are held in full until they are reduced."""
        for parameter in self._of:
            if parameter.grad is not None:
                self._kept[parameter] = parameter.grad
                parameter.grad = None

    def enter(self, unit: Unit, given: Any) -> None:
        """Gather a unit before its forward pass."""
        self._gather(unit)
        if not self._backward:
            unit.before = self._last if self._last is not unit else unit.before
            self._last = unit
        if not unit.trained and torch.is_grad_enabled() and unit.registered is None:
            inputs = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
            if self._wrapping.version == 2:
                for leaf in inputs:
                    leaf.register_hook(lambda _: self._release(unit))
            elif inputs:
                unit.registered = torch.autograd.graph.register_multi_grad_hook(inputs, lambda _: self._release(unit))

    def leave(self, unit: Unit, made: Any) -> None:
        """Release a unit after its forward pass, and gather it again when the gradient of its output arrives."""
        if not unit.kept and not (self._backward and self._wrapping.version == 2):
            self._release(unit)
        for leaf in tree_leaves(_plain(made)):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda _: self._before_backward(unit))

    def _gather(self, unit: Unit) -> None:
        if unit.gathered is not None or not unit.bytes:
            return
        two = self._wrapping.version == 2
        if two and unit.buffer is None:
            unit.buffer = self._allocate(unit.bytes, GATHERED)
        if two and not self._backward:
            # the buffer of the previous unit is kept until this one's has been filled
            self._drop_buffers()
        unit.gathered = self._allocate(unit.bytes, GATHERED)
        if two and unit.buffer is not None:
            self._buffers.append(unit.buffer)
            unit.buffer = None
            if self._backward:
                self._drop_buffers()

    def _release(self, unit: Unit) -> None:
        if unit.gathered is not None:
            self._ledger.free(unit.gathered)
            unit.gathered = None

    # -- backward ------------------------------------------------------------------------------------------------

    def _before_backward(self, unit: Unit) -> None:
        if not self._backward:
            self._backward = True
            for each in self._units:
                each.waiting = len(each.trained)
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
            self._drop_buffers()
        self._gather(unit)
        ahead = unit.before
        if self._wrapping.version == 2 and ahead is not None and ahead.gathered is None and ahead.buffer is None:
            ahead.buffer = self._allocate(ahead.bytes, GATHERED)
            # only once: a later hook of the same unit must not prefetch a unit that has already been released
            unit.before = None

    def _has_gradient(self, parameter: torch.Tensor) -> None:
        unit = self._of[parameter]
        assert parameter.grad is not None
        self._ledger.name(self._see(parameter.grad), UNREDUCED)
        unit.waiting -= 1
        if unit.waiting == 0:
            self._reduce(unit)

    def _reduce(self, unit: Unit) -> None:
        two = self._wrapping.version == 2
        if two:
            self._release(unit)
            self._end_reduction()
        whole = self._allocate(unit.trained_bytes, UNREDUCED) if len(unit.trained) > 1 or two else None
        for parameter in unit.trained:
            self._keep(parameter)
        if not two:
            self._release(unit)
            if whole is not None:
                self._ledger.free(whole)
        else:
            self._reducing = whole

    def _keep(self, parameter: torch.Tensor) -> None:
        """Count only the share of a gradient from now on; with micro-batches it is added to the share of the earlier ones."""
        made = parameter.grad
        if made is None:
            return
        if self._kept.get(parameter) is None:
            self._ledger.turn(self._see(made), "gradients")
            self._kept[parameter] = made
        parameter.grad = None

    def _end_reduction(self) -> None:
        if self._reducing is not None:
            self._ledger.free(self._reducing)
            self._reducing = None

    def _end(self) -> None:
        """End the backward pass: reduce the remaining gradients and release all units."""
        self._backward = False
        self._last = None
        for unit in self._units:
            if unit.waiting:
                for parameter in unit.trained:
                    self._keep(parameter)
            self._release(unit)
            if unit.buffer is not None:
                self._ledger.free(unit.buffer)
                unit.buffer = None
            if unit.registered is not None:
                unit.registered.remove()
                unit.registered = None
        self._end_reduction()
        self._drop_buffers()
        for parameter, gradient in self._kept.items():
            parameter.grad = gradient
        self._kept.clear()

    # -- the account ---------------------------------------------------------------------------------------------

    def _allocate(self, size: int, kind: str) -> int:
        number = self._ledger.allocate(size)
        self._ledger.name(number, kind)
        return number

    def _drop_buffers(self) -> None:
        for number in self._buffers:
            self._ledger.free(number)
        self._buffers.clear()


class _Wrapped(torch.nn.Module):
    """Wraps a layer like version 1 of FSDP, so that hooks of the layer itself run inside the unit."""

    def __init__(self, layer: torch.nn.Module, sharded: FullySharded, unit: Unit) -> None:
        super().__init__()
        self.layer = layer
        self._played = (sharded, unit)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        sharded, unit = self._played
        sharded.enter(unit, (args, kwargs))
        made = self.layer(*args, **kwargs)
        sharded.leave(unit, made)
        return made


def _plain(made: Any) -> Any:
    """Return a model's output as a container that ``torch.utils._pytree`` knows."""
    return dict(made) if isinstance(made, dict) else made


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
