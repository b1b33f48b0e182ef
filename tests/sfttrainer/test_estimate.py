"""The memory estimate in a trainer process, for GPUs that this machine lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.plan import Plan, make_plan
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(300)]

VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 64,
    "batch_size": 4,
    "number_gpus": 2,
    "gpu_model": "Tesla-T4",
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Start one host without GPUs, with skip_predicted_oom."""
    settings = SFTTrainerParameters(max_retries=0, skip_predicted_oom=True)
    with Local(SFTTrainer.plugin(), settings, tmp_path_factory.mktemp("state")) as host:
        yield host


def plan(experiment: str = "finetune_memory_estimate", **change: Any) -> Plan:
    """Return the plan of a small workload on two GPUs."""
    return make_plan("sfttrainer", experiment, {**VALUES, **change})


def test_an_estimate_for_gpus_that_this_machine_lacks(local: Local) -> None:
    """The parts add up to the total, the small model fits, and the largest batch was traced."""
    verdict = local.measure(plan())
    got = verdict.properties
    assert verdict.message == ""
    assert (got["is_valid"], got["failure"], got["fits"], got["device_memory_gib"]) == (1, "none", 1, 15.0)
    parts = [
        got[f"memory_{name}_gib"] for name in ("parameters", "gradients", "optimizer", "activations", "temporaries")
    ]
    assert sum(parts) == pytest.approx(got["memory_estimate_gib"])
    # float32 weights and the two moments of AdamW, each storage in blocks of 512 bytes
    assert got["memory_parameters_gib"] == pytest.approx(4_999_424 * 4 / 2**30, rel=0.001)
    assert got["memory_optimizer_gib"] == pytest.approx(2 * 4_999_424 * 4 / 2**30, rel=0.001)
    assert got["largest_batch_size"] % 2 == 0
    assert got["largest_batch_size"] > 4
    assert got["tokens_per_second_limit"] == pytest.approx(4 * 64 / got["step_time_limit_s"])
    assert verdict.metadata["notes"][0].startswith("step_time_limit_s is set by ")


@pytest.mark.parametrize(
    "change",
    [{"dataset_id": "synthetic-uniform"}, {"packing": True}, {"packing": True, "dataset_id": "synthetic-lognormal"}],
)
def test_flash_attention_needs_no_matrix_of_lengths(local: Local, change: dict[str, Any]) -> None:
    """With flash attention, padding and packed documents need no further memory; with sdpa, masks need the square of the row's length."""
    flash: dict[str, Any] = {
        "attn_implementation": "flash_attention_2",
        "torch_dtype": "bfloat16",
        "model_max_length": 1024,
        "number_gpus": 1,
        # without a type of GPU no largest batch is searched for
        "gpu_model": "any",
    }
    fixed, varied = local.measure(plan(**flash)), local.measure(plan(**flash, **change))
    assert varied.metadata["facts"]["attn_implementation"] == "flash_attention_2"
    most = 1.1 * fixed.properties["memory_estimate_gib"]
    assert varied.properties["memory_estimate_gib"] < most
    if "packing" in change:
        masked = local.measure(plan(**flash | change | {"attn_implementation": "sdpa"}))
        assert masked.properties["memory_estimate_gib"] > most


def test_weights_in_four_bits(local: Local) -> None:
    """QLoRA needs less than LoRA, and an estimate says how much."""
    pytest.importorskip("bitsandbytes")
    one: dict[str, Any] = {"number_gpus": 1, "gpu_model": "any", "torch_dtype": "bfloat16"}
    lora, qlora = (local.measure(plan(**one, method=method)).properties for method in ("lora", "qlora"))
    assert qlora["is_valid"] == 1
    # 2.9 million numbers in linear layers, two bytes each and about half a byte
    saved = (lora["memory_parameters_gib"] - qlora["memory_parameters_gib"]) * 2**30
    assert saved > 2_899_968 * 1.4


@pytest.mark.parametrize("name", ["torch_compile", "use_liger_kernel"])
def test_other_kernels_have_an_upper_bound(local: Local, name: str) -> None:
    """That of the model without them; an upper bound keeps no workload from being tried."""
    # without a type of GPU no largest batch is searched for
    changes: list[dict[str, Any]] = [{name: used, "gpu_model": "any"} for used in (False, True)]
    measured = [local.measure(plan(**change)) for change in changes]
    assert measured[0].properties["memory_estimate_gib"] == measured[1].properties["memory_estimate_gib"]
    benchmarks = [plan("finetune_full_benchmark", **{name: used}).estimate() for used in (False, True)]
    assert [one is None for one in benchmarks] == [False, True]


def test_a_workload_that_cannot_be_traced_is_a_complete_measurement(local: Local) -> None:
    """The metadata have the reason."""
    verdict = local.measure(plan(distributed_backend="FSDP", fsdp_transformer_layer_cls_to_wrap="Nope"))
    assert (verdict.properties["is_valid"], verdict.properties["failure"]) == (0, "invalid_configuration")
    assert "Nope names no layer of this model" in verdict.metadata["reason"]


def test_a_workload_that_is_predicted_not_to_fit_is_not_tried(local: Local) -> None:
    """The answer is about memory although this machine has no GPU, because no GPU is requested."""
    verdict = local.measure(plan("finetune_full_benchmark", model_name="llama3.2-1b", batch_size=2))
    assert verdict.properties == {"is_valid": 0, "failure": "predicted_oom"}
    assert re.search(r"predicted not to fit: .* GiB on each device", verdict.metadata["reason"])


def test_a_workload_that_may_fit_is_tried(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small workload requests a GPU, and this machine has none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(failures.Broken, match="this machine has 0 visible NVIDIA GPUs"):
        local.measure(plan("finetune_full_benchmark", number_gpus=1))
