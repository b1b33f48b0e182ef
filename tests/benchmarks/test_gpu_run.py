"""``benchmarks/gpu.py`` itself: time, packages, devices, runs that are cut off, results."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import MadeUp, Nvml, gpu

from gpu_checks import packages, report, schedule  # isort: skip

pytestmark = pytest.mark.timeout(60)

# -- time --------------------------------------------------------------------------------------------------------


def test_all_parts_fit_into_eight_minutes() -> None:
    """What parts usually take is within the limit, and each may begin with its usual time."""
    assert sum(budget.usual_s for budget in schedule.BUDGETS) <= schedule.LIMIT_S
    assert all(budget.least_s <= budget.usual_s for budget in schedule.BUDGETS)
    assert [budget.name for budget in schedule.BUDGETS] == list(report.PARTS)


def test_a_part_gets_what_later_parts_do_not_need() -> None:
    """Its usual time at least, the spare time of those before it, at most twice its usual time, never more than is left."""
    every = [budget.name for budget in schedule.BUDGETS]
    later_s = sum(budget.usual_s for budget in schedule.BUDGETS[2:])
    assert schedule.allowance_s("memory", every, 480.0) == 480.0 - later_s
    assert schedule.allowance_s("memory", every, 1000.0) == 190.0
    assert schedule.allowance_s("memory", every, 100.0 + later_s) == 100.0
    assert schedule.allowance_s("memory", every, later_s) == 95.0
    assert schedule.allowance_s("memory", every, 60.0) == 60.0
    assert schedule.allowance_s("memory", every, 29.0) == 0.0
    assert schedule.allowance_s("memory", ["memory"], 480.0) == 480.0
    # on a slow machine, with twice the limit, everything may take twice as long
    assert schedule.allowance_s("memory", every, 960.0, 960.0) == 2 * schedule.allowance_s("memory", every, 480.0)


def test_what_hangs_is_ended(bench: MadeUp, proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm ends a part; what it had found is kept and judged, and the next part runs."""
    monkeypatch.setattr(schedule, "GRACE_S", -29.9)
    monkeypatch.setattr(schedule, "BUDGETS", (schedule.Budget("memory", 30, 1), schedule.Budget("rates", 480, 1)))
    bench.change = lambda values: time.sleep(60) if len(bench.asked) == 3 else None
    results = proof(bench, "memory", "rates", limit=480.0, expected=0)
    memory, rates = results["parts"]["memory"], results["parts"]["rates"]
    assert (memory["state"], memory["reason"], rates["state"]) == ("cut off", "it took longer than its 30 s", "ran")
    # the predictions of those that were measured are there
    assert [row["predicted"] for row in memory["found"]["rows"]] == [bench.predicted] * 2
    assert (memory["checks"][1]["state"], memory["checks"][1]["text"]) == (
        "not measured",
        "2 ran; no time was left for 10",
    )
    assert memory["checks"][0] == {
        "what": "the part ends",
        "state": "not measured",
        "text": "it took longer than its 30 s",
    }


def test_what_does_not_fit_is_skipped(bench: MadeUp, proof: Callable[..., Any]) -> None:
    """With 20 s for all there is no time for 60 s of the fixed protocol; the command that makes up for it is named."""
    results = proof(bench, "adaptive", "energy", limit=20.5)
    adaptive = results["parts"]["adaptive"]
    assert adaptive["state"] == "skipped"
    assert adaptive["reason"].endswith("s were left: use --part adaptive")
    assert results["parts"]["energy"]["state"] == "ran"
    assert results["complete"]


def test_a_run_that_is_terminated_keeps_what_it_has(
    bench: MadeUp, proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second part: the first is in the files, the second as far as it came, and all is ended."""
    before = signal.signal(signal.SIGTERM, gpu._end)
    closed: list[bool] = []
    monkeypatch.setattr(bench, "close", lambda: closed.append(True))

    def change(values: dict[str, Any]) -> None:
        if len(bench.asked) == 5:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)

    bench.change = change
    try:
        results = proof(bench, "rates", "reuse", expected=130)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert closed == [True]
    assert (results["complete"], results["parts"]["reuse"]["state"]) == (False, "cut off")
    assert len(results["parts"]["reuse"]["found"]["rows"]) == 1
    assert results["parts"]["rates"]["state"] == "ran"


def test_a_signal_before_the_first_part_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a signal arrives, one line says that the run was ended."""

    def end(given: Any) -> int:
        raise gpu.Ended

    monkeypatch.setattr(gpu, "measure", end)
    assert gpu.main([]) == gpu.ENDED
    assert capsys.readouterr().err == "The run was ended.\n"


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["0", "-5", "nan", "inf"])
def test_a_limit_is_a_number_of_seconds(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Other limits are refused: no part would run, and results could not be written."""
    with pytest.raises(SystemExit) as refused:
        gpu.main([f"--limit={limit}"])
    assert refused.value.code == 2
    assert f"{limit} is not a number of seconds above 0" in capsys.readouterr().err


def test_an_output_is_a_json_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The report would replace the numbers in a file that is called .md."""
    with pytest.raises(SystemExit):
        gpu.main(["--output", "results.md"])
    assert "results.md does not end in .json" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not after the first part."""
    (tmp_path / "file").write_text("")
    assert gpu.main(["--device", "cpu", "--output", str(tmp_path / "file" / "gpu.json")]) == 2
    assert capsys.readouterr().err.endswith("Name another file with --output.\n")


@pytest.mark.parametrize("content", [None, "# Results", "[]", '{"benchmark": "soak"}'])
def test_what_cannot_be_shown_is_said(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing, is not JSON or holds other results gives one message."""
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert gpu.main(["--show", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{path} ")
    assert "--show needs" in captured.err
    assert not captured.out


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the training stack were installed."""
    monkeypatch.setattr(packages, "missing", lambda device: [])
    monkeypatch.setattr(packages, "unfit", lambda pyproject: [])


# -- what is there -----------------------------------------------------------------------------------------------


def test_packages_that_are_missing_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing starts without the training stack; optional packages are left out with their purpose."""
    there = {"torch": "2.9", "transformers": "5.0", "trl": "1.2", "liger-kernel": "0.6"}
    assert packages.missing("gpu", there.get)[:3] == ["peft", "accelerate", "datasets"]
    assert "nvidia-ml-py" not in packages.missing("cpu", there.get)
    assert set(packages.left_out(there.get)) == {"bitsandbytes", "flash-attn", "kernels"}
    monkeypatch.setattr(packages, "missing", lambda device: ["trl", "peft"])
    assert gpu.main([]) == 2
    assert "pip install trl peft" in capsys.readouterr().err


def test_versions_that_do_not_fit_are_named() -> None:
    """What the plugin states for its training stack holds here too."""
    installed = {"trl": "0.19.1", "transformers": "5.1", "torch": "2.9.0+cu128"}
    assert packages.unfit(gpu.SOURCE.parent / "pyproject.toml", installed.get) == ["trl 0.19.1 is not <2,>=1.8"]


@pytest.mark.usefixtures("installed")
def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the run says so at once and names the way to try it on a CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main([]) == 2
    assert "--device cpu --quick" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_mig_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a GPU cannot be measured; the message says what to do."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("a100-mig"))  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.main([]) == 2
    assert "switch MIG off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mask", "uuid"), [(None, "GPU-1c8e52d4"), ("2,0", "GPU-5e1f0a77"), ("GPU-e0b4", "GPU-e0b4c6f2")]
)
def test_the_first_visible_gpu_is_measured(
    mask: str | None, uuid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several GPUs that which CUDA numbers first; the file is named after it, and its UUID is nowhere."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    given = gpu.options(["--part", "rates"])
    made = gpu.prepare(given, tmp_path)
    assert not isinstance(made, str)
    bench, results = made
    assert bench.device is not None
    assert bench.device.uuid.startswith(uuid)
    # not the file of a whole run, which a single part must not replace
    assert given.output.name == "gpu-nvidia-h100-80gb-hbm3-rates.json"
    assert (bench.choice.dtype, round(bench.choice.gib, 1)) == ("bfloat16", 79.6)
    assert results["hardware"]["nvml"]["sm_clock_mhz"] == 1980
    assert uuid not in json.dumps(results)


# -- results -----------------------------------------------------------------------------------------------------


def test_results_are_read_back_and_shown(
    bench: MadeUp, proof: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is the same from the file: circumstances, a line for each target, a table for each part."""
    results = proof(bench, "memory", "edge", "rates", "reuse")
    capsys.readouterr()
    assert gpu.main(["--show", str(tmp_path / "results" / "gpu-made-up.json")]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "results" / "gpu-made-up.md").read_text()
    assert "NVIDIA H100 80GB HBM3, 79.6 GiB, power limit 700.0 W, driver 570.86.15" in shown
    assert "Not installed, so left out: flash-attn (attn_implementation flash_attention_2)." in shown
    for name in ("memory", "edge", "rates", "reuse"):
        for one in report.judge(name, results["parts"][name]):
            assert (
                f"| {name} | {one.state if one.state != 'missed' else '**missed**'} | {one.what} | {one.text} |"
                in shown
            )
    assert sum(report.total(results).values()) == sum(len(part["checks"]) for part in results["parts"].values())


def test_a_device_part_that_takes_too_long_ends_no_other_part(
    bench: MadeUp, proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk says nothing about torch and the GPU."""

    def run(bench: MadeUp, found: dict[str, Any]) -> None:
        raise schedule.OutOfTime("it took longer than its 40 s")

    monkeypatch.setattr(report.PARTS["device"], "run", run)
    parts = proof(bench, "device", "rates", expected=0)["parts"]
    assert (parts["device"]["state"], parts["rates"]["state"]) == ("cut off", "ran")


def test_a_failed_part_is_a_missed_target(
    bench: MadeUp, proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a benchmark ends with sys.exit; the reason is kept and other parts go on."""

    def leave(*given: Any) -> None:
        sys.exit("in_turns.py ended:\nCUDA error")

    monkeypatch.setattr(report.PARTS["fidelity"].fidelity, "compare", leave)
    results = proof(bench, "fidelity", "rates", expected=1)
    fidelity = results["parts"]["fidelity"]
    assert (fidelity["state"], fidelity["checks"][0]["state"]) == ("failed", "missed")
    assert "CUDA error" in fidelity["reason"]
    assert results["parts"]["rates"]["state"] == "ran"
    assert "**missed** | the part ends | SystemExit: in_turns.py ended: CUDA error |" in report.markdown(results)
