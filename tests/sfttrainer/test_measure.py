"""Measurements with TRL in trainer processes, without ado's store and without Ray."""

from __future__ import annotations

import json
import math
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.actuator import SFTTrainer
from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.host.local import Local
from ado_actuators.sfttrainer.core.measurement.outcome import Run
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.measurement.verdict import Verdict, conclude
from ado_actuators.sfttrainer.core.workload import models
from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

from ..workloads import EXPERTS, SMALL

pytestmark = [pytest.mark.torch, pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Start one host for the tests of this module, so that its trainer is reused as in production."""
    with Local(SFTTrainer.plugin(), SFTTrainerParameters(max_retries=0), tmp_path_factory.mktemp("state")) as host:
        yield host


def measure(local: Local, experiment: str = "finetune_full_benchmark", **change: Any) -> Verdict:
    """Measure a small workload."""
    return local.measure(make_plan("sfttrainer", experiment, {**SMALL, **change}))


def test_full_fine_tuning_is_measured(local: Local) -> None:
    """Counts are exact, and rates are counts divided by times."""
    verdict = measure(local)
    got = verdict.properties
    assert verdict.message == ""
    assert (got["is_valid"], got["failure"]) == (1, "none")
    steps = len(verdict.metadata["step_s"])
    assert got["warmup_steps"] + got["measured_steps"] == steps == 6
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 2)
    assert got["train_tokens_per_second"] == pytest.approx(got["train_samples_per_second"] * 32)
    assert got["dataset_tokens_per_second"] == pytest.approx(got["train_tokens_per_second"])
    assert got["cpu_memory_peak_gib"] > 0.1
    assert got["loss_finite"] == 1


def test_lora_trains_the_adapters_only(local: Local) -> None:
    """Only the parameters of the adapters are trainable."""
    got = measure(local, "finetune_lora_benchmark", r=4).properties
    assert 0 < got["trainable_parameters"] < 0.1 * got["model_parameters"]


def test_qlora_trains_adapters_over_quantised_weights(local: Local) -> None:
    """Every linear layer except the output layer is NF4, and counts of parameters are those without quantisation."""
    full = measure(local, "finetune_lora_benchmark", r=4)
    quantised = measure(local, "finetune_qlora_benchmark", r=4)
    layers = models.resolve(SMALL["model_name"]).architecture["num_hidden_layers"]  # type: ignore[index]
    assert quantised.metadata["facts"]["quantised_layers"] == 7 * layers
    for name in ("model_parameters", "trainable_parameters"):
        assert quantised.properties[name] == full.properties[name]
    assert quantised.properties["loss_first"] == pytest.approx(full.properties["loss_first"], abs=0.05)
    assert quantised.properties["loss_first"] != full.properties["loss_first"]


def test_padding_does_not_count_as_data(local: Local, tmp_path: Path) -> None:
    """Token slots include padding, dataset tokens do not."""
    got = measure(local, dataset_id="synthetic-uniform", batch_size=4).properties
    assert got["dataset_tokens_per_second"] < got["train_tokens_per_second"]


def test_gradient_accumulation(local: Local) -> None:
    """A step of two forward passes has twice the samples, and the loss is still per token."""
    got = measure(local, gradient_accumulation_steps=2).properties
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 4)
    assert got["loss_first"] == pytest.approx(math.log(4096), abs=0.5)


def test_the_loss_of_padded_data_is_per_token(local: Local) -> None:
    """The loss is a mean over tokens without padding."""
    got = measure(local, dataset_id="synthetic-uniform", batch_size=4, gradient_accumulation_steps=2).properties
    assert got["loss_first"] == pytest.approx(math.log(4096), abs=0.5)


def test_the_last_batch_of_an_epoch_counts_its_own_samples(local: Local, tmp_path: Path) -> None:
    """Five samples in batches of two: the last step has one sample, and is the measured step."""
    path = tmp_path / "five.jsonl"
    path.write_text('{"text": "some words"}\n' * 5)
    got = measure(local, dataset_id=str(path), num_train_epochs=1, batch_size=2, max_steps=20).properties
    assert got["measured_steps"] == 1
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("strategy", "samples", "slots", "real"),
    [
        # two documents of 20 tokens do not fit a pack of 32
        ("bfd", [2, 2, 2, 1], [40, 40, 40, 20], [40, 40, 40, 20]),
        # 140 tokens are four packs and one of 12 tokens, which is padded if another pack is in its batch
        ("wrapped", [2, 2, 1], None, None),
    ],
)
def test_packs_are_counted_exactly(
    local: Local, tmp_path: Path, strategy: str, samples: list[int], slots: list[int] | None, real: list[int] | None
) -> None:
    """One epoch of seven packed documents of 20 tokens: the short batch at its end counts the packs that it has."""
    path = tmp_path / "seven.jsonl"
    path.write_text(json.dumps({"text": "x" * 19}) + "\n" + (json.dumps({"text": "y" * 19}) + "\n") * 6)
    change = {"packing": True, "packing_strategy": strategy, "dataset_id": str(path), "num_train_epochs": 1}
    plan = make_plan("sfttrainer", "finetune_full_benchmark", {**SMALL, "max_steps": 20, **change})
    (record,) = local._attempt(plan).records
    assert record["samples"] == samples
    assert sum(record["real_tokens"]) == 140
    if slots is not None:
        assert (record["token_slots"], record["real_tokens"]) == (slots, real)
        assert record["squared_lengths"] == [count * 20**2 for count in samples]


def test_the_loss_of_short_samples_is_per_predicted_token(local: Local) -> None:
    """One token of two is predicted."""
    assert measure(local, model_max_length=2, batch_size=8).properties["loss_first"] == pytest.approx(8.4, abs=0.6)


SHRUNK = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 512, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_intermediate_size": 64, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "n_embd": 64, "n_head": 4,
    "n_layer": 2, "n_inner": 96,
}  # fmt: skip
FAMILIES = (
    "llama3.2-1b", "mistral-7b-v0.1", "mixtral-8x7b-instruct-v0.1", "qwen2.5-0.5b", "qwen3-0.6b", "qwen3-30b-a3b",
    "granite-3.1-2b", "granite-3.0-1b-a400m-instruct", "granite-4.0-micro", "granite-4.0-h-tiny", "granite-20b-code-base",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_the_catalogue_trains(local: Local, tmp_path: Path, name: str) -> None:
    """A small model of each architecture is measured with TRL."""
    architecture = models.resolve(name).architecture
    assert architecture is not None
    small = {key: min(SHRUNK[key], value) if value else value for key, value in architecture.items() if key in SHRUNK}
    if "layer_types" in architecture:
        # without state-space layers a configuration has no sizes for them
        small["layer_types"] = ["mamba" if "mamba" in architecture["layer_types"] else "attention", "attention"]
    special = {key: 1 for key in architecture if key.endswith("_token_id")}
    (tmp_path / "config.json").write_text(json.dumps({**architecture, **small, **special}))
    verdict = measure(local, model_name=str(tmp_path), max_steps=4)
    assert (verdict.message, verdict.properties.get("is_valid")) == ("", 1)


def test_the_loss_of_two_processes_is_per_token(local: Local) -> None:
    """The mean over ranks is weighted by their tokens."""
    got = measure(local, number_nodes=2, batch_size=4, gradient_accumulation_steps=2).properties
    assert got["loss_first"] == pytest.approx(math.log(4096), abs=0.5)


def test_two_processes_train_a_vision_model_on_text(local: Local) -> None:
    """DDP looks for the parameters of the vision part, which get no gradient."""
    got = measure(local, model_name="tiny-llava-next", number_nodes=2, batch_size=4, max_steps=3)
    assert (got.message, got.properties["is_valid"]) == ("", 1)
    assert got.properties["model_flops_per_token"] > 0


def test_a_worker_prepares_images(local: Local) -> None:
    """It is a process that the trainer forks; images of 36 tokens and letters up to 64 tokens are trained whole."""
    images = {"model_max_length": 64, "dataset_id": "synthetic-image", "dataset_image_field": "image"}
    got = measure(
        local, "finetune_lora_benchmark", model_name="tiny-llava-next", dataloader_num_workers=1, max_steps=4, **images
    )
    assert (got.message, got.properties["is_valid"]) == ("", 1)
    assert got.properties["trained_tokens_per_second"] == pytest.approx(
        got.properties["train_tokens_per_second"] * 126 / 128
    )


def test_ranks_agree_and_add_up(local: Local) -> None:
    """Both ranks have the same steps and warm-up, and the report's tokens are the sum over both."""
    values = {**SMALL, "number_nodes": 2, "batch_size": 4, "dataset_id": "synthetic-uniform", "max_steps": 8}
    plan = make_plan("sfttrainer", "finetune_full_benchmark", values)
    outcome = local._attempt(plan)
    assert [record["rank"] for record in outcome.records] == [0, 1]
    assert [len(record["step_end_s"]) for record in outcome.records] == [8, 8]
    assert [record["facts"]["wrapped_by"] for record in outcome.records] == ["DistributedDataParallel"] * 2
    assert outcome.records[0]["real_tokens"] != outcome.records[1]["real_tokens"]
    (warmup,) = {record["warmup_steps"] for record in outcome.records}
    got = conclude(plan, [Run([outcome], 1)], price=None).properties
    records: list[Any] = outcome.records
    tokens = sum(sum(record["real_tokens"][warmup:]) for record in records)
    assert got["dataset_tokens_per_second"] * got["train_runtime_s"] == pytest.approx(tokens)
    assert got["measured_steps"] == 8 - warmup


def divides_models() -> bool:
    """Return whether the installed transformers divides models for tensor parallelism together with FSDP2."""
    distributed = pytest.importorskip("transformers.distributed")
    return "fsdp_size" in getattr(distributed.DistributedConfig, "__dataclass_fields__", {})


def test_tensor_parallelism_trains_the_same_and_counts_each_token_once(local: Local) -> None:
    """Both processes see the same samples; loss and tokens are those of one process with all of them."""
    change: dict[str, Any] = {"number_nodes": 2, "batch_size": 2, "max_steps": 4}
    shared = measure(local, distributed_backend="FSDP2", tensor_parallel_size=2, **change)
    if not divides_models():
        assert "needs a transformers that combines it with FSDP2" in shared.message
        return
    apart = measure(local, **change)
    assert shared.metadata["facts"]["wrapped_by"] == "tensor parallel 2"
    got, expected = shared.properties, apart.properties
    for name in ("loss_first", "loss_last"):
        assert got[name] == pytest.approx(expected[name], rel=1e-5)
    for name in ("model_parameters", "trainable_parameters", "model_flops_per_token"):
        assert got[name] == expected[name]
    assert got["dataset_tokens_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 2 * 32)


def test_ranks_stop_at_the_same_step(local: Local) -> None:
    """Rank 0 decides to stop long before max_steps, and both ranks have the same number of steps."""
    values = {**SMALL, "number_nodes": 2, "batch_size": 4, "max_steps": 400, "target_ci_percent": 50}
    outcome = local._attempt(make_plan("sfttrainer", "finetune_full_benchmark", values))
    steps = {len(record["step_end_s"]) for record in outcome.records}
    assert [record["stopped_by"] for record in outcome.records] == ["confidence"] * 2
    assert len(steps) == 1
    assert steps.pop() < 100


def test_a_model_directory_with_its_own_tokenizer_learns_from_text(local: Local, tmp_path: Path) -> None:
    """Prompts have no labels; tokens are those of the directory's tokenizer."""
    transformers = pytest.importorskip("transformers")
    from ado_actuators.sfttrainer.core.trainer import byte_tokenizer

    directory = tmp_path / "a model"
    config = {**(models.resolve("tiny-llama-5m").architecture or {})}
    transformers.AutoConfig.for_model(**config).save_pretrained(directory)
    byte_tokenizer.build(64).save_pretrained(directory)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 2 = ", "completion": "four"}) + "\n")
    got = measure(local, model_name=str(directory), dataset_id=str(path)).properties
    # eight bytes of prompt, four of completion and the end of the sequence
    assert got["dataset_tokens_per_second"] / got["train_samples_per_second"] == pytest.approx(13)
    assert got["trained_tokens_per_second"] / got["train_samples_per_second"] == pytest.approx(5)


def test_prompt_tuning_trains_virtual_tokens_only(local: Local) -> None:
    """The trainable parameters are the embeddings of the virtual tokens."""
    got = measure(local, "finetune_prompt_tuning_benchmark", num_virtual_tokens=6).properties
    width = models.resolve(SMALL["model_name"]).architecture["hidden_size"]  # type: ignore[index]
    assert (got["is_valid"], got["trainable_parameters"]) == (1, 6 * width)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_load_of_experts_is_in_the_metadata(local: Local, tmp_path: Path, nodes: int) -> None:
    """With one process or DDP; with 2 of 4 experts per token the ratio is at most 2."""
    (tmp_path / "config.json").write_text(json.dumps(EXPERTS))
    facts = measure(local, model_name=str(tmp_path), batch_size=2 * nodes, number_nodes=nodes, max_steps=4).metadata[
        "facts"
    ]
    assert facts["wrapped_by"] == ("none" if nodes == 1 else "DistributedDataParallel")
    assert 1.0 <= facts["router_load_max_over_mean"] <= 2.0


def test_the_same_command_repeats_the_run(local: Local) -> None:
    """The metadata have the command and the versions."""
    metadata = measure(local).metadata
    assert metadata["command"] == (
        "ado-sfttrainer run --experiment finetune_full_benchmark "
        "batch_size=2 max_steps=6 model_max_length=32 model_name=tiny-llama-5m number_gpus=0"
    )
    assert {"torch", "transformers", "trl", "peft", "accelerate"} <= set(metadata["versions"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.jsonl", None, "missing.jsonl"),
        ("empty.jsonl", "", "empty"),
        ("malformed.jsonl", '{"text": "fine"}\n{"text": \n', "Line 2"),
        ("columns.jsonl", '{"words": "fine"}\n', "text"),
    ],
)
def test_bad_data_ends_in_one_message(
    local: Local, tmp_path: Path, name: str, content: str | None, expected: str
) -> None:
    """The message names the data set and the line."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    verdict = measure(local, dataset_id=str(path))
    assert verdict.properties == {}
    assert expected in verdict.message
    assert name in verdict.message
    assert len(verdict.message) <= 200
    assert "\n" not in verdict.message


def test_training_stack_not_installed(tmp_path: Path) -> None:
    """The message names the missing package and what to do."""
    venv.create(tmp_path / "bare", with_pip=False)
    settings = SFTTrainerParameters(max_retries=0, environment=str(tmp_path / "bare" / "bin" / "python"))
    with Local(SFTTrainer.plugin(), settings, tmp_path / "state") as bare:
        verdict = measure(bare)
    assert verdict.properties == {}
    assert verdict.message == (
        "The training environment lacks the package 'accelerate': install it there, or choose another environment."
    )


def test_unknown_model() -> None:
    """The message for a misspelled model has similar names."""
    with pytest.raises(failures.Broken, match="tiny-llama-5m"):
        make_plan("sfttrainer", "finetune_full_benchmark", {**SMALL, "model_name": "tiny-lama-5m"})


def test_directory_without_configuration(tmp_path: Path) -> None:
    """A model's directory needs a config.json."""
    with pytest.raises(failures.Broken, match=r"config\.json"):
        make_plan("sfttrainer", "finetune_full_benchmark", {**SMALL, "model_name": str(tmp_path)})


def test_metadata_are_json(local: Local) -> None:
    """ado's store writes metadata as JSON."""
    metadata = measure(local).metadata
    assert json.loads(json.dumps(metadata)) == metadata
