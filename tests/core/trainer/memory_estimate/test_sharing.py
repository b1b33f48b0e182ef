"""What one device holds of a trace, and which kernel attention takes on CUDA: exact numbers on a model of two layers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ado_actuators.sfttrainer.core.protocol import supported  # noqa: E402
from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.errors import Refused  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import attention, one_device  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.fully_sharded import Wrapping  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import GATHERED, PASSES, UPDATE  # noqa: E402
from ado_actuators.sfttrainer.core.workload import validation as workload  # noqa: E402

pytestmark = pytest.mark.torch

WORKSPACE = 2 * 32 * 2**20
# 4 bytes × (10 × 10) each: two layers, and an embedding outside them
LAYER, REST = 400, 1200


class Layer(torch.nn.Module):
    """What FSDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(10, 10, bias=False)


class Model(torch.nn.Module):
    """An embedding and two layers."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 10)
        self.layers = torch.nn.ModuleList([Layer(), Layer()])


def asked(**change: Any) -> JobWorkload:
    """Return a workload as a job has it."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 16, "batch_size": 8, "number_gpus": 4}
    return JobWorkload(**workload.parse({**values, **change}).model_dump())


def test_one_gpu_holds_everything() -> None:
    """Nothing is divided; cuBLAS's workspace comes on top."""
    got = one_device.sharing(asked(number_gpus=1), Model(), WORKSPACE)
    assert (got.shares, got.update_share, got.block_bytes) == ({}, 1.0, 512)
    assert got.extra_bytes == {PASSES: {"temporaries": WORKSPACE}, UPDATE: {"temporaries": WORKSPACE}}


def test_ddp_holds_its_gradients_twice() -> None:
    """Buckets are as large as the gradients of what is trained."""
    model = Model()
    model.embedding.weight.requires_grad = False
    got = one_device.sharing(asked(), model)
    assert got.extra_bytes[PASSES]["gradients"] == got.extra_bytes[UPDATE]["gradients"] == 2 * LAYER
    assert got.shares == {}


def test_full_shard_holds_a_share() -> None:
    """A quarter of everything; what is whole for a while is in the trace."""
    got = one_device.sharing(asked(distributed_backend="FSDP"), Model(), WORKSPACE)
    assert got.shares == {"parameters": 0.25, "gradients": 0.25, "optimizer": 0.25}
    assert got.update_share == 0.25
    assert got.extra_bytes == {PASSES: {"temporaries": WORKSPACE}, UPDATE: {"temporaries": WORKSPACE}}


@pytest.mark.parametrize(
    ("change", "version", "releases"),
    [
        ({"distributed_backend": "FSDP"}, 1, True),
        ({"distributed_backend": "FSDP", "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, 1, False),
        ({"distributed_backend": "FSDP", "fsdp_sharding_strategy": "HYBRID_SHARD"}, 1, True),
        ({"distributed_backend": "FSDP2"}, 2, True),
        ({"distributed_backend": "FSDP2", "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, 2, False),
    ],
)
def test_how_a_model_is_wrapped(change: dict[str, Any], version: int, releases: bool) -> None:
    """The model's own layers; full sharding releases them between the passes."""
    assert one_device.wrapping(asked(**change), Model(), "1.15.0") == Wrapping(version, releases, frozenset({"Layer"}))


def test_older_releases_of_accelerate_divide_only_the_layers() -> None:
    """Embedding and output layer are units of their own since 1.14; with older releases both stay gathered."""
    found = {
        release: one_device.wrapping(asked(distributed_backend="FSDP2"), Model(), release).divides_outside
        for release in ("0.34.2", "1.9.0", "1.13.0", "1.14.0.dev0", "1.15.0", "2.0")
    }
    assert [release for release, divides in found.items() if divides] == ["1.14.0.dev0", "1.15.0", "2.0"]


def test_hybrid_shards_within_a_node() -> None:
    """Each node of two GPUs holds everything once."""
    change = {"distributed_backend": "FSDP", "fsdp_sharding_strategy": "HYBRID_SHARD", "number_nodes": 2}
    assert one_device.sharing(asked(**change), Model()).shares["optimizer"] == 0.5


def test_shards_keep_the_type_of_the_weights() -> None:
    """The trace of mixed precision is made in the computing type, half as wide as the shards."""
    change = {"distributed_backend": "FSDP", "mixed_precision": "bf16"}
    assert one_device.sharing(asked(**change), Model()).shares["parameters"] == 0.5
    traced = one_device.single_process_job(Job(id="test", workload=asked(**change), world_size=4), 2).workload
    assert (traced.torch_dtype, traced.mixed_precision) == ("bfloat16", "bf16")


def test_what_is_trained_in_mixed_precision_has_shards_in_float32() -> None:
    """Whatever the type of the weights: accelerate widens it. Frozen weights keep theirs; here half of the bytes are trained."""
    change = {"distributed_backend": "FSDP", "mixed_precision": "bf16", "torch_dtype": "bfloat16"}
    got = one_device.sharing(asked(**change), Model())
    assert got.shares == {"parameters": 0.5, "gradients": 0.5, "optimizer": 0.5}
    assert got.update_share == 0.5
    model = Model()
    model.embedding.weight.requires_grad = False
    got = one_device.sharing(asked(**change), model)
    assert got.shares["parameters"] == pytest.approx((2 * LAYER * 2 + REST) / (2 * LAYER + REST) / 4)
    assert got.shares["optimizer"] == 0.5


def test_layers_that_are_not_there_are_refused() -> None:
    """Nothing would be wrapped, and the estimate be that of no sharding; of several classes each is looked for."""
    change = {"distributed_backend": "FSDP", "fsdp_transformer_layer_cls_to_wrap": "Nope"}
    with pytest.raises(Refused, match="Nope names no layer of this model"):
        one_device.wrapping(asked(**change), Model(), "1.15.0")
    wanted = asked(**change | {"fsdp_transformer_layer_cls_to_wrap": "Nope, Layer"})
    both = one_device.wrapping(wanted, Model(), "1.15.0")
    assert both.layers == {"Nope", "Layer"}


def test_offloaded_shards_are_not_on_the_device() -> None:
    """What is gathered is."""
    got = one_device.sharing(asked(distributed_backend="FSDP", fsdp_cpu_offload=True), Model())
    assert got.shares["parameters"] == 0.0
    assert GATHERED not in got.shares


def test_the_job_of_a_trace_is_that_of_one_process_without_gpu() -> None:
    """The batch of a device, and at most two micro-batches."""
    change = {"gpu_model": "L40S", "weights": "pretrained", "gradient_accumulation_steps": 16}
    traced = one_device.single_process_job(Job(id="test", workload=asked(**change), world_size=4), 2)
    got = traced.workload
    assert (got.batch_size, got.number_gpus, got.gradient_accumulation_steps) == (2, 0, 2)
    assert (got.weights, traced.world_size) == ("random", 1)


@pytest.mark.parametrize("change", [{"fast_moe": 2}])
def test_what_cannot_be_traced_is_said(change: dict[str, Any]) -> None:
    """One message instead of a wrong number."""
    message = supported.untraceable(asked(**change))
    assert message is not None
    assert len(message) <= 200
    assert next(iter(change)) in message


@pytest.mark.parametrize(
    ("dtype", "mask", "grouped", "expected"),
    [
        ("bfloat16", False, True, "flash"),
        ("float16", False, False, "flash"),
        ("bfloat16", True, False, "efficient"),
        ("float32", False, False, "efficient"),
        ("float32", False, True, "math"),
        ("bfloat16", True, True, "math"),
    ],
)
def test_the_kernel_of_attention(dtype: str, mask: bool, grouped: bool, expected: str) -> None:
    """Flash needs half precision and no mask; the memory-efficient kernel as many heads of keys as of queries."""
    assert attention.kernel(getattr(torch, dtype), 64, mask=mask, grouped=grouped) == expected


def test_fused_attention_holds_no_matrix_of_lengths() -> None:
    """Shapes and gradients are those of real attention; what is kept grows with the length, not with its square."""
    query = torch.randn(2, 4, 128, 16, dtype=torch.bfloat16, requires_grad=True)
    key, value = (torch.randn(2, 2, 128, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with attention.kernels_of_cuda(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    out.sum().backward()
    assert (out.shape, query.grad.shape, key.grad.shape) == (query.shape, query.shape, key.shape)
    assert sum(kept) == 2 * query.numel() + 2 * key.numel() + 2 * 4 * 128


def test_dropout_keeps_one_byte_an_element() -> None:
    """As on CUDA; what is kept for the backward pass is the mask alone."""
    given = torch.randn(64, 32, requires_grad=True)
    kept: list[tuple[torch.dtype, int]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    layer = torch.nn.Dropout(0.1)
    with attention.kernels_of_cuda(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(given)
        assert layer.eval()(given) is given
    out.sum().backward()
    assert kept == [(torch.bool, 64 * 32)]
    assert given.grad is not None
    assert given.grad.shape == given.shape


def test_buckets_of_ddp_are_pytorchs() -> None:
    """The first takes up to 1 MiB, each other up to 25 MiB; together they are as large as the gradients."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(20)))
    buckets = one_device.bucket_bytes(model)
    assert sum(buckets) == 20 * 4 * 2**20
    assert max(buckets) <= 28 * 2**20
    assert len(buckets) == 4
