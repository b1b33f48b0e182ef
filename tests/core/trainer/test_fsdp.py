"""What accelerate is handed for every fsdp_* property: its real plugin objects, made as the Trainer makes them."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import ShardingStrategy
from transformers import TrainingArguments

from ado_actuators.sfttrainer.core.failures import InvalidConfiguration
from ado_actuators.sfttrainer.core.protocol.messages import JobWorkload
from ado_actuators.sfttrainer.core.trainer import fsdp
from ado_actuators.sfttrainer.core.workload.validation import parse

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("as_if_there_were_a_gpu")]

GPUS = {"model_name": "tiny-llama-5m", "model_max_length": 64, "batch_size": 4, "number_gpus": 2}


@pytest.fixture
def as_if_there_were_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let accelerate's plugin of version 1 name a device: it refuses to be made without one."""
    monkeypatch.setattr("accelerate.utils.dataclasses.is_cuda_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)


def plugin(**change: Any) -> FullyShardedDataParallelPlugin:
    """Return the plugin for a workload on two GPUs."""
    workload = JobWorkload(**parse({**GPUS, **change}).model_dump())
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", **fsdp.options(workload))
    return FullyShardedDataParallelPlugin(**fsdp.complete(arguments, workload).fsdp_plugin_args)


@pytest.mark.parametrize(
    "change",
    [{}, {"distributed_backend": "None", "number_gpus": 1}, {"distributed_backend": "FSDP2", "number_gpus": 1}],
)
def test_without_fsdp_nothing_is_handed_over(change: dict[str, Any]) -> None:
    """DDP, no backend and a single device need no plugin."""
    assert fsdp.options(JobWorkload(**parse({**GPUS, **change}).model_dump())) == {}


@pytest.mark.parametrize(("strategy", "reshard"), [("FULL_SHARD", True), ("SHARD_GRAD_OP", False)])
def test_fsdp2_reshards_as_the_strategy_says(strategy: str, reshard: bool) -> None:
    """Version 2 has a flag instead of strategies."""
    made = plugin(distributed_backend="FSDP2", fsdp_sharding_strategy=strategy)
    assert (made.fsdp_version, made.reshard_after_forward) == (2, reshard)


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"])
def test_fsdp1_knows_the_strategies(strategy: str) -> None:
    """Version 1 takes the strategy by its name."""
    made = plugin(distributed_backend="FSDP", fsdp_sharding_strategy=strategy)
    # the same expression as in accelerate's prepare_model
    assert (
        made.fsdp_version,
        ShardingStrategy(made.sharding_strategy or made.reshard_after_forward).name.lstrip("_"),
    ) == (
        1,
        strategy,
    )


def test_every_other_property_arrives() -> None:
    """State dictionary, original parameters, offload and the layer to wrap."""
    made = plugin(
        distributed_backend="FSDP",
        fsdp_state_dict_type="SHARDED_STATE_DICT",
        fsdp_use_orig_params=False,
        fsdp_cpu_offload=True,
        fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer",
    )
    assert made.state_dict_type.name == "SHARDED_STATE_DICT"
    assert made.use_orig_params is False
    assert bool(made.cpu_offload) is True
    assert list(made.transformer_cls_names_to_wrap) == ["LlamaDecoderLayer"]


def launched(monkeypatch: pytest.MonkeyPatch, **change: Any) -> FullyShardedDataParallelPlugin:
    """Return the plugin that accelerate makes of the variables by which fms-hf-tuning is told."""
    for name, value in fsdp.variables(JobWorkload(**parse({**GPUS, **change}).model_dump())).items():
        monkeypatch.setenv(name, value)
    return FullyShardedDataParallelPlugin()


def test_without_fsdp_there_are_no_variables() -> None:
    """Of any FSDP: a trainer that is reused would otherwise go on sharding."""
    assert fsdp.variables(JobWorkload(**parse(GPUS).model_dump())) == {}


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"])
def test_variables_say_what_arguments_say_of_fsdp1(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate makes the same plugin of both."""
    change: dict[str, Any] = {
        "distributed_backend": "FSDP",
        "fsdp_sharding_strategy": strategy,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_use_orig_params": False,
        "fsdp_cpu_offload": True,
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    }
    asked, told = plugin(**change), launched(monkeypatch, **change)
    assert told.sharding_strategy == asked.sharding_strategy
    for name in ("fsdp_version", "state_dict_type", "use_orig_params", "cpu_offload", "auto_wrap_policy",
                 "backward_prefetch", "sync_module_states", "forward_prefetch"):  # fmt: skip
        assert getattr(told, name) == getattr(asked, name), name
    assert told.transformer_cls_names_to_wrap == list(asked.transformer_cls_names_to_wrap) == ["LlamaDecoderLayer"]


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP"])
def test_variables_say_what_arguments_say_of_fsdp2(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 has a flag instead of strategies, and always keeps original parameters."""
    change = {"distributed_backend": "FSDP2", "fsdp_sharding_strategy": strategy, "fsdp_cpu_offload": True}
    asked, told = plugin(**change), launched(monkeypatch, **change)
    for name in ("fsdp_version", "reshard_after_forward", "state_dict_type", "use_orig_params", "auto_wrap_policy"):
        assert getattr(told, name) == getattr(asked, name), name
    assert bool(told.cpu_offload) is True


class Wrapped:
    """Stands for a trainer whose model is ``model`` and was wrapped as ``wrapped``."""

    def __init__(self, wrapped: Any, model: Any = None) -> None:
        self.model_wrapped, self.model = wrapped, model


def named(name: str, *bases: type, **attributes: Any) -> Any:
    """Return an object of a class of this name."""
    made = type(name, bases, {})()
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def test_what_wrapped_a_model_is_told_by_its_type() -> None:
    """Under FSDP the Trainer calls the wrapped model its model too; torch.compile is outermost and no wrapper."""
    fsdp1, ddp, plain = named("FullyShardedDataParallel"), named("DistributedDataParallel"), named("LlamaForCausalLM")
    fsdp2 = named("FSDPLlamaForCausalLM", type("FSDPModule", (), {}))
    assert fsdp.wrapper(Wrapped(plain, plain)) == "none"
    assert fsdp.wrapper(Wrapped(ddp, plain)) == "DistributedDataParallel"
    assert fsdp.wrapper(Wrapped(fsdp1, fsdp1)) == "FullyShardedDataParallel"
    assert fsdp.wrapper(Wrapped(fsdp2, fsdp2)) == "FSDP2"
    assert fsdp.wrapper(Wrapped(named("OptimizedModule", _orig_mod=ddp), plain)) == "DistributedDataParallel"


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_every_state_dictionary_arrives(kind: str) -> None:
    """By its name."""
    assert plugin(distributed_backend="FSDP", fsdp_state_dict_type=kind).state_dict_type.name == kind


def test_fsdp2_gets_offload_and_layer() -> None:
    """Version 2 takes them as version 1 does; a state dictionary it does not have is refused before."""
    made = plugin(
        distributed_backend="FSDP2", fsdp_cpu_offload=True, fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer"
    )
    assert bool(made.cpu_offload) is True
    assert list(made.transformer_cls_names_to_wrap) == ["LlamaDecoderLayer"]
    with pytest.raises(InvalidConfiguration, match="LOCAL_STATE_DICT does not exist in FSDP2"):
        parse({**GPUS, "distributed_backend": "FSDP2", "fsdp_state_dict_type": "LOCAL_STATE_DICT"})


def test_another_wrapper_than_asked_for_is_not_measured() -> None:
    """On CPU accelerate turns FSDP into DDP without a word; that is never stored as FSDP."""
    asked = JobWorkload(**parse({**GPUS, "distributed_backend": "FSDP"}).model_dump())
    assert fsdp.mismatch(asked, 2, "FullyShardedDataParallel") is None
    assert fsdp.mismatch(asked, 2, "DistributedDataParallel") == (
        "distributed_backend is FSDP, but the model was trained with the wrapper DistributedDataParallel."
    )
