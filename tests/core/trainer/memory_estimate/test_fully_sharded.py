"""FSDP as it is played on a trace against FSDP itself: the same model, every allocation counted by PyTorch's profiler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import distributed  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from ado_actuators.sfttrainer.core.trainer.memory_estimate.fully_sharded import FullySharded, Wrapping  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES, UPDATE, Ledger, Sharing  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.tracing import Watch  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.values import AssumedValues  # noqa: E402

from .... import memory  # noqa: E402

pytestmark = pytest.mark.torch

WORLD, VOCABULARY, HIDDEN = 2, 512, 64


class Layer(torch.nn.Module):
    """What is wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = torch.nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

    def forward(self, given: Any) -> Any:  # noqa: D102
        return given + self.down(torch.relu(self.up(given)))


class Model(torch.nn.Module):
    """An embedding, four layers that may be frozen and checkpointed, and an output layer."""

    def __init__(self, *, frozen: bool, checkpoints: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(4))
        self.output = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.checkpoints = checkpoints
        for parameter in self.layers.parameters() if frozen else ():
            parameter.requires_grad = False

    def forward(self, ids: Any) -> Any:  # noqa: D102
        states = self.embedding(ids)
        for layer in self.layers:
            # the state of the generator of random numbers is no memory of a GPU
            once_more = {"use_reentrant": True, "preserve_rng_state": False}
            states = checkpoint(layer, states, **once_more) if self.checkpoints else layer(states)
        return self.output(states)

    def get_input_embeddings(self) -> Any:  # noqa: D102
        return self.embedding

    def get_output_embeddings(self) -> Any:  # noqa: D102
        return self.output


def step(model: Any, ids: Any) -> None:
    """Make a forward and a backward pass."""
    torch.nn.functional.cross_entropy(model(ids).view(-1, VOCABULARY), ids.view(-1)).backward()


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    """Two processes, of which only this one is there and no byte is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    yield
    distributed.destroy_process_group()


def real_peaks(wrapping: Wrapping, **kind: bool) -> list[int]:
    """Return the most bytes in the first pass, and in a second one that finds gradients."""
    model = wrapped(Model(**kind), wrapping)
    ids = torch.randint(0, VOCABULARY, (4, 32))
    step(model, ids)
    model.zero_grad()
    local = [getattr(parameter, "_local_tensor", parameter) for parameter in model.parameters()]
    held = sum(one.numel() * one.element_size() for one in local) + ids.numel() * ids.element_size()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(model, ids)
        second_ns = time.time_ns()
        step(model, ids)
    most = [0, 0]
    for begin_ns, allocated in memory.held(profile):
        number = int(begin_ns >= second_ns)
        most[number] = max(most[number], held + allocated)
    return most


def wrapped(model: Model, wrapping: Wrapping) -> Any:
    """Return the model under FSDP, divided as accelerate does."""
    if wrapping.version == 1:
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({Layer}),
            device_id=torch.device("cpu"),
            use_orig_params=True,
            backward_prefetch=None,
            sharding_strategy=ShardingStrategy.FULL_SHARD if wrapping.releases else ShardingStrategy.SHARD_GRAD_OP,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (*model.layers, model.embedding):
        fully_shard(part, mesh=mesh, reshard_after_forward=wrapping.releases)
    fully_shard(model.output, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def played_peaks(wrapping: Wrapping, **kind: bool) -> list[int]:
    """Return the same of a trace."""
    ledger, mode = Ledger(), FakeTensorMode(allow_non_fake_inputs=True)
    watch = Watch(ledger, AssumedValues(mode, 0, 0))
    with mode, watch:
        model = Model(**kind)
        ids = torch.randint(0, VOCABULARY, (4, 32))
        for parameter in model.parameters():
            watch.name(parameter, "parameters")
        FullySharded(model, wrapping, ledger, watch.see)
        step(model, ids)
        ledger.begin(UPDATE)
        step(model, ids)
    peaks = ledger.peaks(Sharing(shares={"parameters": 1 / WORLD, "gradients": 1 / WORLD}))
    return [peaks[PASSES].total, peaks[UPDATE].total]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("releases", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        {"frozen": False, "checkpoints": False},
        {"frozen": True, "checkpoints": True},
    ],
    ids=lambda kind: " ".join(name for name, value in kind.items() if value) or "plain",
)
def test_what_is_played_is_what_happens(version: int, releases: bool, kind: dict[str, bool]) -> None:
    """In the first pass and in one that finds gradients; frozen layers under version 1 keep inputs and gradients of checkpoints."""
    wrapping = Wrapping(version, releases, frozenset({"Layer"}))
    real, played = real_peaks(wrapping, **kind), played_peaks(wrapping, **kind)
    assert played == pytest.approx(real, abs=2048), f"played {played}, real {real}"
