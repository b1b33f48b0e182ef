"""Checks that a measurement can run before its trainers are started, which takes seconds to minutes."""

from __future__ import annotations

from .. import failures
from ..measurement.distribution import install_command, lacking
from ..protocol import data_files
from ..protocol.messages import Job

# the package of this copy of the core is ado_actuators.NAME.core.host
PLUGIN = __name__.split(".core.")[0].rpartition(".")[2]


def check(job: Job, environment: str) -> None:
    """Check the training stack of this Python, the data file and the tokenizer, without importing or reading them.

    Args:
        job: what is to be measured.
        environment: ``current``, ``managed`` or the path of a Python; only this Python's packages are checked.

    Raises:
        failures.BadInput: the message says what is missing.
    """
    missing = lacking(PLUGIN, "train") if environment == "current" else []
    if missing:
        names = ", ".join(missing)
        raise failures.BadInput(
            f"The training stack is not installed ({names}): {install_command(PLUGIN, 'train')} installs it."
        )
    if job.task == "memory_estimate":
        # an estimate reads no data
        return
    workload = job.workload
    images = bool(workload.dataset_image_field)
    message = data_files.unusable(workload.dataset_id, images=images)
    if message is None and not images:
        message = data_files.without_tokenizer(workload.dataset_id, workload.model_name, job.source)
    if message is not None:
        raise failures.BadInput(message)
