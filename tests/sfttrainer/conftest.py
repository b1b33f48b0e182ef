"""Training in the tests' own process: the stack is imported once, and each value of a property costs a second instead of a process."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `nox -s versions` also trains with releases that lack properties, which are refused by name and release
OLDEST = importlib.util.find_spec("transformers") is not None and importlib.metadata.version("transformers") < "5"
# random weights, a vocabulary for the byte tokenizer, two layers
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SMALL: dict[str, Any] = {
    "model_name": "tiny",
    "model_max_length": 16,
    "batch_size": 4,
    "number_gpus": 0,
    "max_steps": 3,
    "target_ci_percent": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training: its record, the trained model, and the same model before training."""

    record: dict[str, Any]
    model: Any
    before: Any

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the stack has read back."""
        facts: dict[str, Any] = self.record["facts"]
        return facts

    @property
    def loss_per_token(self) -> float:
        """The mean loss of the first step."""
        return float(self.record["losses"][0]) / int(self.record["trained_tokens"][0])


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """Return a function that trains a tiny model with TRL in this process, as a trainer does."""
    from ado_actuators.sfttrainer import stack
    from ado_actuators.sfttrainer.core.protocol.messages import Job, JobWorkload
    from ado_actuators.sfttrainer.core.trainer import model, serve
    from ado_actuators.sfttrainer.core.trainer.errors import BadInput
    from ado_actuators.sfttrainer.core.trainer.timing import Clock
    from ado_actuators.sfttrainer.core.workload.fields import Workload

    def trained(
        architecture: dict[str, Any] | None = None, unchecked: dict[str, Any] | None = None, **change: Any
    ) -> Trained:
        """Train once.

        Args:
            architecture: the model's configuration.
            unchecked: fields set after validation, such as what a rule allows on GPUs only.
            change: further properties of the workload.
        """
        workload = JobWorkload(**Workload.model_validate({**SMALL, **change}).model_dump())
        workload = dataclasses.replace(workload, **(unchecked or {}))
        job = Job(id="test", workload=workload, architecture=architecture or TINY, run_dir=str(tmp_path / "run"))
        clock = Clock(job, lambda message: None)
        # resets what libraries keep for the whole process, as between two measurements
        with serve._distributed(job):
            try:
                facts = stack.train(job, clock)
            except BadInput as error:
                if OLDEST and "does not exist in" in str(error):
                    pytest.skip(str(error))
                raise
            network = clock.model
            record = serve._record(job, clock, facts)
        return Trained(dict(record), network, model.build(job)[0])

    return trained
