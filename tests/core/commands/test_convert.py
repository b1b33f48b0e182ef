"""Files of studies for IBM's actuator, converted: what is written, what stays, what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.commands import convert
from ado_actuators.sfttrainer.core.commands.arguments import BadUse, read_workload
from ado_actuators.sfttrainer.core.measurement.plan import make_plan
from ado_actuators.sfttrainer.core.measurement.plugin import Plugin
from ado_actuators.sfttrainer.core.workload import ibm

RECORDINGS = Path(__file__).parents[2] / "recordings" / "ibm"


def converted(tmp_path: Path, *files: Path, status: int = 1, **options: Any) -> list[Any]:
    """Convert files and return what was written."""
    output = tmp_path / "out"
    defaults = {"actuator": "fms_hf_tuning", "check": False, "weights": "random", "data": "", "adaptive": False}
    assert convert.main(list(files), output=output, **{**defaults, **options}) == status
    return [yaml.safe_load((output / file.name).read_text()) for file in files if not options.get("check")]


def written(tmp_path: Path, text: str, name: str = "study.yaml") -> Path:
    """Write a file of a study."""
    path = tmp_path / name
    path.write_text(text)
    return path


def parameterization(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return what an experiment of a space fixes."""
    return {item["property"]["identifier"]: item["value"] for item in experiment["parameterization"]}


POINT = """\
# one workload
entity:
  model_name: llama3.2-1b
  model_max_length: 512
  batch_size: 4
  number_gpus: 1
  flash_attn: false
  fast_moe: 0 # off
experiments:
- actuatorIdentifier: SFTTrainer
  experimentIdentifier: finetune_lora_benchmark-v1.0.0
  parameterization:
  - {property: {identifier: fms_hf_tuning_version}, value: 3.1.0}
"""


def test_comments_and_order_stay(tmp_path: Path) -> None:
    """Each comment of the local study is there, in order; its dimensions are unchanged to the letter."""
    source = RECORDINGS / "local-space.yaml"
    converted(tmp_path, source)
    before, after = source.read_text(), (tmp_path / "out" / source.name).read_text()
    comments = [text.partition("#")[2].strip() for text in before.splitlines() if "#" in text]
    found = [text.partition("#")[2].strip() for text in after.splitlines() if "#" in text]
    assert [text for text in found if text in comments] == comments
    assert after.endswith(before[before.index("entitySpace:") :])


def test_a_space_is_converted(tmp_path: Path) -> None:
    """Names and version; what equals our default is left out; IBM's defaults that differ are added at the end."""
    (space,) = converted(tmp_path, RECORDINGS / "local-space.yaml")
    (experiment,) = space["experiments"]
    assert experiment["actuatorIdentifier"] == "fms_hf_tuning"
    assert (experiment["experimentIdentifier"], experiment["experimentVersion"]) == ("finetune_full_benchmark", "1.0.0")
    assert list(parameterization(experiment).items()) == [
        ("fms_hf_tuning_version", "3.1.0"),
        ("stop_after_seconds", 30),
        ("gradient_accumulation_steps", 4),
        ("torch_dtype", "bfloat16"),
        ("gradient_checkpointing", True),
        ("target_ci_percent", 0),
        ("max_steps", 1000000),
    ]


def test_experiments_that_shared_a_parameterization_get_one_each(tmp_path: Path) -> None:
    """An anchor of the stability study stood for full fine-tuning and for LoRA, which have other defaults."""
    (space,) = converted(tmp_path, RECORDINGS / "stability-space.yaml")
    text = (tmp_path / "out" / "stability-space.yaml").read_text()
    assert "&" not in text
    full, fast, lora, _ = map(parameterization, space["experiments"])
    assert "r" not in full
    assert lora["r"] == 4
    assert (full.get("fast_kernels"), fast["fast_kernels"]) == (None, True)


def test_experiments_that_become_the_same_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL has none of the kernels in which two experiments differed; the dimension that it lacks goes too."""
    (space,) = converted(tmp_path, RECORDINGS / "stability-space.yaml", actuator="sfttrainer")
    assert [one["experimentIdentifier"] for one in space["experiments"]] == [
        "finetune_full_benchmark",
        "finetune_lora_benchmark",
    ]
    assert "fast_moe" not in [one["identifier"] for one in space["entitySpace"]]
    assert "differs  two experiments finetune_lora_benchmark are the same here" in capsys.readouterr().out


def test_a_point_is_converted(tmp_path: Path) -> None:
    """Its entity has our names; a study that stays the same has status 0."""
    source = written(tmp_path, POINT)
    (point,) = converted(tmp_path, source, status=0)
    assert point["entity"]["attn_implementation"] == "auto"
    assert "flash_attn" not in point["entity"]
    assert parameterization(point["experiments"][0])["target_modules"] == "q_proj,v_proj"
    text = (tmp_path / "out" / source.name).read_text()
    assert "# off" in text
    assert "\n  # defaults of IBM's actuator" in text


def test_a_configuration_gives_models_their_paths(tmp_path: Path) -> None:
    """model_map becomes model_name, and no parameter stays."""
    configuration = (
        "actuatorIdentifier: SFTTrainer\nparameters: {hf_home: /h, model_map: {llama3.2-1b: {Vanilla: /w}}}\n"
    )
    point, settings = converted(
        tmp_path, written(tmp_path, POINT), written(tmp_path, configuration, "ac.yaml"), status=0
    )
    assert point["entity"]["model_name"] == "/w"
    assert settings == {"actuatorIdentifier": "fms_hf_tuning", "parameters": {}}


def test_an_operation_gets_our_names(tmp_path: Path) -> None:
    """Its sampler, and the property that an optimizer looks at."""
    (walk,) = converted(tmp_path, RECORDINGS / "stability-operation.yaml", status=0)
    assert walk["operation"]["module"] == {"operatorName": "random_walk", "operationType": "explore"}
    assert walk["operation"]["parameters"]["singleMeasurement"] is False
    text = "operation:\n  module: {operatorName: ray_tune}\n  parameters: {tuneConfig: {metric: train_runtime}}\n"
    (tune,) = converted(tmp_path, written(tmp_path, text), status=0)
    assert tune["operation"]["parameters"]["tuneConfig"]["metric"] == "train_runtime_s"
    converted(tmp_path, written(tmp_path, text.replace("train_runtime", "cpu_memory_utilization")), status=1)


def test_values_keep_the_meaning_that_ado_reads(tmp_path: Path) -> None:
    """An unquoted no is False for ado, and the word no has to be quoted."""
    text = (RECORDINGS / "local-space.yaml").read_text()
    dimension = "  - identifier: accelerate_config_mixed_precision\n    propertyDomain: {values: [no, bf16, fp8]}\n"
    (space,) = converted(tmp_path, written(tmp_path, text + dimension))
    assert space["entitySpace"][-1] == {"identifier": "mixed_precision", "propertyDomain": {"values": ["no", "bf16"]}}


def test_check_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is the same, and the status is the same."""
    source = RECORDINGS / "local-space.yaml"
    converted(tmp_path, source, check=True)
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "differs  fms_hf_tuning_version 2.8.2 becomes" in printed
    assert printed.rstrip().endswith("The study differs in 1 point, marked above.")


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    """What is not for IBM's actuator is copied."""
    source = Path(__file__).parents[3] / "sfttrainer" / "examples" / "space.yaml"
    assert converted(tmp_path, source, status=0) == [yaml.safe_load(source.read_text())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not valid YAML at line"),
        ("a: 1", "is not a space, point, operation or actuator configuration"),
        (POINT.replace("lora_benchmark-v1.0.0", "lora-v9"), "experiment finetune_lora-v9 of SFTTrainer is unknown"),
        (POINT.replace("experimentIdentifier", "experiment"), "incomplete point"),
        (POINT.replace("property: {identifier", "prop: {identifier"), "incomplete point"),
    ],
)
def test_what_cannot_be_read_is_bad_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    """Status 2, one line that says why, and nothing is written."""
    converted(tmp_path, written(tmp_path, text), status=2, check=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert expected in shown.err
    assert shown.err.count("\n") == 1


def test_the_source_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither is one converted file by another of the same name."""
    source = written(tmp_path, POINT)
    (tmp_path / "other").mkdir()
    same = written(tmp_path / "other", POINT)
    options: dict[str, Any] = {
        "actuator": "sfttrainer",
        "check": False,
        "weights": "random",
        "data": "",
        "adaptive": False,
    }
    assert convert.main([source], output=tmp_path, **options) == 2
    assert convert.main([source, same], output=tmp_path / "out", **options) == 2
    assert source.read_text() == POINT
    assert "would be overwritten" in capsys.readouterr().err


def test_a_converted_point_can_be_run(tmp_path: Path) -> None:
    """The run command reads what the experiment fixes, too."""
    source = written(tmp_path, POINT)
    converted(tmp_path, source, status=0)
    plugin = Plugin("fms_hf_tuning", ("finetune_lora_benchmark",))
    values, experiment = read_workload([str(tmp_path / "out" / source.name)], None, plugin)
    assert (experiment, values["model_name"], values["r"]) == ("finetune_lora_benchmark", "llama3.2-1b", 4)
    make_plan("fms_hf_tuning", experiment, values)


def test_a_parameterization_that_ado_would_not_read_is_bad_use(tmp_path: Path) -> None:
    """A mapping of properties, as people write it."""
    text = POINT.replace("SFTTrainer", "sfttrainer").replace(
        "  - {property: {identifier: fms_hf_tuning_version}", "  - {r"
    )
    with pytest.raises(BadUse, match="parameterization needs property"):
        read_workload([str(written(tmp_path, text))], None, Plugin("sfttrainer", ()))


@pytest.mark.parametrize("changed", [{}, {"SFTTrainer": "sfttrainer"}])
def test_what_is_not_converted_leads_to_the_command(tmp_path: Path, changed: dict[str, str]) -> None:
    """The actuator's name in a point, and the experiment's."""
    text = POINT
    for old, new in changed.items():
        text = text.replace(old, new)
    with pytest.raises(BadUse, match="ado-fms-hf-tuning convert FILE"):
        read_workload([str(written(tmp_path, text))], None, Plugin("sfttrainer", ("finetune_lora_benchmark",)))


def test_a_property_of_ibm_leads_to_the_command() -> None:
    """A measurement that was asked for one says what translates it, within the length of a message."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "batch_size": 1, "number_gpus": 0, "flash_attn": 0}
    with pytest.raises(failures.InvalidConfiguration, match="ado-fms-hf-tuning convert FILE") as caught:
        make_plan("fms_hf_tuning", "finetune_prompt_tuning_benchmark", values)
    assert len(str(caught.value)) <= 200


HEAD = """\
experiments:
- actuatorIdentifier: SFTTrainer
  experimentIdentifier: finetune_full_benchmark-v1.0.0
  parameterization: [{property: {identifier: fms_hf_tuning_version}, value: 3.1.0}]
entitySpace:
- {identifier: model_name, propertyDomain: {values: [llama3.2-1b]}}
- {identifier: number_gpus, propertyDomain: {values: [1]}}
- {identifier: model_max_length, propertyDomain: {values: [512]}}
"""


def dimensions(space: dict[str, Any]) -> dict[str, Any]:
    """Return the dimensions of a space, beside those of ``HEAD``, with their values."""
    return {one["identifier"]: one.get("propertyDomain", {}).get("values") for one in space["entitySpace"][3:]}


@pytest.mark.parametrize(
    ("dimension", "here"),
    [
        (
            'fast_kernels # 1\n  propertyDomain:\n    values: # 2\n    - ["True", "True", "True"] # 3\n    - [no, no, no] # 4\n',
            {"fast_kernels": [True, False]},
        ),
        (
            "flash_attn\n  propertyDomain:\n    values:\n    # 1\n    - True # 2\n    - 'True' # 3\n    # 4\n",
            {"attn_implementation": ["flash_attention_2"]},
        ),
        ("remove_unused_columns # 1\n  propertyDomain: # 2\n    values: [True] # 3\n# 4\n", {}),
    ],
)
def test_comments_of_values_that_change_stay(tmp_path: Path, dimension: str, here: dict[str, Any]) -> None:
    """Those beside a value, those before the next dimension, and those of a dimension that goes."""
    text = f"{HEAD}- identifier: {dimension}# 5\n- identifier: batch_size\n  propertyDomain: {{values: [1]}}\n"
    (space,) = converted(tmp_path, written(tmp_path, text), status=0)
    assert dimensions(space) == {**here, "batch_size": [1]}
    made = (tmp_path / "out" / "study.yaml").read_text()
    marks = [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]
    assert [line.partition("#")[2].strip() for line in made.splitlines() if "# " in line][-len(marks) :] == marks


def test_comments_of_a_point_stay(tmp_path: Path) -> None:
    """Beside a property that is renamed, and of one that goes."""
    text = POINT.replace("flash_attn: false", "flash_attn: false # 1\n  remove_unused_columns: False # 2\n  # 3")
    converted(tmp_path, written(tmp_path, text), status=0)
    made = (tmp_path / "out" / "study.yaml").read_text()
    assert "attn_implementation: auto # 1\n  # 2\n  # 3\n  fast_moe: 0 # off" in made


def test_lines_end_as_in_the_source(tmp_path: Path) -> None:
    """A file written on Windows keeps its line ends."""
    source = tmp_path / "study.yaml"
    source.write_bytes(POINT.replace("\n", "\r\n").encode())
    converted(tmp_path, source, status=0)
    content = (tmp_path / "out" / "study.yaml").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") > 10


@pytest.mark.parametrize(("gpus", "expected"), [(0, None), (1, "flash_attention_2")])
def test_flash_attention_by_default_needs_a_gpu(tmp_path: Path, gpus: int, expected: str | None) -> None:
    """IBM's default of flash_attn is True, which no measurement on CPUs can use."""
    text = POINT.replace("  flash_attn: false\n", "").replace("number_gpus: 1", f"number_gpus: {gpus}")
    (point,) = converted(tmp_path, written(tmp_path, text), status=0)
    (experiment,) = point["experiments"]
    assert parameterization(experiment).get("attn_implementation") == expected


def test_bf16_and_the_mode_of_accelerate_are_one_dimension(tmp_path: Path) -> None:
    """Both are mixed_precision; bf16 counts where it is true."""
    text = (
        f"{HEAD}- {{identifier: bf16, propertyDomain: {{values: [False, True]}}}}\n"
        "- {identifier: accelerate_config_mixed_precision, propertyDomain: {values: [no, fp16]}}\n"
    )
    (space,) = converted(tmp_path, written(tmp_path, text), status=0)
    assert dimensions(space) == {"mixed_precision": ["no", "fp16", "bf16"]}
    second = f"{{property: {{identifier: {ibm.MIXED_PRECISION}}}, value: fp16}}"
    fixed = HEAD.replace("value: 3.1.0}", f"value: 3.1.0}}, {second}")
    one = "- {identifier: bf16, propertyDomain: {values: [False, True]}}\n"
    (space,) = converted(tmp_path, written(tmp_path, fixed + one), status=0)
    assert dimensions(space) == {"mixed_precision": ["fp16", "bf16"]}


def test_a_dimension_without_values_stays(tmp_path: Path) -> None:
    """It takes the values of the experiment, which are not IBM's."""
    (space,) = converted(tmp_path, written(tmp_path, f"{HEAD}- identifier: batch_size\n"), status=1)
    assert dimensions(space) == {"batch_size": None}


def test_an_end_with_one_value_is_fixed(tmp_path: Path) -> None:
    """In a dimension as in a parameterization; with several values it has no counterpart."""
    text = f"{HEAD}- {{identifier: stop_after_seconds, propertyDomain: {{values: [30]}}}}\n"
    (space,) = converted(tmp_path, written(tmp_path, text), status=0)
    assert dimensions(space) == {}
    assert parameterization(space["experiments"][0])["stop_after_seconds"] == 30
    converted(tmp_path, written(tmp_path, text.replace("[30]", "[30, 60]")), status=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("actuatorIdentifier: SFTTrainer\nparameters: [1]\n", "parameters is [1]; expected a mapping"),
        ("actuatorIdentifier: SFTTrainer\nparameters: {model_map: text}\n", "model_map is 'text'; expected a mapping"),
        ("actuatorIdentifier: SFTTrainer\nparameters: {model_map: {a: null}}\n", "model_map gives a the path None"),
        (f"{POINT}---\n{POINT}", "more than one YAML document: another begins at line 14."),
        (POINT.replace("fast_moe: 0", "fast_moe: few"), "fast_moe is 'few'; expected a number."),
        (POINT.replace("fast_moe: 0", "max_steps: few"), "max_steps is 'few'; expected a number."),
        (POINT.replace("number_gpus: 1", "number_gpus: one"), "number_gpus is 'one'; expected a number."),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    """One line with the file, the name, the value and what was expected."""
    source = written(tmp_path, text)
    converted(tmp_path, source, status=2, check=True)
    shown = capsys.readouterr().err
    assert shown.startswith(f"{source}: {expected}")
    assert shown.count("\n") == 1


def test_a_directory_that_is_a_file_is_bad_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what to do."""
    (tmp_path / "out").write_text("")
    options: dict[str, Any] = {"actuator": "sfttrainer", "check": False, "weights": "random", "data": ""}
    assert convert.main([written(tmp_path, POINT)], output=tmp_path / "out", adaptive=False, **options) == 2
    assert "out cannot be written (File exists): name another directory with -o DIR." in capsys.readouterr().err
