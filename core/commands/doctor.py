"""The ``doctor`` command: what this machine or a Ray cluster can measure, what is missing, and the command that installs it.

Imports Ray only when a cluster is named.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import failures
from .console import show
from .machine import Check, Subject, examine

ANSWER_TIMEOUT_S = 60.0
START_RAY = "ray start --head   # prints the address to give"
CONNECT_TIMEOUT_S = 5.0


# -- a cluster --------------------------------------------------------------------------------------------------


def examine_cluster(address: str, subject: Subject) -> list[Check]:
    """Examine every node of a Ray cluster in a task on that node; the task reserves no resources."""
    if address.startswith(("http://", "https://")):
        return [_dashboard(address, subject)]
    if refused := _refused(address):
        return [Check("cluster", "missing", f"nothing answers at {address}: {refused}", START_RAY)]
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="ado-doctor")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Check("cluster", "missing", failures.plain_message(reason), START_RAY)]
    try:
        return [check for node in ray.nodes() for check in _node(node, subject)]
    finally:
        ray.shutdown()


def _refused(address: str) -> str:
    """Return why no connection to the address can be made, without waiting for Ray's own time-out; empty where one can."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _dashboard(address: str, subject: Subject) -> Check:
    host = urllib.parse.urlsplit(address).hostname or "HOST"
    text = f"{address} is the address of the dashboard, which accepts jobs only; from outside the cluster give ray://{host}:10001"
    again = f"{subject.distribution} doctor --address {host}:6379"
    return Check("cluster", "missing", text, again)


def _node(node: dict[str, Any], subject: Subject) -> Iterator[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = node["NodeManagerHostname"]
    if not node["Alive"]:
        yield Check(name, "note", "was lost")
        return
    yield Check(name, "ok", _offer(node["Resources"]))
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(examine)
    try:
        answered = ray.get(task.remote(subject), timeout=ANSWER_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        yield Check(name, "missing", f"did not answer within {ANSWER_TIMEOUT_S:g} s", "ray status")
    except Exception as error:
        reason = failures.plain_message(str(error).strip().rpartition("\n")[2])
        yield Check(
            name, "note",
            f"cannot be examined ({reason}); ado sends the plugin along with a job, otherwise install it on the node",
            f"pip install ./{subject.plugin}   # on {name}",
        )  # fmt: skip
    else:
        yield from (dataclasses.replace(check, what=f"{name} {check.what}") for check in answered)


def _offer(resources: dict[str, float]) -> str:
    types = ", ".join(sorted(key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")))
    gpus = f", {resources['GPU']:g} GPUs {types}".rstrip() if resources.get("GPU") else ""
    return f"offers {resources.get('CPU', 0):g} CPUs{gpus}"


# -- the command ------------------------------------------------------------------------------------------------


def main(plugin: str, trains_in: str, *, address: str | None, state_dir: str) -> int:
    """Run the command; return its exit status: 0 nothing is missing, 1 something is missing, 2 usage error.

    Args:
        plugin: identifier of the plugin.
        trains_in: where it trains by default, ``current`` or ``managed``.
        address: of a Ray cluster; None: RAY_ADDRESS, and without it this machine.
        state_dir: the actuator configuration's state_dir, or empty.
    """
    if address == "":
        print("--address is empty; leave it out to examine this machine.", file=sys.stderr)
        return 2
    try:
        subject = Subject(plugin, trains_in, _directory(state_dir))
    except RuntimeError as error:
        print(f"--state-dir {state_dir}: {error}", file=sys.stderr)
        return 2
    address = address or os.environ.get("RAY_ADDRESS")
    checks = examine_cluster(address, subject) if address else examine(subject)
    where = f"the Ray cluster at {address}" if address else f"this machine, {socket.gethostname()}"
    show(f"{plugin} on {where}\n\n{text(checks)}")
    return 1 if any(check.state == "missing" for check in checks) else 0


def text(checks: list[Check]) -> str:
    """Return checks and a conclusion for a terminal."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8}{check.what:<{width}}  {check.text}")
        lines += [f"{'':8}{'':<{width}}  $ {check.remedy}"] if check.remedy else []
    return "\n".join([*lines, "", _conclusion(checks)])


def _conclusion(checks: list[Check]) -> str:
    missing = sum(check.state == "missing" for check in checks)
    if missing:
        return f"{missing} missing: run the command below each, then run doctor again."
    gpus = sum(check.what.split()[-1] == "GPU" and check.state == "ok" for check in checks)
    return "Nothing is missing: measurements can run on the CPU" + (f" and on {gpus} GPUs." if gpus else ".")


def _directory(given: str) -> str:
    """Return a directory as an absolute path; ``~``, which means another directory on each node, stays, and so does empty.

    Raises:
        RuntimeError: it begins with the home of a user that does not exist.
    """
    absolute = Path(given).expanduser().absolute()
    return given if given.startswith("~") or not given else str(absolute)
