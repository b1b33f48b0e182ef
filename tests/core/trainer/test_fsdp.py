"""The FSDP plugin of accelerate for each fsdp_* property; real plugin objects, created as the Trainer creates them."""

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
    """Make accelerate believe that there is a GPU; otherwise its plugin for FSDP version 1 cannot be created."""
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
def test_without_fsdp_there_are_no_options(change: dict[str, Any]) -> None:
    """DDP, no backend, and a single device need no plugin."""
    assert fsdp.options(JobWorkload(**parse({**GPUS, **change}).model_dump())) == {}


@pytest.mark.parametrize(("strategy", "reshard"), [("FULL_SHARD", True), ("SHARD_GRAD_OP", False)])
def test_fsdp2_reshards_according_to_the_strategy(strategy: str, reshard: bool) -> None:
    """Version 2 has the flag ``reshard_after_forward`` instead of strategies."""
    created = plugin(distributed_backend="FSDP2", fsdp_sharding_strategy=strategy)
    assert (created.fsdp_version, created.reshard_after_forward) == (2, reshard)


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"])
def test_fsdp1_knows_the_strategies(strategy: str) -> None:
    """In version 1 the strategy is set by name."""
    created = plugin(distributed_backend="FSDP", fsdp_sharding_strategy=strategy)
    # the same expression as in accelerate's prepare_model
    assert (
        created.fsdp_version,
        ShardingStrategy(created.sharding_strategy or created.reshard_after_forward).name.lstrip("_"),
    ) == (
        1,
        strategy,
    )


def test_every_other_property_arrives() -> None:
    """The plugin gets the state dictionary type, original parameters, offload and the layer to wrap."""
    created = plugin(
        distributed_backend="FSDP",
        fsdp_state_dict_type="SHARDED_STATE_DICT",
        fsdp_use_orig_params=False,
        fsdp_cpu_offload=True,
        fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer",
    )
    assert created.state_dict_type.name == "SHARDED_STATE_DICT"
    assert created.use_orig_params is False
    assert bool(created.cpu_offload) is True
    assert list(created.transformer_cls_names_to_wrap) == ["LlamaDecoderLayer"]


def launched(monkeypatch: pytest.MonkeyPatch, **change: Any) -> FullyShardedDataParallelPlugin:
    """Return the plugin that accelerate creates from the environment variables, as for fms-hf-tuning."""
    for name, value in fsdp.variables(JobWorkload(**parse({**GPUS, **change}).model_dump())).items():
        monkeypatch.setenv(name, value)
    return FullyShardedDataParallelPlugin()


def test_without_fsdp_there_are_no_variables() -> None:
    """Otherwise a trainer that is reused would still use FSDP."""
    assert fsdp.variables(JobWorkload(**parse(GPUS).model_dump())) == {}


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"])
def test_variables_and_arguments_agree_for_fsdp1(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate creates the same plugin from environment variables as from arguments."""
    change: dict[str, Any] = {
        "distributed_backend": "FSDP",
        "fsdp_sharding_strategy": strategy,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_use_orig_params": False,
        "fsdp_cpu_offload": True,
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    }
    by_arguments, by_variables = plugin(**change), launched(monkeypatch, **change)
    assert by_variables.sharding_strategy == by_arguments.sharding_strategy
    for name in ("fsdp_version", "state_dict_type", "use_orig_params", "cpu_offload", "auto_wrap_policy",
                 "backward_prefetch", "sync_module_states", "forward_prefetch"):  # fmt: skip
        assert getattr(by_variables, name) == getattr(by_arguments, name), name
    assert (
        by_variables.transformer_cls_names_to_wrap
        == list(by_arguments.transformer_cls_names_to_wrap)
        == ["LlamaDecoderLayer"]
    )


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP"])
def test_variables_and_arguments_agree_for_fsdp2(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 has a flag instead of strategies, and always uses original parameters."""
    change = {"distributed_backend": "FSDP2", "fsdp_sharding_strategy": strategy, "fsdp_cpu_offload": True}
    by_arguments, by_variables = plugin(**change), launched(monkeypatch, **change)
    for name in ("fsdp_version", "reshard_after_forward", "state_dict_type", "use_orig_params", "auto_wrap_policy"):
        assert getattr(by_variables, name) == getattr(by_arguments, name), name
    assert bool(by_variables.cpu_offload) is True


class Wrapped:
    """A trainer with this ``model_wrapped`` and ``model``."""

    def __init__(self, wrapped: Any, model: Any = None) -> None:
        self.model_wrapped, self.model = wrapped, model


def named(name: str, *bases: type, **attributes: Any) -> Any:
    """Return an object whose class has this name."""
    created = type(name, bases, {})()
    for key, value in attributes.items():
        setattr(created, key, value)
    return created


def test_the_wrapper_is_identified_by_its_type() -> None:
    """With FSDP ``model`` is the wrapped model too; the wrapper of torch.compile is outermost, and is ignored."""
    fsdp1, ddp, plain = named("FullyShardedDataParallel"), named("DistributedDataParallel"), named("LlamaForCausalLM")
    fsdp2 = named("FSDPLlamaForCausalLM", type("FSDPModule", (), {}))
    assert fsdp.wrapper(Wrapped(plain, plain)) == "none"
    assert fsdp.wrapper(Wrapped(ddp, plain)) == "DistributedDataParallel"
    assert fsdp.wrapper(Wrapped(fsdp1, fsdp1)) == "FullyShardedDataParallel"
    assert fsdp.wrapper(Wrapped(fsdp2, fsdp2)) == "FSDP2"
    assert fsdp.wrapper(Wrapped(named("OptimizedModule", _orig_mod=ddp), plain)) == "DistributedDataParallel"


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_every_state_dictionary_type_arrives(kind: str) -> None:
    """The type is set by name."""
    assert plugin(distributed_backend="FSDP", fsdp_state_dict_type=kind).state_dict_type.name == kind


def test_fsdp2_gets_offload_and_layer() -> None:
    """Version 2 supports both as version 1 does; a state dictionary type that it lacks is rejected before."""
    created = plugin(
        distributed_backend="FSDP2", fsdp_cpu_offload=True, fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer"
    )
    assert bool(created.cpu_offload) is True
    assert list(created.transformer_cls_names_to_wrap) == ["LlamaDecoderLayer"]
    with pytest.raises(InvalidConfiguration, match="LOCAL_STATE_DICT does not exist in FSDP2"):
        parse({**GPUS, "distributed_backend": "FSDP2", "fsdp_state_dict_type": "LOCAL_STATE_DICT"})


def test_a_different_wrapper_is_reported() -> None:
    """On CPU accelerate silently uses DDP instead of FSDP; such a measurement must not be stored as FSDP."""
    asked = JobWorkload(**parse({**GPUS, "distributed_backend": "FSDP"}).model_dump())
    assert fsdp.mismatch(asked, 2, "FullyShardedDataParallel") is None
    assert fsdp.mismatch(asked, 2, "DistributedDataParallel") == (
        "distributed_backend is FSDP, but the model was trained with the wrapper DistributedDataParallel."
    )
