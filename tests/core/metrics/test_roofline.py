"""Bounds on the time of a step, by hand-calculated numbers."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics import accelerators, flops, roofline
from ado_actuators.sfttrainer.core.workload import models
from ado_actuators.sfttrainer.core.workload.validation import parse

ARCHITECTURE: Any = models.resolve("llama3.1-8b").architecture
PARAMETERS = 8_030_261_248


def limit(**change: Any) -> roofline.Limit:
    """Return the bound of full fine-tuning of 8B parameters in bfloat16 on one H100."""
    values = {
        "model_name": "llama3.1-8b",
        "model_max_length": 2048,
        "batch_size": 8,
        "number_gpus": 1,
        "gpu_model": "H100",
    }
    workload = parse({**values, "torch_dtype": "bfloat16", **change})
    found, _ = roofline.limit(workload, ARCHITECTURE, model_parameters=PARAMETERS, trainable_parameters=PARAMETERS)
    assert found is not None
    return found


def test_large_batches_are_limited_by_compute() -> None:
    """FLOP of the step over the dense peak; the cost follows from the price of an hour."""
    slots = 8 * 2048
    per_token = flops.per_token(ARCHITECTURE, method="full", token_slots=slots, squared_lengths=slots * 2048)
    got = limit()
    assert got.resource == "compute"
    assert got.step_s == pytest.approx(per_token * slots / 989.5e12)
    assert got.tokens_per_second == pytest.approx(slots / got.step_s)
    assert got.usd_per_million_tokens(3.6, 1) == pytest.approx(3.6 / 3600 / got.tokens_per_second * 1e6)


def test_checkpointing_computes_layers_again() -> None:
    """A forward pass more, without the output layer."""
    plain, checkpointed = limit().step_s, limit(gradient_checkpointing=True).step_s
    assert 1.30 < checkpointed / plain < 4 / 3
    every_second = limit(gradient_checkpointing=True, gradient_checkpointing_every_n_layers=2).step_s
    assert every_second == pytest.approx((plain + checkpointed) / 2)
    selective = limit(gradient_checkpointing=True, gradient_checkpointing_selective=True).step_s
    assert plain < selective < checkpointed


def test_compiled_models_multiply_float32_in_tf32() -> None:
    """Libraries turn TF32 on for torch.compile; devices without it keep the rate of float32."""
    plain = {"torch_dtype": "float32"}
    ratio = limit(**plain).step_s / limit(**plain, torch_compile=True).step_s
    assert ratio == pytest.approx(494.75 / 67)
    old = plain | {"gpu_model": "Tesla-T4"}
    assert limit(**old, torch_compile=True) == limit(**old)


def test_small_batches_are_limited_by_memory_bandwidth() -> None:
    """Weights twice and seven numbers a parameter for AdamW, two bytes each."""
    got = limit(batch_size=1, model_max_length=16)
    used = sum(one.inputs * one.outputs * one.times for one in flops.model(ARCHITECTURE).products)
    assert got.resource == "memory bandwidth"
    assert got.step_s == pytest.approx((2 * used * 2 + 7 * PARAMETERS * 2) / 3350e9)


def test_fsdp_is_limited_by_a_slow_link() -> None:
    """Two gathers and a reduction, of which each device gets the part of the others."""
    change = {"number_gpus": 4, "batch_size": 4, "distributed_backend": "FSDP2", "gpu_model": "RTX-4090"}
    got = limit(**change, model_max_length=128)
    assert got.resource == "link"
    assert got.step_s == pytest.approx(3 / 4 * 3 * PARAMETERS * 2 / 31.5e9)


def test_deepspeed_moves_what_its_stage_divides() -> None:
    """Stage 3 moves what FSDP moves, the others what DDP moves; offloaded updates use no bandwidth of the device."""
    asked = {"number_gpus": 4, "batch_size": 4, "mixed_precision": "bf16", "model_max_length": 64}
    fsdp, ddp = limit(**asked, distributed_backend="FSDP2"), limit(**asked, gpu_model="RTX-4090")
    zero = {**asked, "distributed_backend": "DeepSpeed"}
    assert limit(**zero, deepspeed_stage=3) == fsdp
    assert ddp.resource == "link"
    assert limit(**zero, gpu_model="RTX-4090") == ddp
    few = {**zero, "number_gpus": 1, "batch_size": 1, "model_max_length": 16}
    assert limit(**few, deepspeed_offload="optimizer").step_s < limit(**few).step_s


def test_unknown_devices_and_models_have_no_bound() -> None:
    """One message says why."""
    workload = parse({"model_name": "llama3.1-8b", "model_max_length": 8, "batch_size": 1, "number_gpus": 1})
    assert roofline.limit(workload, ARCHITECTURE, model_parameters=1, trainable_parameters=1)[0] is None
    known = workload.model_copy(update={"gpu_model": "H100"})
    bound, reason = roofline.limit(known, {"model_type": "other"}, model_parameters=1, trainable_parameters=1)
    assert bound is None
    assert "other" in reason


@pytest.mark.parametrize("name", accelerators.NAMES)
def test_every_device_that_plan_names_has_all_that_a_bound_needs(name: str) -> None:
    """Memory, a peak and bandwidth; those without bfloat16 have float16."""
    row = accelerators.find(name)
    assert row is not None
    assert accelerators.usable_bytes(name)
    assert row.bandwidth_gb_s
    assert row.tflops.get("bfloat16") or row.tflops.get("float16")


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        *(("NVIDIA H100 80GB HBM3", 450.0), ("NVIDIA H100 PCIe", 63.0), ("NVIDIA H800", 200.0), ("H200-NVL", 63.0)),
        *(("NVIDIA A100-SXM4-40GB", 300.0), ("NVIDIA A100-PCIE-40GB", 31.5), ("A100-80GB-PCIe", 31.5)),
        *(("V100-SXM2-32GB", 150.0), ("L40S", 31.5), ("RTX-5090", 63.0), ("B300", 900.0), ("MI300X", 448.0)),
    ],
)
def test_a_device_has_the_rate_of_its_link(name: str, rate: float) -> None:
    """NVLink or Infinity Fabric where the form of the device has it, else its generation of PCI Express."""
    device = accelerators.find(name)
    assert device is not None
    assert device.link_gb_s == rate
