"""The model catalogue: every entry builds with the published number of parameters; names resolve as documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.workload import models

pytestmark = pytest.mark.torch

# every published model in IBM's actuator SFTTrainer, and ours for tests; models that it has under internal paths are not published
SPELLING = {
    *("granite-3-8b", "granite-3.3-8b", "granite-3.0-1b-a400m-base", "granite-3.1-2b", "granite-3.1-3b-a800m-instruct"),
    *("granite-3.1-8b-instruct", "granite-3b-code-base-128k", "granite-7b-base", "granite-8b-code-base"),
    *("granite-8b-code-base-128k", "granite-8b-code-instruct", "granite-34b-code-base", "granite-vision-3.2-2b"),
    *("granite-4.0-350m", "granite-4.0-1b", "granite-4.0-h-1b", "granite-4.0-micro", "granite-4.0-h-micro"),
    *("granite-4.0-h-tiny", "granite-4.0-h-small"),
    *("llama-7b", "llama-13b", "llama2-70b", "llama3-8b", "llama3-70b", "llama3.1-8b", "llama3.1-70b", "llama3.1-405b"),
    *("llama3.2-1b", "llama3.2-3b", "mistral-7b-v0.1", "mistral-123b-v2", "mixtral-8x7b-instruct-v0.1"),
    *("llava-v1.6-mistral-7b", "smollm2-135m", "tiny-llama-5m"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", models.names())
def test_parameters_are_the_published_ones(name: str) -> None:
    """Built on the meta device, each model has the published number of parameters within 0.5 %."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = models.resolve(name)
    assert source.architecture is not None
    assert source.published_parameters is not None
    config = transformers.AutoConfig.for_model(**source.architecture)
    sees = "vision_config" in source.architecture
    loader = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(
        source.published_parameters, rel=0.005
    )


def test_every_key_is_known_to_the_configuration() -> None:
    """No key of an entry is misspelled: each is an attribute the model's own configuration class has."""
    transformers = pytest.importorskip("transformers")
    unknown = {}
    for name in models.names():
        architecture = models.resolve(name).architecture
        assert architecture is not None
        for part in (architecture, architecture.get("text_config"), architecture.get("vision_config")):
            if part is None:
                continue
            blank = transformers.AutoConfig.for_model(part["model_type"])
            # rope_theta and rope_scaling live in rope_parameters since transformers 5
            known = {*blank.to_dict(), *blank.attribute_map, "rope_theta", "rope_scaling", "head_dim"}
            if missing := set(part) - known:
                unknown[name] = missing
    assert unknown == {}


def test_names_of_existing_studies_are_kept() -> None:
    """Spellings used in stored studies stay valid."""
    assert SPELLING - set(models.names()) == set()


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("granite-3.1-2b", 0.1), ("granite-3.1-8b-instruct", 0.1), ("granite-8b-code-base", 0.1), ("granite-3.3-8b", 0.0)],
)
def test_attention_dropout_is_the_published_one(name: str, dropout: float) -> None:
    """attention_dropout is the published value, since it decides which attention kernel runs."""
    transformers = pytest.importorskip("transformers")
    architecture = models.resolve(name).architecture
    assert architecture is not None
    assert transformers.AutoConfig.for_model(**architecture).attention_dropout == dropout


def test_a_catalogue_name_gives_architecture_and_hub_id() -> None:
    """A name resolves to published hyper-parameters and the source of the weights."""
    source = models.resolve("llama3.2-1b")
    assert source.architecture is not None
    assert (source.name, source.source, source.published_parameters) == (
        "llama3.2-1b",
        "meta-llama/Llama-3.2-1B",
        1235814400,
    )
    assert (source.architecture["model_type"], source.architecture["hidden_size"]) == ("llama", 2048)


def test_the_hub_id_of_a_catalogue_model_needs_no_download() -> None:
    """A hub id in the catalogue resolves to its architecture."""
    source = models.resolve("HuggingFaceTB/SmolLM2-135M")
    assert source.architecture == models.resolve("smollm2-135m").architecture
    assert source.source == "HuggingFaceTB/SmolLM2-135M"


def test_changing_a_resolved_architecture_leaves_the_catalogue_alone() -> None:
    """Callers may change the result without an effect on the catalogue."""
    architecture = models.resolve("llama3.1-8b").architecture
    assert architecture is not None
    architecture["rope_scaling"]["factor"] = 1.0
    again = models.resolve("llama3.1-70b").architecture
    assert again is not None
    assert again["rope_scaling"]["factor"] == 8.0


def test_any_hub_id_is_taken() -> None:
    """A hub id outside the catalogue is resolved in the training environment."""
    assert models.resolve("org-1/some.Model_x") == models.ModelSource("org-1/some.Model_x", None, "org-1/some.Model_x")


def test_a_directory_with_a_configuration_is_a_model(tmp_path: Path) -> None:
    """A directory is taken by its absolute path."""
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == models.ModelSource(str(tmp_path), None, str(tmp_path))


def test_a_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative directory becomes absolute, since the trainer runs in another directory."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert models.resolve("./mine").source == str(tmp_path / "mine")


def test_a_directory_without_configuration_is_none(tmp_path: Path) -> None:
    """The message names directory and missing file."""
    with pytest.raises(models.NotAModelDirectory) as raised:
        models.resolve(str(tmp_path))
    assert "config.json" in str(raised.value)
    assert tmp_path.name in str(raised.value)


@pytest.mark.parametrize("name", ["/no/such/directory", "./nothing-here", "~/nothing-here"])
def test_a_path_that_does_not_exist(name: str) -> None:
    """A name in the form of a path is not a hub id."""
    with pytest.raises(models.NotAModelDirectory) as raised:
        models.resolve(name)
    assert (
        str(raised.value)
        == f"Model directory {name!r} does not exist; check the path, or give a name of the catalogue."
    )


def test_a_file_is_no_model(tmp_path: Path) -> None:
    """A file in place of a directory is named as such."""
    (tmp_path / "weights").write_text("")
    with pytest.raises(models.NotAModelDirectory, match="is a file"):
        models.resolve(str(tmp_path / "weights"))


def test_a_misspelled_name_is_answered_with_close_ones() -> None:
    """The message lists similar names."""
    with pytest.raises(models.UnknownModel) as raised:
        models.resolve("smollm2-135")
    assert str(raised.value).startswith("Model 'smollm2-135' is unknown; use smollm2-135m")


@pytest.mark.parametrize("name", ["zzz", "a/b/c", "org/", "", "x" * 5000])
def test_nonsense_is_answered_with_what_is_accepted(name: str) -> None:
    """Any other name gives one short message."""
    with pytest.raises((models.UnknownModel, models.NotAModelDirectory)) as raised:
        models.resolve(name)
    assert len(str(raised.value)) <= 200
    assert "\n" not in str(raised.value)
