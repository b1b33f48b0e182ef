"""The plan command: its table, its files, and what it answers before anything is traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.commands import plan
from ado_actuators.sfttrainer.core.metrics.roofline import Limit
from ado_actuators.sfttrainer.core.reporting import plan_page

GIB = 2**30
PARTS = {"parameters": 10 * GIB, "gradients": 5 * GIB, "optimizer": 4 * GIB, "activations": GIB, "temporaries": 0}


def row(gpu: str = "L40S", *, fits: bool = True, usd: float | None = None, **change: Any) -> plan.PlanRow:
    """Return a row of 20 GiB."""
    values = {"model_name": "tiny-llama-5m", "model_max_length": 64, "method": "lora", "gradient_checkpointing": True}
    values |= {"number_gpus": 1, "gpu_model": gpu, "batch_size": 12, "torch_dtype": "bfloat16", **change}
    return plan.PlanRow(values, fits, PARTS, 40 * GIB, 12 if fits else 0, Limit(0.5, "compute", 4096.0), usd)


def run(capsys: pytest.CaptureFixture[str], *words: str, prices: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the status of the command and what it says on standard error."""
    # both import ado and Ray, which the other tests do without
    from ado_actuators.sfttrainer.actuator import SFTTrainer
    from ado_actuators.sfttrainer.parameters import SFTTrainerParameters

    given = ["model_name=tiny-llama-5m", *words]
    status = plan.main(SFTTrainer.plugin(), SFTTrainerParameters, given, prices=list(prices), output=None, config=None)
    return status, capsys.readouterr().err


def test_the_cheapest_that_fits_has_a_star() -> None:
    """What does not fit shows what it needs and no speed; columns without values are left out."""
    lines = plan.table([row(usd=2.0), row("H100", usd=1.5), row("T4", fits=False)]).splitlines()
    assert [line[0] for line in lines[1:]] == [" ", "*", " "]
    assert lines[3].split() == ["T4", "1", "lora", "yes", "no", "20.0", "40.0"]
    assert "USD" not in plan.table([row()])


def test_without_prices_the_fewest_and_smallest_gpus_are_best() -> None:
    """Nothing is best where nothing fits."""
    few, many = row("H100"), row("L40S", number_gpus=4)
    assert plan.best([many, few]) is few
    assert plan.best([row(fits=False)]) is None


def test_the_star_is_explained() -> None:
    """By price where there is one; not at all where nothing fits."""
    assert plan.legend([row(usd=2.0)]) == ["* the cheapest that fits"]
    assert plan.legend([row()])[0].startswith("* of what fits, the fewest GPUs with the least memory; --price")
    assert plan.legend([row(fits=False)]) == []


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "prices", "message"),
    [
        (("gpu_model=H100,Nope",), (), "gpu_model 'Nope' is not known; set gpu_memory_gib, or use: GB200"),
        (("gpu_model=H100,L4", "gpu_memory_gib=40"), (), "is that of one GPU, and gpu_model names 2"),
        (
            ("gpu_memory_gib=.inf",),
            (),
            "gpu_memory_gib 'inf': expected the GiB of one GPU, more than 0.5, at most 4096.",
        ),
        (("gpu_memory_gib=much",), (), "gpu_memory_gib 'much': expected the GiB of one GPU"),
        ((), (), "plan needs gpu_model=NAME"),
        (("gpu_model=H100",), ("L4=1",), "names no GPU of gpu_model"),
        (("gpu_model=H100",), ("H100",), "--price 'H100' has no price; expected NAME=USD, such as H100=2.5."),
        (("gpu_model=H100",), ("H100=x",), "'x' is not a number"),
        (("gpu_model=H100",), ("H100=-1",), "expected USD above 0"),
    ],
)
def test_bad_use_is_answered_before_anything_is_traced(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], prices: tuple[str, ...], message: str
) -> None:
    """One message, status 2."""
    status, said = run(capsys, *words, prices=prices)
    assert status == 2
    assert message in said
    assert "…" not in said, "lists are complete"
    assert "tracing" not in said


@pytest.mark.ray
def test_an_interruption_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status of the signal."""

    def interrupt(*unused: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_rows", interrupt)
    assert run(capsys, "gpu_model=H100") == (130, "Interrupted. Nothing of this plan is kept.\n")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [(method, checkpointing) for method in plan.METHODS for checkpointing in (False, True)]),
        ({"method": "lora"}, [("lora", False), ("lora", True)]),
        ({"method": "lora", "gradient_checkpointing": True}, [("lora", True)]),
        ({"gradient_checkpointing": False}, [(method, False) for method in plan.METHODS]),
    ],
)
def test_a_method_that_is_given_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: list[tuple[str, bool]]
) -> None:
    """And so is checkpointing."""

    def estimated(local: Any, actuator: str, asked: dict[str, Any], devices: Any, cost: Any) -> list[plan.PlanRow]:
        return [row("H100", method=asked["method"], gradient_checkpointing=asked["gradient_checkpointing"])]

    monkeypatch.setattr(plan, "_estimated", estimated)
    local: Any = None
    rows, _ = plan._rows(local, "sfttrainer", values, {"H100": GIB}, {})
    assert [(one.values["method"], one.values["gradient_checkpointing"]) for one in rows] == expected


def test_any_other_card_is_described_by_its_memory() -> None:
    """Its name may be given, too; the driver and CUDA's context take their part."""
    usable = int((0.988 * 40 - 0.85) * GIB)
    assert plan._devices(None, 40) == {"GPU": usable}
    assert plan._devices("Nope-40GB", "40") == {"Nope-40GB": usable}


def test_a_sentence_for_each_gpu_answers() -> None:
    """Before the table: which ways fit, on how many GPUs, with which batch."""
    rows = [row(), row(method="full", number_gpus=4, gradient_checkpointing=False), row("T4", fits=False)]
    assert plan.sentences(rows) == [
        "L40S: predicted to fit on one GPU: lora with checkpointing (batch <= 12); on 4 GPUs: full (batch <= 12).",
        "T4: nothing is predicted to fit.",
    ]


@pytest.mark.parametrize("impossible", [{"qlora"}, {"full", "lora", "qlora"}], ids=["one method", "all methods"])
def test_a_method_that_cannot_be_estimated_leaves_the_others(
    impossible: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example QLoRA without bitsandbytes: a note says why; the message of all is an error."""

    def estimated(local: Any, actuator: str, values: dict[str, Any], *unused: Any) -> list[plan.PlanRow]:
        if values["method"] in impossible:
            raise failures.InvalidConfiguration("It lacks a package.")
        return [row(method=values["method"])]

    monkeypatch.setattr(plan, "_estimated", estimated)
    asked: tuple[Any, ...] = (None, "sfttrainer", {"model_name": "m"}, {"L40S": GIB}, {})
    if impossible == set(plan.METHODS):
        with pytest.raises(failures.InvalidConfiguration, match="It lacks a package"):
            plan._rows(*asked)
        return
    rows, notes = plan._rows(*asked)
    assert {one.values["method"] for one in rows} == {"full", "lora"}
    assert notes == ["Not estimated: method qlora. It lacks a package."]


def test_a_space_names_no_default() -> None:
    """A value that is the default is an error of ado's."""
    values = row(gradient_checkpointing=False, torch_dtype="float32", optim="sgd").values
    candidate = plan_page.Candidate(values=values, cells=(), parts_gib={}, usable_gib=40.0, fits=True, best=True)
    (space,) = plan_page.spaces("sfttrainer", [candidate]).values()
    (experiment,) = space["experiments"]
    found = {one["property"]["identifier"]: one["value"] for one in experiment["parameterization"]}
    assert found == {"gpu_model": "L40S", "optim": "sgd"}


def test_files_of_a_plan(tmp_path: Path) -> None:
    """A page with every row, a picture, and a space of each candidate that fits."""
    rows = [row(), row("T4", fits=False)]
    plan._write(tmp_path, "sfttrainer", dict(rows[0].values), rows, ["A note."])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"plan.html", "memory.png", "operation.yaml", "space-l40s-1-lora-checkpointing.yaml"}
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<tr>") == 3
    assert "A note." in page
    space = yaml.safe_load((tmp_path / "space-l40s-1-lora-checkpointing.yaml").read_text())
    assert space["experiments"][0]["experimentIdentifier"] == "finetune_lora_benchmark"
    assert {one["identifier"]: one["propertyDomain"]["values"] for one in space["entitySpace"]}["batch_size"] == [1, 12]
