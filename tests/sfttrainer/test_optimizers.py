"""Each optimizer of the installed transformers trains on CPU, or is refused with one message that names what it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.failures import InvalidConfiguration
from ado_actuators.sfttrainer.core.protocol import optimizers
from ado_actuators.sfttrainer.core.workload.validation import parse

torch = pytest.importorskip("torch")
training_args = pytest.importorskip("transformers.training_args")

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

SMALL = {"model_name": "tiny", "model_max_length": 16, "batch_size": 4, "number_gpus": 0}
LISTED = [one.value for one in training_args.OptimizerNames]
REFUSED = (*optimizers.NEED_CUDA, "galore_adafactor_layerwise")
# the optimizers that CPUs can run, by the package that they need
FAMILIES: dict[str, list[str]] = {}
for _name in LISTED:
    if _name not in REFUSED:
        _package = optimizers.PACKAGES.get(_name)
        FAMILIES.setdefault(_package.distribution if _package else "none", []).append(_name)
# one layer: torchao compiles the update of each shape
ONE_LAYER = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def test_every_optimizer_of_transformers_is_a_value() -> None:
    """Of the installed release, and none is listed without a known package."""
    assert set(LISTED) <= set(optimizers.NAMES)
    assert set(optimizers.NAMES) == {*optimizers.OWN, *optimizers.PACKAGES}


@pytest.mark.parametrize("distribution", FAMILIES)
def test_every_optimizer_that_cpus_can_run_trains(train: Callable[..., Any], distribution: str) -> None:
    """Its class is the one that ran, and it changes the weights; a missing package is named."""
    from ado_actuators.sfttrainer.core.trainer.errors import BadInput

    for name in FAMILIES[distribution]:
        package = optimizers.PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package.module) is None:
            with pytest.raises(BadInput, match=f"^optim {name} needs the package {package.distribution} in the"):
                train(ONE_LAYER, optim=name)
            continue
        # RAdam leaves the weights unchanged while its variance is not reliable
        trained = train(ONE_LAYER, optim=name, max_steps=8 if "radam" in name else 2)
        changed = [
            not torch.equal(after, before)
            for after, before in zip(trained.model.parameters(), trained.before.parameters(), strict=True)
        ]
        # without a scale for each parameter, an update of a norm's weight can be too small for float32
        assert sum(changed) > len(changed) / 2, f"{name} changes only {sum(changed)} of {len(changed)} parameters"
        if package is not None and not name.endswith(optimizers.LAYERWISE):
            used = trained.facts["optimizer"]
            assert used.partition(".")[0] == package.module, name
            if package.module == "bitsandbytes":
                assert ("8 bits" in used, "paged" in used) == ("8bit" in name, "paged" in name), (name, used)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": "adalomo"}, "optim adalomo needs a GPU: its implementation uses CUDA; on CPU use lomo."),
        (
            {"optim": "galore_adamw_layerwise", "number_nodes": 2},
            "optim galore_adamw_layerwise does not support several devices; use galore_adamw.",
        ),
        (
            {"optim": "apollo_adamw_layerwise", "gradient_accumulation_steps": 2},
            "optim apollo_adamw_layerwise needs gradient_accumulation_steps 1, since it updates in the backward pass.",
        ),
        (
            {"optim": "lomo", "gradient_accumulation_steps": 2},
            "optim lomo needs gradient_accumulation_steps 1, since it updates in the backward pass.",
        ),
        (
            {"optim": "galore_adafactor_layerwise", "number_gpus": 1},
            (
                "optim galore_adafactor_layerwise is impossible: transformers gives its Adafactor contradictory settings; "
                "use galore_adafactor."
            ),
        ),
    ],
)
def test_impossible_optimizers_are_refused(change: dict[str, object], message: str) -> None:
    """Before training starts, with what to use instead."""
    with pytest.raises(InvalidConfiguration) as refused:
        parse({**SMALL, **change})
    assert str(refused.value) == message


def test_an_optimizer_of_another_release_is_refused(train: Callable[..., Any]) -> None:
    """The message names the release that is installed."""
    from ado_actuators.sfttrainer.core.trainer.errors import BadInput

    missing = next(name for name in optimizers.NAMES if name not in LISTED)
    with pytest.raises(
        BadInput, match=f"^optim {missing} does not exist in transformers [0-9.]+; use another optimizer\\.$"
    ):
        train(ONE_LAYER, optim=missing)
