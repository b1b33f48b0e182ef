"""DeepSpeed's configuration, and what is read back from its engine. ``nox -s deepspeed`` trains with it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ado_actuators.sfttrainer.core.protocol.messages import JobWorkload
from ado_actuators.sfttrainer.core.trainer import deepspeed, fsdp, optimizers
from ado_actuators.sfttrainer.core.trainer.errors import BadInput
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = pytest.mark.torch


def workload(**change: Any) -> JobWorkload:
    """Return a workload with DeepSpeed on two GPUs."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 2, "number_gpus": 2}
    return JobWorkload(**parse({**values, "distributed_backend": "DeepSpeed", **change}).model_dump())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_transformers_takes_the_configuration(stage: int) -> None:
    """The trainer's values replace ``auto``; the objects are those that its ``TrainingArguments`` make."""
    hf = pytest.importorskip("transformers.integrations.deepspeed")
    if not hf.is_deepspeed_available():
        # without the package its class has no base class to be made of
        assert deepspeed.configuration(workload(deepspeed_stage=stage))["zero_optimization"]["stage"] == stage
        return
    config = hf.HfTrainerDeepSpeedConfig(deepspeed.configuration(workload(deepspeed_stage=stage)))
    arguments = SimpleNamespace(
        world_size=2, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_grad_norm=1.0, learning_rate=1e-5,
        adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.0, save_on_each_node=False,
        fp16=False, fp16_full_eval=False, bf16=True, bf16_full_eval=False, get_warmup_steps=lambda steps: 0,
    )  # fmt: skip
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=8)), 10)
    hf.unset_hf_deepspeed_config()
    assert (config.is_zero3(), config.mismatches, config.dtype()) == (stage == 3, [], torch.bfloat16)
    assert "auto" not in str(config.config)
    assert config.config["gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    ("offload", "stage", "kept"),
    [
        ("none", 3, []),
        ("optimizer", 2, ["offload_optimizer"]),
        ("optimizer_and_parameters", 3, ["offload_optimizer", "offload_param"]),
    ],
)
def test_what_is_offloaded(offload: str, stage: int, kept: list[str]) -> None:
    """Optimizer and parameters have an entry each."""
    found = deepspeed.configuration(workload(deepspeed_stage=stage, deepspeed_offload=offload))["zero_optimization"]
    assert [name for name in found if name.startswith("offload")] == kept


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, before training; without DeepSpeed nothing is asked for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="distributed_backend DeepSpeed needs the package deepspeed in the training env"):
        deepspeed.options(workload())
    assert deepspeed.options(workload(distributed_backend="DDP")) == {}


def test_the_accelerator_is_chosen_on_cpus_only() -> None:
    """DeepSpeed finds a GPU by itself."""
    assert deepspeed.variables(workload()) == {}
    assert deepspeed.variables(workload(number_gpus=0)) == {"DS_ACCELERATOR": "cpu"}
    assert deepspeed.variables(workload(number_gpus=0, distributed_backend="DDP")) == {}


class DeepSpeedEngine:
    """What the stack reads of an engine."""

    def __init__(self, stage: int, *offloaded: str) -> None:
        self.stage, self.offloaded = stage, offloaded

    def zero_optimization_stage(self) -> int:
        """Return the stage."""
        return self.stage

    def zero_offload_optimizer(self) -> Any:
        """Return the settings of the optimizer's offload."""
        return SimpleNamespace(device="cpu") if "optimizer" in self.offloaded else None

    def zero_offload_param(self) -> Any:
        """Return the settings of the parameters' offload; the device is an enumeration."""
        return SimpleNamespace(device=SimpleNamespace(value="cpu" if "parameters" in self.offloaded else "none"))


def test_what_the_engine_ran_is_read_back() -> None:
    """The stage is part of the wrapper's name, so that another stage is not stored under this one."""
    trainer: Any = SimpleNamespace(model_wrapped=DeepSpeedEngine(2, "optimizer", "parameters"))
    assert fsdp.wrapper(trainer) == "DeepSpeed ZeRO 2"
    assert deepspeed.facts(trainer) == {"deepspeed_offload": "optimizer_and_parameters"}
    trainer.model_wrapped = DeepSpeedEngine(3)
    assert deepspeed.facts(trainer) == {"deepspeed_offload": "none"}
    assert deepspeed.facts(SimpleNamespace(model_wrapped=torch.nn.Linear(1, 1))) == {}
    assert fsdp.is_whole("DeepSpeed ZeRO 2")
    assert not fsdp.is_whole("DeepSpeed ZeRO 3")
    asked = workload(deepspeed_stage=3)
    assert fsdp.mismatch(asked, 1, "DeepSpeed ZeRO 3") is None
    assert fsdp.mismatch(asked, 2, "DeepSpeed ZeRO 2") == (
        "distributed_backend is DeepSpeed ZeRO 3, but the model was trained with the wrapper DeepSpeed ZeRO 2."
    )
    assert "wrapper DeepSpeed ZeRO 2" in str(
        fsdp.mismatch(dataclasses.replace(asked, distributed_backend="DDP"), 2, "DeepSpeed ZeRO 2")
    )


def test_the_optimizer_inside_deepspeed_is_named() -> None:
    """ZeRO's optimizer contains the one of ``optim``, which updates the parts."""
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    zero = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})()
    zero.optimizer = adam
    assert optimizers.used(SimpleNamespace(optimizer=SimpleNamespace(optimizer=zero))) == "AdamW"
    assert optimizers.used(SimpleNamespace(optimizer=adam)) == "AdamW"


def test_parameters_get_the_type_of_the_computation() -> None:
    """Before they are divided, as the engine does for a model that is not; buffers keep theirs."""
    model = torch.nn.BatchNorm1d(2)
    deepspeed._cast(model, "no")
    assert model.weight.dtype == torch.float32
    deepspeed._cast(model, "bf16")
    assert (model.weight.dtype, model.running_mean.dtype) == (torch.bfloat16, torch.float32)
