"""Weights in four bits on a trace: what is stored, and what a product allocates, in exact numbers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from ado_actuators.sfttrainer.core.protocol.supported import untraceable  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import four_bits  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES, Ledger, Sharing  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.tracing import Watch  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate.values import AssumedValues  # noqa: E402
from ado_actuators.sfttrainer.core.workload.fields import Workload  # noqa: E402

pytestmark = pytest.mark.torch

ROWS, COLUMNS = 512, 256


class Model(torch.nn.Module):
    """A layer to quantise, and an output layer that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16)
        self.output = torch.nn.Linear(ROWS, 8, bias=False, dtype=torch.bfloat16)
        self.config: Any = type("Config", (), {})()

    def get_output_embeddings(self) -> Any:  # noqa: D102
        return self.output


def stored(layer: torch.nn.Module) -> int:
    """Return the bytes of a layer's parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in (*layer.parameters(), *layer.buffers()))


@pytest.mark.parametrize(
    ("kind", "options", "beside"),
    [
        # a scale for each 64 numbers; of those one for each 256; tables of 256 and 16 numbers, and an offset
        ("nf4", {}, 2048 + 4 * 8 + 4 * 256 + 4 + 4 * 16),
        ("nf4", {"double": False}, 4 * 2048 + 4 * 16),
        ("fp4", {"double": False}, 4 * 2048 + 4 * 16),
        # two groups of 128 inputs: a scale of two bytes, a zero of four bits; the group of each input
        ("gptq", {}, 2 * 2 * ROWS + 2 * ROWS // 2 + 4 * COLUMNS),
        # one group of all inputs
        ("gptq", {"group": None}, 2 * ROWS + ROWS // 2 + 4 * COLUMNS),
    ],
)
def test_two_numbers_a_byte_and_scales(kind: str, options: dict[str, Any], beside: int) -> None:
    """As bitsandbytes and GPTQ store them; the output layer is not quantised."""
    with FakeTensorMode():
        model = four_bits.quantised(Model(), torch.bfloat16, kind=kind, **options)
        assert stored(model.layer) == ROWS * COLUMNS // 2 + beside
        assert stored(model.output) == 2 * 8 * ROWS
        assert four_bits.numbers(model.layer.weight) == ROWS * COLUMNS
        assert four_bits.numbers(model.output.weight) == 8 * ROWS


def test_weights_of_eight_bits_are_refused() -> None:
    """What LLM.int8 allocates depends on the values of activations; the other kinds are traced."""
    values = {"model_name": "m", "model_max_length": 8, "batch_size": 1, "number_gpus": 1, "method": "qlora"}
    found = {
        kind: untraceable(Workload.model_validate({**values, "quantisation": kind})) for kind in ("nf4", "fp4", "int8")
    }
    assert found == {
        "nf4": None,
        "fp4": None,
        "int8": (
            "finetune_memory_estimate cannot trace quantisation int8: "
            "what its products allocate depends on the outliers among the activations."
        ),
    }


def test_a_product_makes_the_whole_weight() -> None:
    """In the forward pass, and again in the backward pass, where nothing else of it was kept."""
    ledger, mode = Ledger(), FakeTensorMode()
    watch = Watch(ledger, AssumedValues(mode, 0, 0))
    with four_bits.kernels_of_four_bits(), mode:
        model = four_bits.quantised(Model(), torch.bfloat16)
        given = torch.ones(1, COLUMNS, dtype=torch.bfloat16, requires_grad=True)
        with watch:
            made = model.layer(given)
            scales, weight = 4 * 2048, 2 * ROWS * COLUMNS
            forward = ledger.peaks(Sharing())[PASSES].total
            made.sum().backward()
    assert weight + scales <= forward < weight + scales + 4096
    assert given.grad is not None
    assert given.grad.shape == given.shape
