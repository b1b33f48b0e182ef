"""Vision models and data sets with images, measured with fms-hf-tuning; bad input gives one message."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.fms_hf_tuning.actuator import FMSHFTuning
from ado_actuators.fms_hf_tuning.core import failures
from ado_actuators.fms_hf_tuning.core.commands import dataset
from ado_actuators.fms_hf_tuning.core.host.local import Local
from ado_actuators.fms_hf_tuning.core.measurement.plan import make_plan
from ado_actuators.fms_hf_tuning.core.measurement.verdict import Verdict

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

VERSIONS = FMSHFTuning.plugin().versions("cpu")
SMALL = {
    "model_name": "tiny-llava-next",
    "model_max_length": 64,
    "batch_size": 2,
    "number_gpus": 0,
    "max_steps": 4,
    "dataset_id": "synthetic-image",
    "dataset_image_field": "image",
}
# 4x4 patches of the whole image, 4x4 of its one tile, and a newline token for each of the tile's 4 rows
IMAGE_TOKENS = 36
PARAMETERS = 533_440

pytestmark = [
    pytest.mark.torch,
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("local", VERSIONS[-1:], indirect=True),
]


def measure(local: Local, experiment: str = "finetune_full_benchmark", **change: Any) -> Verdict:
    """Measure a small workload with images."""
    return local.measure(make_plan("fms_hf_tuning", experiment, {**SMALL, **change}))


def per_sample(got: dict[str, Any]) -> list[float]:
    """Return the mean token slots, real tokens and trained tokens per sample."""
    rates = (got[f"{count}_tokens_per_second"] for count in ("train", "dataset", "trained"))
    return [rate / got["train_samples_per_second"] for rate in rates]


@pytest.fixture(scope="module")
def images(local: Local, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set of six images of 56 pixels with captions, in the managed environment, which has Pillow."""
    path = tmp_path_factory.mktemp("images") / "six.parquet"
    (python,) = (Path(local._state_dir) / "environments").glob("fms-hf-tuning-3.2.2-cpu-*/bin/python")
    code = "import pathlib, sys, dataset; dataset.write_images(pathlib.Path(sys.argv[1]), samples=6, pixels=56)"
    subprocess.run([python, "-c", code, path], check=True, timeout=120, cwd=Path(dataset.__file__).parent)
    return path


def test_synthetic_images_are_measured(local: Local) -> None:
    """Every sample has model_max_length tokens, those of the image have no label, and the loss is that of random weights."""
    verdict = measure(local)
    got = verdict.properties
    assert verdict.message == ""
    assert (got["is_valid"], got["loss_finite"]) == (1, 1)
    assert per_sample(got) == pytest.approx([64, 64, 64 - IMAGE_TOKENS])
    assert got["train_samples_per_second"] * got["train_runtime_s"] == pytest.approx(got["measured_steps"] * 2)
    assert (got["model_parameters"], got["trainable_parameters"]) == (PARAMETERS, PARAMETERS)
    assert got["loss_first"] == pytest.approx(math.log(512), abs=0.5)
    assert verdict.metadata["omitted"]["FLOPs of model type 'llava_next' are not known."]


def test_a_file_of_images_is_measured(local: Local, images: Path) -> None:
    """Captions get an end token and are padded to the longest of the batch; LoRA adapts language model and vision tower."""
    captions = [len(row["caption"]) for row in parquet.read_table(images).to_pylist()]
    change = {"dataset_text_field": "caption", "model_max_length": 128, "batch_size": 6}
    verdict = measure(
        local, "finetune_lora_benchmark", dataset_id=str(images), r=4, target_modules="q_proj,v_proj", **change
    )
    assert verdict.message == ""
    real = sum(captions) / 6 + 1
    assert per_sample(verdict.properties) == pytest.approx(
        [IMAGE_TOKENS + max(captions) + 1, IMAGE_TOKENS + real, real]
    )
    language, tower = 2 * 4 * ((128 + 128) + (128 + 64)), 2 * 4 * 2 * (64 + 64)
    assert verdict.properties["trainable_parameters"] == language + tower


def test_cross_attention_needs_one_token_for_an_image(local: Local, tmp_path: Path) -> None:
    """In an mllama model, given by its directory, the image is one token of a sample, without a label."""
    text: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0}
    tower: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1}
    tower |= {"attention_heads": 2, "image_size": 56, "vision_output_dim": 64, "intermediate_layers_indices": [0]}
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {
        "model_type": "mllama",
        "image_token_index": 512,
        "text_config": {**text, "rope_scaling": {**rope, "original_max_position_embeddings": 8192}},
        "vision_config": tower,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    verdict = measure(local, model_name=str(tmp_path))
    assert verdict.message == ""
    assert per_sample(verdict.properties) == pytest.approx([64, 64, 63])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "dataset_text_field: data set {path!r} has no column 'text'; it has image, caption."),
        (
            {"dataset_image_field": "photo"},
            "dataset_image_field: data set {path!r} has no column 'photo'; it has image, caption.",
        ),
        (
            {"dataset_text_field": "caption"},
            "Row 3 of data set {path!r}: the image cannot be decoded; replace or remove the row.",
        ),
        (
            {"dataset_text_field": "caption", "model_max_length": 37},
            "Row 1 of data set {path!r}: the image of 56x56 pixels has 37 tokens; model_max_length 37 leaves none for text; raise it.",
        ),
        (
            {"dataset_id": "/no.parquet"},
            "Data set '/no.parquet' does not exist; use a .parquet file, or synthetic-image.",
        ),
        (
            {"dataset_id": "/no.jsonl"},
            "Data set '/no.jsonl' is not a .parquet file, which dataset_image_field needs; or use synthetic-image.",
        ),
    ],
)
def test_bad_data_is_one_message(
    local: Local, images: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """The message names the file, the row and what was expected; the third image of the file is truncated."""
    table = parquet.read_table(images)
    rows = table.to_pylist()
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:100]
    path = images.with_name("bad.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)
    said = measure(local, **{"dataset_id": str(path), **change}).message
    # only the end of a long path is shown
    assert said == message.format(path=str(path) if len(str(path)) <= 60 else "..." + str(path)[-57:])
    assert len(said) <= 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_id": "synthetic-fixed", "dataset_image_field": ""},
            "Model tiny-llava-next takes images, and fms-hf-tuning trains it with dataset_image_field only; use the sfttrainer actuator.",
        ),
        (
            {"model_name": "tiny-llama-5m"},
            "Model tiny-llama-5m takes no images; leave dataset_image_field out, or use a vision model.",
        ),
    ],
)
def test_model_and_data_have_to_agree(local: Local, change: dict[str, Any], message: str) -> None:
    """The workload is rejected before anything starts."""
    with pytest.raises(failures.InvalidConfiguration) as caught:
        FMSHFTuning.plugin().check(
            (plan := make_plan("fms_hf_tuning", "finetune_full_benchmark", {**SMALL, **change})).workload,
            plan.source.architecture,
            environment="managed",
        )
    assert str(caught.value) == message
