"""States of bitsandbytes' optimizers on a trace, in exact numbers, and optimizers that cannot be traced."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from ado_actuators.sfttrainer.core.protocol import supported  # noqa: E402
from ado_actuators.sfttrainer.core.trainer.memory_estimate import optimizer_states  # noqa: E402
from ado_actuators.sfttrainer.core.workload import validation  # noqa: E402

pytestmark = pytest.mark.torch

# parameters below 4096 elements have float32 states, and pages start at 100,000 elements
SMALL, LARGE, PAGED = 4095, 65_537, 100_000
BLOCKS = -(-LARGE // 256)


def stored(kind: Any, **options: Any) -> list[int]:
    """Return the bytes of the states of a small, a large and a paged parameter after a step."""
    with FakeTensorMode(allow_non_fake_inputs=True), optimizer_states.states_without_updates():
        parameters = [torch.nn.Parameter(torch.empty(size, dtype=torch.bfloat16)) for size in (SMALL, LARGE, PAGED)]
        optimizer = kind(parameters, lr=1e-3, **options)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.step()
        return [
            sum(one.untyped_storage().nbytes() for name, one in optimizer.state[parameter].items() if _own(name, one))
            for parameter in parameters
        ]


def _own(name: str, value: Any) -> bool:
    # the tables of values belong to all parameters together
    return isinstance(value, torch.Tensor) and not name.startswith("qmap")


@pytest.mark.parametrize(
    ("name", "options", "small", "large"),
    [
        ("AdamW", {"optim_bits": 32}, 8 * SMALL, 8 * LARGE),
        ("AdamW", {"optim_bits": 8}, 8 * SMALL, 2 * LARGE + 2 * 4 * BLOCKS),
        ("Lion", {"optim_bits": 8}, 4 * SMALL, LARGE + 4 * BLOCKS),
        ("AdEMAMix", {"optim_bits": 8}, 12 * SMALL, 3 * LARGE + 3 * 4 * BLOCKS),
    ],
)
def test_states_have_the_sizes_of_bitsandbytes(name: str, options: dict[str, Any], small: int, large: int) -> None:
    """One byte per element and a scale per block of 256; small parameters have float32 states."""
    assert stored(getattr(bitsandbytes.optim, name), **options)[:2] == [small, large]


def test_pages_count_nothing() -> None:
    """They are in unified memory; the scales of their blocks are not."""
    scales = 2 * 4 * -(-PAGED // 256)
    assert stored(bitsandbytes.optim.AdamW, optim_bits=8, is_paged=True)[2] == scales
    assert stored(bitsandbytes.optim.AdamW, optim_bits=32, is_paged=True)[2] == 0
    assert stored(bitsandbytes.optim.AdamW, optim_bits=8)[2] == 2 * PAGED + scales


def test_bitsandbytes_is_as_before_afterwards() -> None:
    """Its functions, and what it knows of parameters."""
    function = bitsandbytes.functional.optimizer_update_32bit
    stored(bitsandbytes.optim.AdamW)
    assert bitsandbytes.functional.optimizer_update_32bit is function
    assert not bitsandbytes.optim.GlobalOptimManager.get_instance().pid2config


def test_which_states_follow_the_type_of_the_parameters() -> None:
    """Those of bitsandbytes do not; shards of float32 would otherwise count them twice."""
    own = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
    theirs = ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "lion_32bit", "rmsprop_bnb", "ademamix"]
    assert [name for name in own + theirs if optimizer_states.follows_parameters(name)] == own


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw_layerwise", "lomo", "adalomo", "adamw_torch_4bit"])
def test_optimizers_that_cannot_be_traced_say_so(name: str) -> None:
    """The reason names the property and its value."""
    asked = validation.parse(
        {"model_name": "m", "model_max_length": 8, "batch_size": 1, "number_gpus": 1, "optim": name}
    )
    message = supported.untraceable(asked)
    assert message is not None
    assert message.startswith(f"finetune_memory_estimate cannot trace optim {name}: ")
