"""DeepSpeed trains on two CPU processes in every stage: `nox -s deepspeed`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

from ..workloads import SMALL

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Start one host for all tests."""
    with Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0), tmp_path_factory.mktemp("state")) as host:
        yield host


def measured(local: Local, experiment: str = "finetune_full_benchmark", **change: Any) -> tuple[dict[str, Any], Any]:
    """Measure on two processes; return properties and facts."""
    values = {**SMALL, "batch_size": 4, "number_nodes": 2, "max_steps": 4, **change}
    verdict = local.measure(make_plan("sfttrainer", experiment, values))
    assert verdict.message == ""
    return verdict.properties, verdict.metadata["facts"]


@pytest.fixture(scope="module")
def ddp(local: Local) -> dict[str, Any]:
    """Return the properties of the same workload under DDP."""
    return measured(local)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_trains_as_ddp_does(local: Local, ddp: dict[str, Any], stage: int) -> None:
    """Losses, tokens and parameters are those of DDP, and the engine reports the stage."""
    got, facts = measured(local, distributed_backend="DeepSpeed", deepspeed_stage=stage)
    assert (facts["wrapped_by"], facts["optimizer"], facts["dtype"]) == (f"DeepSpeed ZeRO {stage}", "AdamW", "float32")
    for name in ("loss_first", "loss_last"):
        assert got[name] == pytest.approx(ddp[name], rel=1e-5)
    for name in ("model_parameters", "trainable_parameters", "model_flops_per_token"):
        assert got[name] == ddp[name]
    samples = got["train_samples_per_second"] * got["train_runtime_s"]
    assert samples == pytest.approx(4 * got["measured_steps"])


@pytest.mark.parametrize("stage", [2, 3])
def test_mixed_precision_computes_in_that_type(local: Local, stage: int) -> None:
    """DeepSpeed converts the parameters; the loss differs a little from that of float32."""
    change: dict[str, Any] = {
        "torch_dtype": "bfloat16",
        "mixed_precision": "bf16",
        "gradient_accumulation_steps": 2,
    }
    _, facts = measured(local, distributed_backend="DeepSpeed", deepspeed_stage=stage, **change)
    assert facts["dtype"] == "bfloat16"


def test_adapters_train_in_stage_3(local: Local) -> None:
    """Numbers of parameters are those before they are divided."""
    change: dict[str, Any] = {
        "distributed_backend": "DeepSpeed",
        "deepspeed_stage": 3,
        "gradient_checkpointing": True,
    }
    got, facts = measured(local, "finetune_lora_benchmark", **change)
    assert facts["wrapped_by"] == "DeepSpeed ZeRO 3"
    assert 0 < got["trainable_parameters"] < 0.1 * got["model_parameters"]
