"""Translation of workloads of IBM's actuator: names, defaults, and properties without a counterpart."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core.workload import ibm, ibm_names
from ado_actuators.sfttrainer.core.workload.experiments import KINDS, fields
from ado_actuators.sfttrainer.core.workload.fields import Workload
from ado_actuators.sfttrainer.core.workload.ibm_values import Choices
from ado_actuators.sfttrainer.core.workload.validation import parse

FMS, TRL = Choices("fms_hf_tuning"), Choices("sfttrainer")
GPUS: dict[str, list[Any]] = {
    "model_name": ["llama3.2-1b"],
    "model_max_length": [512],
    "batch_size": [8],
    "number_gpus": [2],
}
CPU: dict[str, list[Any]] = {**GPUS, "number_gpus": [0]}
FULL, LORA, GPTQ = "finetune_full_benchmark", "finetune_lora_benchmark", "finetune_gptq_lora_benchmark"


def differences(found: ibm.Translation) -> list[str]:
    """Return the findings that change the study."""
    return [finding.text for finding in found.findings if not finding.same]


def translated(given: dict[str, Any], *, choices: Choices = FMS, experiment: str = FULL) -> tuple[Any, list[str]]:
    """Return our properties that differ from IBM's defaults, and the differences except the one of the library's release."""
    here = {"fms_hf_tuning_version": "3.1.0"}
    found, plain = (ibm.translate(experiment, {**here, **one}, GPUS, choices) for one in (given, {}))
    changed = {name: value for name, value in found.fixed.items() if plain.fixed.get(name, Workload) != value}
    gone = {name: None for name in plain.fixed if name not in found.fixed}
    return changed | gone, [text for text in differences(found) if text not in differences(plain)]


def test_defaults_that_differ_are_written_and_those_that_equal_are_left_out() -> None:
    """IBM's defaults that differ from ours, and no others: ado rejects a value that equals a default."""
    assert ibm.translate(FULL, {"fms_hf_tuning_version": "3.2.2"}, GPUS, FMS).fixed == {
        "torch_dtype": "bfloat16",
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "distributed_backend": "FSDP",
    }
    adapters = ibm.translate(LORA, {"lora_alpha": 16, "r": 8}, GPUS, TRL).fixed
    assert adapters["lora_dropout"] == 0.05
    assert adapters["target_modules"] == "q_proj,v_proj"
    assert not {"r", "lora_alpha"} & adapters.keys()


def test_gptq_has_defaults_of_its_own() -> None:
    """float16 weights, fp16 autocast, all kernels; and no FSDP, which is not supported with it here."""
    found = ibm.translate(GPTQ, {}, GPUS, FMS)
    assert found.fixed.items() >= {"torch_dtype": "float16", "mixed_precision": "fp16", "fast_kernels": True}.items()
    assert "distributed_backend" not in found.fixed
    assert any("GPTQ-LoRA is not supported with FSDP" in text for text in differences(found))


@pytest.mark.parametrize("name", [name for name in ibm_names.EXPERIMENTS.values() if name != GPTQ])
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_translated_workload_is_possible(name: str, gpus: int) -> None:
    """Every experiment with IBM's defaults passes our rules; without GPUs, flash attention must be off, as in IBM's."""
    varied: dict[str, list[Any]] = {**GPUS, "number_gpus": [gpus]}
    given = {"flash_attn": False} if gpus == 0 else {}
    fixed = ibm.translate(name, given, varied, TRL).fixed
    parse({**{key: values[0] for key, values in varied.items()}, **fixed, **KINDS[name].sets})


@pytest.mark.parametrize("experiment", list(ibm_names.EXPERIMENTS.values()))
@pytest.mark.parametrize("choices", [FMS, TRL])
def test_only_properties_of_the_experiment_are_written(experiment: str, choices: Choices) -> None:
    """Properties of another method, and those that the experiment sets, are left out."""
    found = ibm.translate(experiment, {"stop_after_seconds": 9}, GPUS, choices)
    assert found.fixed.keys() <= fields(choices.actuator, KINDS[experiment]).keys()


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ({"flash_attn": False}, {"attn_implementation": None}),
        ({"bf16": True}, {"mixed_precision": "bf16"}),
        ({"bf16": True, "accelerate_config_mixed_precision": "fp16"}, {"mixed_precision": "bf16"}),
        ({"bf16": False, "accelerate_config_mixed_precision": "fp16"}, {"mixed_precision": "fp16"}),
        ({"accelerate_config_mixed_precision": False}, {}),  # YAML reads an unquoted no as False
        (
            {"accelerate_config_fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
            {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
        ),
        ({"distributed_backend": None}, {"distributed_backend": "None"}),
        ({"distributed_backend": "DDP"}, {"distributed_backend": None}),
        ({"gpu_model": None}, {}),
        ({"fast_kernels": ["True", "True", "True"]}, {"fast_kernels": True}),
        ({"fast_kernels": None}, {}),
        ({"fast_moe": [2]}, {"fast_moe": 2}),
        ({"fast_moe": 0}, {}),
        ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": None}),
        ({"torch_dtype": "float32"}, {"torch_dtype": None}),
        ({"remove_unused_columns": False}, {}),
        ({"dataset_text_field": "messages"}, {}),
    ],
)
def test_values_with_a_counterpart(given: dict[str, Any], here: dict[str, Any]) -> None:
    """Properties of another name or type; None if the result is our default."""
    assert translated(given) == (here, [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"accelerate_config_mixed_precision": "fp8"}, "fp8 has no counterpart"),
        ({"fast_kernels": ["True", "False", "True"]}, "all kernels on or off"),
        ({"optim": "muon"}, "optim muon has no counterpart"),
        ({"fms_hf_tuning_version": "2.8.2"}, "2.8.2 becomes 3.1.0, the nearest"),
        ({"fms_hf_tuning_version": "3.10.0"}, "3.10.0 becomes 3.2.2, the nearest"),
        ({"auto_stop_method": "SOON"}, "auto_stop_method SOON has no counterpart"),
        ({"dataset_id": "news-chars-512-entries-4096"}, "samples are longer"),
        ({"surprise": 1}, "surprise 1 has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_reported(given: dict[str, Any], expected: str) -> None:
    """The study changes, and a finding says how."""
    texts = translated(given)[1]
    assert len(texts) == 1
    assert expected in texts[0]


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ({"stop_after_seconds": 30}, {"target_ci_percent": 0.0, "stop_after_seconds": 30.0, "max_steps": 1_000_000}),
        ({"max_steps": 50}, {"target_ci_percent": 0.0, "stop_after_seconds": 0.0, "max_steps": 50}),
        (
            {"auto_stop_method": ibm_names.WARMUP_THEN_STABLE, "num_train_epochs": 10},
            {"target_ci_percent": 0.0, "stop_after_seconds": 180.0, "max_steps": 1_000_000},
        ),
        ({"max_steps": -1, "stop_after_seconds": -1, "num_train_epochs": 1.0}, {}),
    ],
)
def test_ends(given: dict[str, Any], here: dict[str, Any]) -> None:
    """A measurement ends when the study says; without that, when its rate has converged."""
    assert translated(given) == (here, [])
    adaptive = ibm.translate(FULL, given, GPUS, Choices("fms_hf_tuning", adaptive=True)).fixed
    assert not {"target_ci_percent", "stop_after_seconds", "max_steps"} & adaptive.keys()


def test_files_of_ibm_have_their_own_column_and_epochs() -> None:
    """With --data, the path, the column and a whole number of epochs are set."""
    choices = Choices("fms_hf_tuning", data="/data/")
    found = ibm.translate(FULL, {"num_train_epochs": 1.5}, GPUS, choices)
    assert found.fixed["dataset_id"] == "/data/news-tokens-16384plus-entries-4096.jsonl"
    assert found.fixed["dataset_text_field"] == "output"
    assert found.fixed["num_train_epochs"] == 2
    assert any("num_train_epochs 1.5 becomes 2" in text for text in differences(found))


def test_fsdp_is_left_out_below_two_gpus() -> None:
    """FSDP is used from two GPUs, as in IBM's actuator; a space with 0 GPUs as well needs a separate one."""
    for gpus, count in (([0], 0), ([1], 0), ([1, 2], 0), ([0, 2], 1)):
        found = ibm.translate(FULL, {"fms_hf_tuning_version": "3.1.0"}, {**GPUS, "number_gpus": gpus}, FMS)
        assert ("distributed_backend" in found.fixed) == (max(gpus) > 1)
        assert len(differences(found)) == count


def test_lora_modules_that_differ_between_models_are_reported() -> None:
    """target_modules of a space is that of most of its models."""
    models = ["llama-7b", "llama3.2-1b", "llama3.2-3b"]
    found = ibm.translate(LORA, {"fms_hf_tuning_version": "3.1.0"}, {**GPUS, "model_name": models}, FMS)
    assert found.fixed["target_modules"] == "q_proj,v_proj"
    assert "llama-7b (q_proj,k_proj)" in differences(found)[0]


def test_models_of_a_configuration_are_paths() -> None:
    """model_map takes precedence, unless it has the hub id of the catalogue."""
    varied: dict[str, list[Any]] = {**GPUS, "model_name": ["allam-1-13b", "llama3.2-1b"]}
    paths = {"allam-1-13b": "/models/allam", "llama3.2-1b": "meta-llama/Llama-3.2-1B"}
    found = ibm.translate(FULL, {}, varied, Choices("fms_hf_tuning", model_map=paths))
    assert found.varied["model_name"] == ("model_name", ["/models/allam", "llama3.2-1b"])
    unknown = ibm.translate(FULL, {"fms_hf_tuning_version": "3.1.0"}, varied, FMS)
    assert ["allam-1-13b" in text for text in differences(unknown)] == [True]


def test_varied_properties_keep_their_values() -> None:
    """Varied properties are renamed and translated value by value; those without a counterpart are left out."""
    varied: dict[str, list[Any]] = {
        **GPUS,
        "flash_attn": [True, False],
        "accelerate_config_mixed_precision": ["no", "fp8", "bf16"],
        "fast_kernels": [None, ["True", "True", "True"]],
        "max_steps": [5, 10],
    }
    found = ibm.translate(FULL, {}, varied, FMS)
    assert found.varied["flash_attn"] == ("attn_implementation", ["flash_attention_2", "auto"])
    assert found.varied["accelerate_config_mixed_precision"] == ("mixed_precision", ["no", "bf16"])
    assert found.varied["fast_kernels"] == ("fast_kernels", [False, True])
    assert found.varied["max_steps"] is None
    assert not {"attn_implementation", "mixed_precision", "fast_kernels"} & found.fixed.keys()


def test_stacks_that_lack_an_experiment_say_so() -> None:
    """TRL has no GPTQ-LoRA, and the releases of fms-hf-tuning no prompt tuning."""
    assert any("leave out --to" in text for text in differences(ibm.translate(GPTQ, {}, GPUS, TRL)))
    prompts = ibm.translate("finetune_prompt_tuning_benchmark", {}, GPUS, FMS)
    assert any("use --to sfttrainer" in text for text in differences(prompts))


@pytest.mark.parametrize("name", ["flash_attn", "SFTTrainer", "finetune_full_benchmark-v1.0.0", "hf_home", "bf16"])
def test_names_of_ibm_lead_to_convert(name: str) -> None:
    """Names of IBM's properties, actuator, experiments and parameters get advice."""
    assert "ado-fms-hf-tuning convert FILE" in ibm_names.hint(name)


@pytest.mark.parametrize("name", ["batch_size", "flash_attention", "sfttrainer"])
def test_other_names_do_not(name: str) -> None:
    """Names that both have, or neither has, get no advice."""
    assert ibm_names.hint(name) == ""
