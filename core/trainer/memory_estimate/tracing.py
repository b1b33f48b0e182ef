"""Runs a stack's own training on tensors without data, and records every storage in a ledger. Imports torch and transformers.

The stack's ``train`` runs unchanged, loss, clipping and optimizer included. Its tensors are PyTorch's fake tensors, which have shapes
and no data. Training is stopped after two optimizer steps, since the optimizer's state exists from the second one. Without the update
it is stopped before the first.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ...protocol.messages import Job
from .. import accelerate_state
from ..stack import Stack
from .attention import kernels_of_cuda
from .autocast import lists_of_cuda
from .chunked_loss import loss_of_cuda
from .four_bits import kernels_of_four_bits
from .fully_sharded import FullySharded, Wrapping
from .ledger import LOADING, PASSES, UPDATE, WHOLE, Ledger
from .optimizer_states import states_without_updates
from .values import AssumedValues, experts_of

STEPS = 2
_DEVICE = torch.ops.prim.device.default
# masks and positions of a batch up to this size keep their values, on which the model's decisions depend
MOST_CONSTANT_NUMBERS = 2**22


class TraceComplete(Exception):
    """Enough steps have been traced; ends the stack's training."""


class Watch(TorchDispatchMode):
    """Records the storages that operations allocate, and supplies assumed values (see ``values``)."""

    def __init__(self, ledger: Ledger, values: AssumedValues) -> None:
        super().__init__()
        self._ledger = ledger
        self._values = values
        self._backward = False
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            # by far the most frequent: libraries ask for the device of a tensor
            return args[0].fake_device
        kwargs = kwargs or {}
        self._note_direction()
        answered, made = self._values.answer(func, args, kwargs)
        if not answered:
            made = self._values.complete(func, args, func(*args, **kwargs))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf, str(func))
        return made

    def see(self, tensor: torch.Tensor, maker: str = "") -> int:
        """Return the number of a tensor's storage; record the storage if it is new."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage)
        if number is None:
            number = self._numbers[storage] = self._ledger.allocate(storage.nbytes(), maker)
            weakref.finalize(storage, self._ledger.free, number).atexit = False
        return number

    def name(self, tensor: torch.Tensor, kind: str) -> None:
        """Set the kind of a tensor's storage."""
        self._ledger.name(self.see(tensor), kind)

    def _note_direction(self) -> None:
        backward = torch._C._current_graph_task_id() != -1
        if backward and not self._backward:
            self._ledger.end_forward()
        self._backward = backward


class StepWatch(transformers.TrainerCallback):
    """Records the phases of a ``transformers.Trainer`` in the ledger, and makes it train on the longest samples."""

    def __init__(
        self,
        watch: Watch,
        ledger: Ledger,
        mode: fake_tensor.FakeTensorMode,
        *,
        cuda: bool,
        update: bool,
        wrapping: Callable[[torch.nn.Module], Wrapping] | None,
    ) -> None:
        self._watch = watch
        self._ledger = ledger
        self._mode = mode
        self._cuda = cuda
        self._update = update
        self._wrapping = wrapping
        self._steps = 0
        self.model: torch.nn.Module | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.model = model = kwargs["model"]
        if self._wrapping is not None and self._wrapping(model).one_type:
            computed = next(model.parameters()).dtype
            model._apply(lambda one: one.to(computed) if one.requires_grad else one)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.model = model = kwargs["model"]
        self._ledger.begin(PASSES)
        for tensor in model.parameters():
            self._watch.name(tensor, "parameters")
        for tensor in model.buffers():
            # FSDP does not shard buffers
            self._watch.name(tensor, WHOLE)
        if self._wrapping is not None:
            FullySharded(model, self._wrapping(model), self._ledger, self._watch.see)
        else:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._name_gradient)
        # some optimizers make their states when they are created
        self._name_states(kwargs["optimizer"])
        for group in kwargs["optimizer"].param_groups if self._cuda else ():
            # PyTorch's default for parameters on CUDA
            if group.get("foreach", 0) is None and not group.get("fused"):
                group["foreach"] = True
        loader = kwargs["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)
        _draw_in_order(loader)
        loader.collate_fn = _Longest(loader.dataset, loader.collate_fn, self._known)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if not self._update:
            self._end()
        self._ledger.begin(UPDATE)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._name_states(kwargs["optimizer"])
        self._ledger.begin(PASSES)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._steps += 1
        if self._steps == STEPS:
            self._end()

    def _end(self) -> None:
        self._ledger.end()
        raise TraceComplete

    def _name_states(self, optimizer: Any) -> None:
        for values in optimizer.state.values():
            for tensor in tree_leaves(dict(values)):
                if isinstance(tensor, torch.Tensor):
                    self._watch.name(tensor, "optimizer")

    def _name_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self._watch.name(parameter.grad, "gradients")

    def _known(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor that keeps its values."""
        known = self._mode.fake_tensor_converter.from_real_tensor(self._mode, tensor, make_constant=True)
        self._watch.name(known, "activations")
        return known


def _draw_in_order(loader: Any) -> None:
    """Replace a random order, which the trace would compute number by number, since ``_Longest`` chooses the samples."""
    batches: Any = getattr(loader, "batch_sampler", None)
    if isinstance(getattr(batches, "sampler", None), torch.utils.data.RandomSampler):
        batches.sampler = torch.utils.data.SequentialSampler(loader.dataset)


class _Longest:
    """Makes every batch of the longest samples, which determine the peak, regardless of the sampler's choice."""

    def __init__(self, dataset: Any, collate: Any, known: Any) -> None:
        self._dataset = dataset
        self._collate = collate
        self._known = known
        self._order: list[int] | None = None

    def __call__(self, samples: list[Any]) -> Any:
        with _disable_current_modes():
            if self._order is None:
                lengths = [len(ids) for ids in self._dataset["input_ids"]]
                self._order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
            chosen = [self._dataset[self._order[index % len(self._order)]] for index in range(len(samples))]
            batch = self._collate(chosen)
        return {key: self._known(value) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


class QuietClock:
    """The interface of ``Clock`` that stacks use, without timing."""

    def __init__(self, callback: transformers.TrainerCallback) -> None:
        self.callback = callback

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a context manager without effect."""
        return contextlib.nullcontext()


def trace(
    stack: Stack,
    job: Job,
    *,
    cuda: bool,
    update: bool = True,
    wrapping: Callable[[torch.nn.Module], Wrapping] | None = None,
) -> tuple[Ledger, torch.nn.Module]:
    """Train for up to two steps without data; return the ledger and the model, whose tensors have no data either.

    Args:
        stack: the module that trains.
        job: a job for one process without GPU.
        cuda: whether to count the memory of CUDA's kernels and optimizers instead of the CPU's.
        update: trace two steps with the optimizer's update; else the passes of the first one only.
        wrapping: returns how FSDP wraps a model; None without FSDP.
    """
    ledger = Ledger()
    ledger.begin(LOADING)
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    watch = Watch(ledger, AssumedValues(mode, experts_of(job.architecture), MOST_CONSTANT_NUMBERS))
    steps = StepWatch(watch, ledger, mode, cuda=cuda, update=update, wrapping=wrapping)
    with contextlib.ExitStack() as around:
        for context in (
            accelerate_state.restored(),
            _libraries_unaware(),
            kernels_of_four_bits(),
            states_without_updates(),
            mode,
            watch,
        ):
            around.enter_context(context)
        if cuda:
            around.enter_context(kernels_of_cuda())
            around.enter_context(loss_of_cuda())
            around.enter_context(lists_of_cuda())
        with contextlib.suppress(TraceComplete):
            stack.train(job, QuietClock(steps))
    ledger.end()
    assert steps.model is not None
    return ledger, steps.model


@contextlib.contextmanager
def _libraries_unaware() -> Iterator[None]:
    """Let models handle fake tensors like real ones: otherwise some skip decisions that depend on data, and none can be moved."""
    from transformers.utils import import_utils

    limit, apply, asked = (
        fake_tensor.CONSTANT_NUMEL_LIMIT,
        torch.nn.Module._apply,
        getattr(import_utils, "is_fake_tensor", None),
    )
    fake_tensor.CONSTANT_NUMEL_LIMIT = MOST_CONSTANT_NUMBERS
    torch.nn.Module._apply = _apply
    if asked is not None:
        import_utils.is_fake_tensor = lambda value: False
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = limit
        torch.nn.Module._apply = apply
        if asked is not None:
            import_utils.is_fake_tensor = asked


def _apply(module: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """Replace ``Module._apply``, which ``Module.to`` and similar methods use: it swaps tensors, which fake tensors do not support."""
    for child in module.children() if recurse else ():
        child._apply(change)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None and (changed := change(parameter)) is not parameter:
                module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    return module
