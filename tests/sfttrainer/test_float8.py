"""Products in 8-bit floats: torchao's layers train with its emulation on CPUs, and GPUs without such products are refused."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torchao")
import torch

from ado_actuators.sfttrainer.core.trainer import float8
from ado_actuators.sfttrainer.core.trainer.errors import BadInput, Refused

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_but_the_first_and_the_output_layer_are_converted(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Two layers of seven linear layers, without the first; the loss is near that in 16 bits, but not equal."""
    from torchao.float8 import Float8LinearConfig

    made, asked = Float8LinearConfig.from_recipe_name, []

    def emulated(name: str) -> Any:
        asked.append(name)
        return dataclasses.replace(made(name), emulate=True)

    monkeypatch.setattr(Float8LinearConfig, "from_recipe_name", emulated)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    change = {"max_steps": 1, "torch_dtype": "bfloat16", "mixed_precision": "bf16"}
    converted: list[int] = []
    original = float8.convert

    def convert(model: Any, workload: Any) -> None:
        original(model, workload)
        # accelerate would look for the GPU, too
        monkeypatch.undo()
        converted.append(sum("Float8" in type(module).__name__ for module in model.modules()))

    monkeypatch.setattr(float8, "convert", convert)
    got = train(unchecked={"fp8_recipe": recipe}, **change)
    assert asked == [recipe]
    assert got.facts["float8_layers"] == converted[0] == 2 * 7 - 1
    plain = train(**change)
    assert "float8_layers" not in plain.facts
    assert got.loss_per_token == pytest.approx(plain.loss_per_token, abs=0.05)
    assert got.loss_per_token != plain.loss_per_token


@pytest.mark.parametrize(
    ("capability", "recipe", "end"),
    [
        (None, "tensorwise", "capability 8.9 or higher; this trainer has none."),
        ((8, 0), "tensorwise", "capability 8.9 or higher; this one has 8.0."),
        ((8, 9), "rowwise", "capability 9.0 or higher; this one has 8.9."),
        ((8, 9), "tensorwise", ""),
        ((12, 0), "rowwise", ""),
    ],
)
def test_gpus_without_such_products_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, recipe: str, end: str
) -> None:
    """Named by their compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if not end:
        float8._check_device(recipe)
        return
    with pytest.raises(Refused) as refused:
        float8._check_device(recipe)
    assert str(refused.value).endswith(end)


def test_a_missing_package_is_named(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find(name))
    with pytest.raises(BadInput, match="fp8_recipe rowwise needs the package torchao in the training environment"):
        train(unchecked={"fp8_recipe": "rowwise"}, max_steps=1)
