"""Measurements with fms-hf-tuning in its managed environment, CPU variant."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.fms_hf_tuning.core.host.local import Local
from ado_actuators.fms_hf_tuning.core.measurement.plan import make_plan
from ado_actuators.fms_hf_tuning.core.measurement.verdict import Verdict
from ado_actuators.fms_hf_tuning.core.workload import models

from ..workloads import EXPERTS, SMALL

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(600)]
VERSIONS = FMSHFTuning.plugin().versions("cpu")
# building an environment takes a minute on two cores, so only the most important tests run with older versions
latest = pytest.mark.parametrize("local", VERSIONS[-1:], indirect=True)


def measure(local: Local, experiment: str = "finetune_full_benchmark", **change: Any) -> Verdict:
    """Measure a small workload."""
    values = {**SMALL, "fms_hf_tuning_version": local.version, **change}  # type: ignore[attr-defined]
    return local.measure(make_plan("fms_hf_tuning", experiment, values))


def test_full_fine_tuning_is_measured(local: Local) -> None:
    """Counts are exact, the library's version is the workload's, and the first loss is that of random weights."""
    verdict = measure(local)
    got = verdict.properties
    assert verdict.message == ""
    assert (got["is_valid"], got["failure"], got["loss_finite"]) == (1, "none", 1)
    assert got["warmup_steps"] + got["measured_steps"] == len(verdict.metadata["step_s"]) == 6
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 2)
    assert got["train_tokens_per_second"] == pytest.approx(got["train_samples_per_second"] * 32)
    assert got["dataset_tokens_per_second"] == pytest.approx(got["train_tokens_per_second"])
    assert verdict.metadata["versions"]["fms-hf-tuning"] == local.version  # type: ignore[attr-defined]
    assert verdict.metadata["versions"]["trl"] == "0.19.1"
    assert got["loss_first"] == pytest.approx(math.log(architecture()["vocab_size"]), abs=0.5)


@latest
def test_the_model_is_not_changed(local: Local) -> None:
    """The library does not resize the embeddings: the model has all parameters of the architecture, and all are trained."""
    verdict = measure(local, torch_dtype="bfloat16", attn_implementation="eager")
    got, facts = verdict.properties, verdict.metadata["facts"]
    assert (got["model_parameters"], got["trainable_parameters"]) == (4_999_424, 4_999_424)
    assert (facts["dtype"], facts["attn_implementation"], facts["optimizer"]) == ("bfloat16", "eager", "AdamW")


def test_lora_trains_the_adapters_only(local: Local) -> None:
    """Only the parameters of the adapters are trainable."""
    got = measure(local, "finetune_lora_benchmark", r=4, target_modules="q_proj,v_proj").properties
    config = architecture()
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    values = width // config["num_attention_heads"] * config["num_key_value_heads"]
    assert got["model_parameters"] == 4_999_424
    assert got["trainable_parameters"] == layers * 4 * ((width + width) + (width + values))


@latest
def test_padding_does_not_count_as_data(local: Local) -> None:
    """Token slots include padding, dataset tokens do not."""
    got = measure(local, dataset_id="synthetic-uniform", batch_size=4).properties
    assert got["dataset_tokens_per_second"] < got["train_tokens_per_second"]


@latest
def test_packing_fills_the_samples(local: Local) -> None:
    """With packing there is no padding, because packs are flattened into one row."""
    got = measure(local, dataset_id="synthetic-uniform", batch_size=4, packing=True).properties
    assert got["dataset_tokens_per_second"] == got["train_tokens_per_second"]


def test_another_release_than_the_installed_one_is_not_measured(local: Local) -> None:
    """A result must not be stored under another release of the library."""
    other = next(version for version in ("3.1.0", "3.2.2") if version != local.version)  # type: ignore[attr-defined]
    assert "but the training environment has" in measure(local, fms_hf_tuning_version=other).message


@latest
def test_two_processes_train_together(local: Local) -> None:
    """Two processes train with DDP, and each has a part of the samples."""
    verdict = measure(local, batch_size=4, number_nodes=2, max_steps=4)
    assert verdict.message == ""
    assert verdict.metadata["facts"]["wrapped_by"] == "DistributedDataParallel"
    got = verdict.properties
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 4)


@latest
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_load_of_experts_is_in_the_metadata(local: Local, tmp_path: Path, nodes: int) -> None:
    """With one process or DDP; with 2 of 4 experts per token the ratio is at most 2."""
    (tmp_path / "config.json").write_text(json.dumps(EXPERTS))
    verdict = measure(local, model_name=str(tmp_path), batch_size=2 * nodes, number_nodes=nodes, max_steps=4)
    assert verdict.message == ""
    assert verdict.metadata["facts"]["wrapped_by"] == ("none" if nodes == 1 else "DistributedDataParallel")
    assert 1.0 <= verdict.metadata["facts"]["router_load_max_over_mean"] <= 2.0


@latest
def test_the_packs_of_an_epoch_are_counted(local: Local, tmp_path: Path) -> None:
    """Each of seven documents is one pack; the short batch at the end of the epoch counts the one pack that it has."""
    path = tmp_path / "seven.jsonl"
    path.write_text((json.dumps({"text": "x" * 19}) + "\n") * 7)
    change = {"packing": True, "dataset_id": str(path), "num_train_epochs": 1, "fms_hf_tuning_version": local.version}  # type: ignore[attr-defined]
    plan = make_plan("fms_hf_tuning", "finetune_full_benchmark", {**SMALL, "max_steps": 20, **change})
    (record,) = local._attempt(plan).records
    assert record["samples"] == [2, 2, 2, 1]
    assert sum(record["real_tokens"]) == 140


@latest
def test_qlora_is_measured_on_cpus(local: Local) -> None:
    """The library's plugin quantises the layers, and their scales, with bitsandbytes."""
    verdict = measure(local, "finetune_qlora_benchmark", mixed_precision="bf16", max_steps=4)
    assert verdict.message == ""
    facts = verdict.metadata["facts"]
    assert (facts["quantisation"], facts["double_quantisation"]) == ("nf4", True)
    assert facts["quantised_layers"] == 7 * architecture()["num_hidden_layers"]


@latest
def test_an_unsupported_method_is_a_complete_measurement(local: Local) -> None:
    """The metadata have the reason."""
    verdict = measure(local, "finetune_prompt_tuning_benchmark")
    assert (verdict.properties["is_valid"], verdict.properties["failure"]) == (0, "invalid_configuration")
    assert len(verdict.metadata["reason"]) <= 200


@latest
def test_a_memory_estimate_for_gpus_that_this_machine_lacks(local: Local) -> None:
    """The estimate traces training with this library: weights, gradients in DDP's buckets, two moments."""
    verdict = measure(local, "finetune_memory_estimate", number_gpus=2, gpu_model="Tesla-T4")
    got = verdict.properties
    assert verdict.message == ""
    assert (got["is_valid"], got["fits"], got["device_memory_gib"]) == (1, 1, 15.0)
    assert got["memory_optimizer_gib"] == pytest.approx(2 * 4_999_424 * 4 / 2**30, rel=0.001)
    assert got["memory_gradients_gib"] >= 4_999_424 * 4 / 2**30
    flash = {"attn_implementation": "flash_attention_2", "torch_dtype": "bfloat16"}
    verdict = measure(local, "finetune_memory_estimate", number_gpus=2, gpu_model="Tesla-T4", **flash)
    assert verdict.metadata["facts"]["attn_implementation"] == "flash_attention_2"


@latest
def test_a_memory_estimate_of_gptq(local: Local, tmp_path: Path) -> None:
    """Half a byte for each weight, and for each output and group of inputs two bytes of scale and half a byte of zero point."""
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    config = architecture()
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    change = {"model_name": str(tmp_path), "method": "gptq_lora", "torch_dtype": "float16", "r": 8}
    verdict = measure(local, "finetune_memory_estimate", **change)
    assert verdict.message == ""
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    values = width // config["num_attention_heads"] * config["num_key_value_heads"]
    linear = [(width, width), (width, values), (width, values), (width, width)]
    linear += [(width, inner), (width, inner), (inner, width)]
    groups = sum(ins // 64 * outs * 2.5 for ins, outs in linear)
    packed = sum(ins * outs / 2 + 4 * ins for ins, outs in linear) + groups
    adapters = sum(4 * 8 * (ins + outs) for ins, outs in linear)
    norms = 2 * width * (2 * layers + 1)
    tables = (1 if config.get("tie_word_embeddings") else 2) * 2 * config["vocab_size"] * width
    # the frequencies of the rotary embedding
    rotary = 4 * width // config["num_attention_heads"] // 2
    expected = layers * (packed + adapters) + norms + tables + rotary
    assert verdict.properties["memory_parameters_gib"] * 2**30 == pytest.approx(expected, rel=1e-3)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {**quantised, "bits": 8}}))
    message = measure(local, "finetune_memory_estimate", **change).metadata["reason"]
    assert message == "finetune_memory_estimate traces GPTQ with 4 bits, but the model has gptq with 8 bits."


@latest
def test_a_memory_estimate_of_accelerations(local: Local) -> None:
    """Without padding a batch has fewer tokens; of kernels and of multipack the estimate is an upper bound, and a note says so."""
    flash: dict[str, Any] = {
        "attn_implementation": "flash_attention_2",
        "torch_dtype": "bfloat16",
        "dataset_id": "synthetic-uniform",
    }
    flash |= {"number_gpus": 1, "batch_size": 16, "model_max_length": 64}
    changes: list[dict[str, Any]] = [{}, {"padding_free": True}]
    changes.append({**changes[-1], "multipack": True, "fast_kernels": True})
    padded, free, bounded = (measure(local, "finetune_memory_estimate", **flash, **change) for change in changes)
    totals = [one.properties["memory_estimate_gib"] for one in (padded, free, bounded)]
    assert totals[0] > totals[1] == totals[2]
    assert "An upper bound: it leaves out what fast_kernels and multipack save." in bounded.metadata["notes"]
    assert not any("upper bound" in note for note in free.metadata["notes"])


def architecture() -> dict[str, Any]:
    """Return the architecture of the small model."""
    found = models.resolve(SMALL["model_name"]).architecture
    assert found is not None
    return found
