"""What a property that an experiment lacks is answered with."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.workload.experiments import KINDS

WORKLOAD = {"model_name": "tiny-llama-5m", "model_max_length": 32, "batch_size": 1, "number_gpus": 0}
FULL = "is not a property of finetune_full_benchmark in sfttrainer."
LIST = "List them with ado describe experiment sfttrainer.finetune_full_benchmark."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batchsize", 2, f"batchsize {FULL} Use batch_size."),
        ("method", "lora", f"method {FULL} The experiment sets it: use finetune_lora_benchmark."),
        ("method", "loraa", "method 'loraa' does not exist; use lora or qlora."),
        ("method", ["x"], "method ['x'] does not exist; use full or lora or qlora or gptq_lora or prompt_tuning."),
        ("metod", "lora", f"metod {FULL} Use method."),
        (
            "num_virtual_tokens",
            4,
            f"num_virtual_tokens {FULL} These have it: finetune_prompt_tuning_benchmark, finetune_memory_estimate.",
        ),
        ("zzz", 1, f"zzz {FULL} {LIST}"),
        ("z" * 1000, 1, f"{'z' * 60} {FULL} {LIST}"),
    ],
)
def test_an_unknown_property_gets_the_likely_remedy(name: str, value: object, message: str) -> None:
    """Close names, the experiments that have it, or the experiment that a method means."""
    with pytest.raises(failures.InvalidConfiguration) as raised:
        make_plan("sfttrainer", "finetune_full_benchmark", {**WORKLOAD, name: value})
    assert str(raised.value) == failures.plain_message(message)


def test_the_estimate_of_gptq_exists_in_one_actuator() -> None:
    """TRL has no GPTQ-LoRA."""
    kind = KINDS["finetune_memory_estimate"]
    assert {*kind.allowed("method", "fms_hf_tuning")} - {*kind.allowed("method", "sfttrainer")} == {"gptq_lora"}
    assert kind.allowed("model_name", "fms_hf_tuning") == ()
