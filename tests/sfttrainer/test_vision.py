"""Models with a vision part, trained with TRL on text and on images, in the tests' own process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics import flops
from ado_actuators.sfttrainer.core.workload import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from . import test_estimate_accuracy as accuracy  # noqa: E402
from . import tiny  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

Train = Callable[..., Any]
TYPES = ("gemma3", "gemma4", "qwen3_5", "qwen3_vl", "mistral3", "llava_next")


def of_one_token(record: dict[str, Any], method: str) -> float:
    """Return the FLOP of a token of a record."""
    facts, slots = record["facts"], sum(record["token_slots"])
    squared = sum(record["squared_lengths"])
    given = {"adapters": facts.get("adapters"), "counted": facts.get("counted_flops")}
    return flops.per_token(record["architecture"], method=method, token_slots=slots, squared_lengths=squared, **given)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        *((one, {}) for one in TYPES),
        ("gemma3", {"method": "lora"}),
        *((one, {"packing": True}) for one in ("gemma3", "qwen3_vl", "mistral3")),
    ],
    ids=str,
)
def test_text_trains_the_text_part(train: Train, model_type: str, change: dict[str, Any]) -> None:
    """The whole model is in memory; the vision part stays as it was, and counts no FLOP. A note says so."""
    trained = train(tiny.with_vision(model_type), dataset_id="synthetic-uniform", optim="sgd", max_steps=1, **change)
    record, facts = trained.record, trained.facts
    assert trained.loss_per_token == pytest.approx(math.log(300), abs=0.6)
    assert record["model_parameters"] == sum(one.numel() for one in trained.before.parameters())
    assert any(note.startswith("The vision part had no images: ") for note in facts["notes"])
    base = trained.model.get_base_model() if "method" in change else trained.model
    text = {id(one) for part in (base.get_decoder(), base.get_output_embeddings()) for one in part.parameters()}
    changed = [
        name
        for (name, one), (_, other) in zip(base.named_parameters(), trained.before.named_parameters(), strict=False)
        if not torch.equal(one, other) and id(one) not in text
    ]
    assert not changed or "method" in change
    # 6 FLOP of a pass forward and backward for each number of the text part, except of embeddings; attention adds a little
    if not change:
        decoder = sum(one.numel() for one in base.get_decoder().parameters())
        assert 3 * decoder < of_one_token(record, "full") < 10 * decoder
    else:
        assert of_one_token(record, change.get("method", "full")) > 0


def test_the_flop_of_text_are_those_of_the_text_model(train: Train) -> None:
    """With a formula, and counted by PyTorch; an adapter of the vision part counts nothing."""
    whole = tiny.with_vision("llava_next")
    seen, alone = (train(one, method="lora", max_steps=1) for one in (whole, whole["text_config"]))
    assert seen.record["trainable_parameters"] > alone.record["trainable_parameters"]
    assert of_one_token(seen.record, "lora") == of_one_token(alone.record, "lora")
    counted = train(tiny.with_vision("qwen3_vl"), max_steps=1).record
    dense = {**counted["architecture"]["text_config"], "model_type": "qwen3"}
    known = flops.per_token(dense, method="full", token_slots=64, squared_lengths=4 * 16**2)
    # without a mask the counter sees all pairs of positions, of which half are real
    assert of_one_token(counted, "full") == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        (
            "qwen3_5",
            {"packing": True},
            "^packing of models of type qwen3_5 needs the package causal-conv1d, which needs a GPU",
        ),
        ("llama4", {}, "^TRL [0-9.]+ cannot compute its loss for models of type llama4: they return no hidden states"),
    ],
)
def test_what_cannot_be_trained_is_refused(train: Train, model_type: str, change: dict[str, Any], message: str) -> None:
    """In one message that names the type."""
    from ado_actuators.sfttrainer.core.trainer.errors import Refused

    with pytest.raises(Refused, match=message):
        train(tiny.with_vision(model_type), dataset_id="synthetic-uniform", **change)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_images_are_trained(train: Train, method: str) -> None:
    """An image of 36 tokens and letters up to 64 tokens; TRL trains them all. The FLOPs of images are not known."""
    pytest.importorskip("PIL")
    source = models.resolve("tiny-llava-next")
    images = {"model_max_length": 64, "dataset_id": "synthetic-image", "dataset_image_field": "image"}
    trained = train(source.architecture, method=method, batch_size=2, max_steps=1, **images)
    record = trained.record
    assert (record["samples"], record["token_slots"], record["trained_tokens"]) == ([2], [128], [126])
    assert trained.facts["image_processor"].startswith("LlavaNextImageProcessor")
    assert trained.facts["notes"] == []
    tower = [one for name, one in trained.model.named_parameters() if "vision_tower" in name and one.requires_grad]
    assert tower
    if method == "lora":
        assert any(one["module"] == "fc1" for one in trained.facts["adapters"])


def test_an_estimate_has_the_vision_part(tmp_path: Path) -> None:
    """Its parameters, without gradients and states: the prediction is the real peak."""
    asked = dataclasses.replace(accuracy.job(tmp_path), architecture=tiny.with_vision("mistral3"))
    ledger, _ = accuracy.tracing.trace(accuracy.stack, asked, cuda=False)
    predicted = max(peak.total for peak in ledger.peaks(accuracy.Sharing()).values())
    assert predicted / accuracy.real_peak_bytes(asked) == pytest.approx(1, abs=0.005)
