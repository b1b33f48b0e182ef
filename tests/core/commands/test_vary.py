"""`run --vary`: several values of one property, measured and compared."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.__main__ import main
from ado_actuators.sfttrainer.core.commands import vary
from ado_actuators.sfttrainer.core.host import preflight
from ado_actuators.sfttrainer.core.reporting.rows import Row

METHODS = {"full": "finetune_full_benchmark", "lora": "finetune_lora_benchmark"}


class Machine:
    """Measures without training: ``rates`` by value; a value without a rate runs out of memory."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates
        self.asked: list[str] = []
        self.busy = False

    def __call__(self, word: str) -> Row:
        """Return the row of a value."""
        name, _, value = word.partition("=")
        self.asked.append(value)
        workload: dict[str, Any] = {"model_name": "m", "model_max_length": 8, "batch_size": 1, "number_gpus": 1}
        experiment = METHODS.get(value, METHODS["full"])
        if name != "method":
            workload[name] = int(value)
        if value not in self.rates:
            failed: dict[str, Any] = {"is_valid": 0, "failure": "gpu_oom"}
            return Row("run", "sfttrainer", experiment, workload, failed, "The workload does not fit.")
        outputs: dict[str, Any] = {"is_valid": 1, "dataset_tokens_per_second": self.rates[value], "steady": 1}
        notes: Any = {"notes": ["The machine was busy."]} if self.busy else {}
        return Row("run", "sfttrainer", experiment, workload, {**outputs, "throughput_ci95_percent": 2.0}, "", notes)


def test_two_methods_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, then what is faster, by how much and how sure."""
    machine = Machine({"full": 100.0, "lora": 150.0})
    assert vary.main("method", ["full", "lora"], 1, machine, as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.err == "full: 100 tokens/s ± 2 %, steady\nlora: 150 tokens/s ± 2 %, steady\n"
    assert printed.out.startswith("Fastest steady workload: lora, with 150 tokens/s ± 2 %.\n")
    assert "lora is faster than full: 1.5 times its rate, 95 % interval 1.46 to 1.54.\n" in printed.out
    assert " ".join(printed.out.split()).count("workload reference other ratio") == 1
    (line,) = [line for line in printed.out.splitlines() if line.startswith("+ ")]
    line = " ".join(line.split())
    assert "lora against full 100.0 150.0 1.500 1.458 to 1.543 faster by 50.0 %." in line
    assert printed.out.endswith("\n1 workload compared: 1 faster.\n")


def test_notes_follow_their_value(capsys: pytest.CaptureFixture[str]) -> None:
    """They say why a rate was not steady."""
    machine = Machine({"full": 100.0})
    machine.busy = True
    assert vary.main("method", ["full", "lora"], 1, machine, as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.err == (
        "full: 100 tokens/s ± 2 %, steady\n  The machine was busy.\nlora: The workload does not fit.\n"
    )
    assert "  full runs; lora cannot run (gpu_oom): The workload does not fit." in printed.out
    assert printed.out.endswith("\n1 workload compared: 1 of which one does not run.\n")


@pytest.mark.parametrize(
    ("rates", "asked", "end"),
    [
        ({"2": 10.0, "4": 19.0, "8": 30.0}, ["2", "4", "8", "16"], "since batch 16 did not run."),
        ({"2": 10.0, "4": 19.0, "8": 18.0}, ["2", "4", "8"], "since batch 8 was not 3 % faster than batch 4."),
        (
            {"2": 10.0, "4": 19.0, "8": 19.2, "16": 40.0},
            ["2", "4", "8"],
            (
                "since batch 8 was not 3 % faster than batch 4; their intervals do not exclude it. "
                "--vary batch_size=4,8,... measures given values."
            ),
        ),
        ({}, ["2"], "since batch 2 did not run."),
    ],
    ids=["until it does not fit", "until it is slower", "until it is no faster", "not even the first fits"],
)
def test_a_batch_is_doubled_as_long_as_that_pays(
    capsys: pytest.CaptureFixture[str], rates: dict[str, float], asked: list[str], end: str
) -> None:
    """From the first value on; the fastest is named, and why larger ones were not measured."""
    machine = Machine(rates)
    assert vary.main("batch_size", [], 2, machine, as_json=False) == (0 if rates else 1)
    assert machine.asked == asked
    printed = capsys.readouterr()
    assert ("The workload does not fit." in printed.err) == (asked[-1] not in rates)
    assert printed.out.startswith("Fastest steady workload: batch " if rates else "Larger values were not measured, ")
    assert f"Larger values were not measured, {end}\n" in printed.out


def test_json_has_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that do not fit."""
    assert vary.main("batch_size", ["1", "2"], 1, Machine({"1": 5.0}), as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["workload"]["batch_size"], one["message"]) for one in found] == [
        (1, ""),
        (2, "The workload does not fit."),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("colour", "--vary colour is not a property of a workload; use method, batch_size or another one."),
        ("packing", "--vary packing needs values, such as --vary packing=V1,V2; batch_size and "),
        ("packing=true", "--vary packing=true has fewer than two values; expected packing=V1,V2."),
        ("batch_size=2,2,", "has fewer than two values"),
        ("batchsize=1,2", "--vary batchsize is not a property of a workload; use batch_size."),
        ("batch_size=1,two", "--vary batch_size: nothing was measured. batch_size 'two' is impossible"),
        ("method=full,nosuch", "--vary method: nothing was measured. method 'nosuch' does not exist; use full or "),
        ("model_name=tiny-llama-5m,nosuch", "--vary model_name: nothing was measured. Model 'nosuch' is unknown; "),
        (
            "dataset_id=synthetic-fixed,nosuch.jsonl",
            "nothing was measured. Data set 'nosuch.jsonl' does not exist; use ",
        ),
        ("actuator=sfttrainer,nosuch", "--vary actuator: 'nosuch' does not exist; use fms_hf_tuning or sfttrainer."),
        ("actuator=sfttrainer", "--vary actuator=sfttrainer has fewer than two values"),
    ],
)
def test_bad_use(
    given: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2 and one message; nothing is started."""
    # the training stack need not be installed for this test
    monkeypatch.setattr(preflight, "lacking", lambda *unused: [])
    words = ["model_name=tiny-llama-5m", "model_max_length=8", "batch_size=1", "number_gpus=0"]
    assert main(["run", *words, "--vary", given]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("signalled", [(), (signal.SIGTERM,)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_keeps_what_was_measured(
    capsys: pytest.CaptureFixture[str], signalled: tuple[int, ...]
) -> None:
    """It is compared; the exit status is that of the signal. Before the first value there is nothing to keep."""
    machine = Machine({"1": 5.0, "2": 9.0})

    def measure(word: str) -> Row:
        if word == "batch_size=4":
            raise KeyboardInterrupt(*signalled)
        return machine(word)

    assert (
        vary.main("batch_size", ["1", "2", "4"], 1, measure, as_json=False) == 128 + (signalled or (signal.SIGINT,))[0]
    )
    printed = capsys.readouterr()
    assert printed.err.endswith("Interrupted. What was measured before is compared.\n")
    assert "batch 2 against batch 1" in printed.out
    with pytest.raises(KeyboardInterrupt):
        vary.main("batch_size", ["4", "1"], 1, measure, as_json=False)


def test_the_only_one_that_ran_is_named_by_what_was_varied(capsys: pytest.CaptureFixture[str]) -> None:
    """Its model and length are those of all the others, too."""
    assert vary.main("batch_size", ["1", "2"], 1, Machine({"2": 9.0}), as_json=False) == 0
    assert capsys.readouterr().out.startswith("Fastest steady workload: batch 2, with 9 tokens/s ± 2 %.\n")


@pytest.mark.parametrize("named", ["", "sfttrainer", "fms_hf_tuning"], ids=["words", "a point", "a point of the other"])
def test_both_actuators_are_compared(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures with its own copy of the core, and its trainers end before the other's start; one point file is enough for both."""
    order: list[str] = []

    def add(name: str, rate: float) -> None:
        core = f"ado_actuators.{name}.core"
        local = importlib.import_module(f"{core}.host.local").Local
        verdict = importlib.import_module(f"{core}.measurement.verdict").Verdict
        outputs = {"is_valid": 1, "dataset_tokens_per_second": rate, "steady": 1, "throughput_ci95_percent": 1.0}

        def measure(self: Any, plan: Any) -> Any:
            order.append(f"{plan.actuator} {plan.workload.batch_size}")
            return verdict(outputs, "", {})

        monkeypatch.setattr(local, "measure", measure)
        monkeypatch.setattr(local, "_end", lambda self: order.append(f"{name} ends"))
        monkeypatch.setattr(importlib.import_module(f"{core}.host.preflight"), "check", lambda *unused: None)

    add("sfttrainer", 100.0)
    add("fms_hf_tuning", 80.0)
    words = ["model_name=tiny-llama-5m", "model_max_length=8", "batch_size=3", "number_gpus=0"]
    if named:
        words = [str(point(tmp_path, words, named, "finetune_lora_benchmark"))]
    assert main(["run", *words, "--vary", "actuator=sfttrainer,fms_hf_tuning"]) == 0
    assert order[:4] == ["sfttrainer 3", "sfttrainer ends", "fms_hf_tuning 3", "fms_hf_tuning ends"]
    printed = capsys.readouterr().out
    assert printed.startswith("Fastest steady workload: sfttrainer, with 100 tokens/s ± 1 %.\n")
    assert "fms_hf_tuning against sfttrainer" in printed


def point(directory: Path, words: list[str], actuator: str, experiment: str) -> Path:
    """Write a point file of ado with the properties of these words."""
    entity = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
    asked = [{"actuatorIdentifier": actuator, "experimentIdentifier": experiment}]
    path = directory / "point.yaml"
    path.write_text(yaml.safe_dump({"entity": entity, "experiments": asked}))
    return path


def test_a_point_of_an_experiment_that_one_actuator_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the actuator; without --vary the file is for its own actuator only."""
    words = ["model_name=tiny-llama-5m", "model_max_length=8", "batch_size=3", "number_gpus=0"]
    file = str(point(tmp_path, words, "fms_hf_tuning", "finetune_gptq_lora_benchmark"))
    assert main(["run", file, "--vary", "actuator=sfttrainer,fms_hf_tuning"]) == 2
    expected = "Experiment 'finetune_gptq_lora_benchmark' does not exist in sfttrainer. Use "
    assert capsys.readouterr().err.startswith(expected)
    assert main(["run", file, "--vary", "batch_size=1,2"]) == 2
    assert "is for the actuator 'fms_hf_tuning'; expected sfttrainer." in capsys.readouterr().err


def test_the_other_actuator_checks_the_workload_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured; its message is shown as it is."""
    words = [
        "model_name=tiny-llama-5m",
        "model_max_length=8",
        "batch_size=3",
        "number_gpus=0",
        "dataset_id=nosuch.jsonl",
    ]
    assert main(["run", *words, "--vary", "actuator=fms_hf_tuning,sfttrainer"]) == 2
    assert capsys.readouterr().err.startswith(
        "--vary actuator: nothing was measured. Data set 'nosuch.jsonl' does not exist; "
    )


def test_a_parameter_of_the_actuator_is_no_property(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says where it belongs; the price has a word of its own."""
    words = ["model_name=tiny-llama-5m", "model_max_length=8", "batch_size=3", "number_gpus=0"]
    for word, end in (
        ("environment=managed", "add --config FILE."),
        ("price_usd_per_device_hour=2", ", or price=USD."),
    ):
        assert main(["run", *words, word]) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"{word.partition('=')[0]} is a parameter of the actuator configuration, not a property: "
        )
        assert said.endswith(f"{end}\n")


def test_values_keep_their_order_and_count_once() -> None:
    """Spaces around them do not matter."""
    assert vary.parse("method=lora, full,lora") == ("method", ["lora", "full"])
    assert vary.parse("batch_size") == ("batch_size", [])


@pytest.mark.parametrize("missing", ["ado_actuators.fms_hf_tuning", "ado_actuators.fms_hf_tuning.core"])
def test_an_actuator_that_is_not_installed_is_named(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another distribution, such as IBM's, has its import name. It is installed by path, since the index has IBM's."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        if name.startswith(missing):
            raise ModuleNotFoundError(name=missing)
        return real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    words = ["model_name=tiny-llama-5m", "model_max_length=16", "batch_size=1", "number_gpus=0"]
    assert main(["run", *words, "--vary", "actuator=sfttrainer,fms_hf_tuning"]) == 2
    expected = r"The actuator fms_hf_tuning is not installed here\. Run: pip install (\.|/\S+)/fms_hf_tuning\.?\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
