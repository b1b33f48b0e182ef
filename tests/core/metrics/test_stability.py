"""The stability experiment: fractions over five runs, each in a separate process."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ado_actuators.sfttrainer.core import failures
from ado_actuators.sfttrainer.core.metrics import stability

pytestmark = pytest.mark.torch

CORE = Path(__file__).parents[3] / "core"
# writes its process id to the given file, and fails as the line of its run says
STACK = '''
"""A stack whose runs end as a file says."""
import os
from pathlib import Path
PACKAGES = ()
def load():
    import accelerate, torch, transformers
def train(job, clock):
    import torch
    from .core.trainer.errors import BadInput
    script = Path(job.workload.dataset_text_field)
    seen = script.with_suffix(".pids")
    run = len(seen.read_text().split()) if seen.exists() else 0
    with seen.open("a") as file:
        file.write(f"{os.getpid()} ")
    what = script.read_text().split()[run]
    if what == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if what == "crash":
        os.abort()
    if what == "bad":
        raise BadInput("line 3 of the data is no JSON.")
    model = torch.nn.Linear(2, 2)
    model.config = type("C", (), {"to_dict": lambda self: {"model_type": "linear"}})()
    clock.begin(model)
    for _ in range(job.workload.max_steps):
        clock.end_step()
    clock.end()
    return {}
'''


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Make a plugin of that stack; return its copies of the modules that measure."""
    root = tmp_path_factory.mktemp("plugin")
    package = root / "ado_actuators" / "scripted"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A plugin for tests."""\n')
    (package / "stack.py").write_text(STACK)
    (package / "core").symlink_to(CORE)
    import ado_actuators

    ado_actuators.__path__ = [*ado_actuators.__path__, str(package.parent)]  # type: ignore[assignment]
    names = ("host.local", "measurement.plan", "measurement.plugin")
    yield types.SimpleNamespace(
        **{name.rpartition(".")[2]: importlib.import_module(f"ado_actuators.scripted.core.{name}") for name in names}
    )
    for name in [name for name in sys.modules if name.startswith("ado_actuators.scripted")]:
        del sys.modules[name]


def measure(core: Any, tmp_path: Path, runs: str) -> tuple[Any, list[str]]:
    """Run the experiment with a run for each word; return the verdict and the process of each run."""
    (verdict,), processes = measure_all(core, tmp_path, runs, [("finetune_full_stability", 1)])
    return verdict, processes


def measure_all(
    core: Any, tmp_path: Path, runs: str, asked: list[tuple[str, int]], *, skip_predicted_oom: bool = False
) -> tuple[list[Any], list[str]]:
    """Measure each experiment with its batch size, with a run for each word; return the verdicts and the process of each run."""
    script = tmp_path / "runs.txt"
    script.write_text(runs)
    settings = types.SimpleNamespace(
        environment="current",
        reuse_workers=True,
        run_timeout_s=60.0,
        max_retries=2,
        retry_backoff_s=0.0,
        price_usd_per_device_hour=None,
        trust_remote_code=False,
        skip_predicted_oom=skip_predicted_oom,
    )
    plugin = core.plugin.Plugin("scripted", tuple({experiment for experiment, _ in asked}))
    values = {"model_name": "tiny-llama-5m", "model_max_length": 8, "number_gpus": 0, "dataset_text_field": str(script)}
    with core.local.Local(plugin, settings, tmp_path / "state") as local:
        plans = [core.plan.make_plan("scripted", one, {**values, "batch_size": batch}) for one, batch in asked]
        verdicts = [local.measure(plan) for plan in plans]
    return verdicts, script.with_suffix(".pids").read_text().split()


@pytest.mark.timeout(300)
def test_two_of_five_runs_out_of_memory(core: Any, tmp_path: Path) -> None:
    """Fractions are those of the injected failures; a crash counts and is not retried; all runs have fresh processes."""
    verdict, processes = measure(core, tmp_path, "fine oom crash oom fine")
    assert verdict.properties == {
        "is_valid": 1,
        "failure": "none",
        "f_gpu_oom": 0.4,
        "f_other_error": 0.2,
        "f_no_error": 0.4,
    }
    assert len(set(processes)) == len(processes) == 5
    assert [message != "none" for message in verdict.metadata["errors"]] == [False, True, True, True, False]


@pytest.mark.timeout(200)
def test_bad_input_is_no_instability(core: Any, tmp_path: Path) -> None:
    """Unreadable data ends the experiment after its first run, with the message."""
    verdict, processes = measure(core, tmp_path, "bad bad bad bad bad")
    assert (verdict.properties, verdict.message) == ({}, "line 3 of the data is no JSON.")
    assert len(processes) == 1


@pytest.mark.timeout(300)
def test_what_did_not_fit_is_not_tried_larger(core: Any, tmp_path: Path) -> None:
    """With skip_predicted_oom: after batch 2 ran out of memory, batch 4 is not run; batch 1 and other experiments are."""
    asked = [("finetune_full_benchmark", batch) for batch in (2, 4, 1)] + [("finetune_full_stability", 4)]
    verdicts, processes = measure_all(
        core, tmp_path, "oom fine fine fine fine fine fine", asked, skip_predicted_oom=True
    )
    assert [one.properties["failure"] for one in verdicts[:2]] == ["gpu_oom", "predicted_oom"]
    assert "a smaller one ran out of GPU memory in this operation, with batch_size 2" in verdicts[1].metadata["reason"]
    # the scripted model counts no tokens, so its benchmark fails in the report; the test only needs to know that it ran
    assert verdicts[2].properties.get("failure") != "predicted_oom"
    assert verdicts[3].properties["f_no_error"] == 1
    assert len(processes) == 7


def test_fractions_are_exact() -> None:
    """Out of host memory does not exclude other workloads."""
    causes = [None, failures.OutOfMemory("host").cause, failures.OutOfMemory("gpu").cause, failures.Broken("x").cause]
    assert stability.summarise(causes).properties == {
        "is_valid": 1,
        "failure": "none",
        "f_gpu_oom": 0.25,
        "f_other_error": 0.5,
        "f_no_error": 0.25,
    }


def test_no_run_has_no_fraction() -> None:
    """Without a run there are no fractions."""
    with pytest.raises(ValueError, match="at least one run"):
        stability.summarise([])
