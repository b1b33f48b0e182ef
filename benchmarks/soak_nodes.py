"""A soak on two Ray nodes: an ado operation with four requests in flight while trainers, hosts, the dispatcher and a node are killed.

The head has one CPU, and so has a second node, on the same machine. It joins after the first measurement, so that ado's own actors, whose
death ado does not survive, are on the head. Every few seconds something that was drawn is killed with SIGKILL; the second node joins again.
What counts is that each entity has one result, that none is lost or there twice or has failed for another reason, and that nothing is left:
no process, no run directory, no placement group.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import psutil
import soak
import yaml

BIN = Path(sys.executable).parent
START_S = 180.0
LIMIT_S = 5400.0
# how often each is drawn
KINDS = {"trainer": 6, "host": 3, "dispatcher": 1, "node": 1}
NAMES = {"trainer": "core/trainer", "host": "ray::HostActor", "dispatcher": "ray::Dispatcher"}
# what may die with its node: our actors and what Ray itself runs
OURS = ("ray::IDLE", "ray::Dispatcher", "ray::HostActor", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
# why a measurement may fail here, after its repetitions
KILLED = re.compile(r"killed from outside|was lost|trainer ended|trainer process died")
LEFT = """
import ray
from ray.util.placement_group import placement_group_table
ray.init(log_to_driver=False)
print(sum(group["state"] != "REMOVED" for group in placement_group_table().values()))
"""


class Cluster:
    """A head and a second node of one CPU each.

    Args:
        root: directory of the soak.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        path = filter(None, [str(root / "plugin"), os.environ.get("PYTHONPATH")])
        # Ray would kill ado's own actors if other programs of this machine used its memory up
        self.environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "XDG_CONFIG_HOME": str(root / "config"), "RAY_TMPDIR": str(root / "r"), "PYTHONPATH": os.pathsep.join(path),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "COLUMNS": "200", "NO_COLOR": "1",
            "RAY_memory_monitor_refresh_ms": "0",
        }  # fmt: skip
        (root / "r").mkdir()
        log = root / "head.log"
        self._head = self._start(["--head", "--num-cpus=1", "--node-ip-address=127.0.0.1", "--port=0"], log)
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"--address='([^']+)'", log.read_text(errors="replace"))):
            if time.monotonic() > deadline or self._head.poll() is not None:
                sys.exit(f"the head did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)
        self.environ["RAY_ADDRESS"] = found.group(1)
        self._node: subprocess.Popen[bytes] | None = None

    def _start(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        fixed = ["--block", "--disable-usage-stats", "--num-gpus=0", "--object-store-memory=100000000"]
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(BIN / "ray"), "start", *fixed, *arguments],
                env=self.environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def join(self) -> None:
        """Start the second node."""
        address = [f"--address={self.environ['RAY_ADDRESS']}", "--node-ip-address=127.0.0.2", "--num-cpus=1"]
        self._node = self._start(address, self._root / "node.log")

    def kill_node(self) -> bool:
        """Kill the second node's Ray processes at once, and start another; return whether it has none of ado's actors, and was killed."""
        found = []
        assert self._node is not None
        for child in psutil.Process(self._node.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                if command.startswith("ray::") and not command.startswith(OURS):
                    common.say(f"the node is spared: it has {command:.60}")
                    return False
                if NAMES["trainer"] not in command:
                    found.append(child)
        for child in found:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._node.kill()
        self._node.wait()
        self.join()
        return True

    def processes(self) -> Iterator[psutil.Process]:
        """Return all processes of this cluster and its operation."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("RAY_TMPDIR") == self.environ["RAY_TMPDIR"]:
                    yield process

    def running(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if NAMES[kind] in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def groups(self) -> int:
        """Return the number of placement groups that are left."""
        done = subprocess.run(
            [sys.executable, "-c", LEFT], env=self.environ, capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    def end(self) -> None:
        """End the nodes and the head, and what they have started."""
        nodes = [one for one in (self._node, self._head) if one is not None]
        for one in nodes:
            one.terminate()
        time.sleep(3)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for one in nodes:
            one.wait()


def main() -> int:
    """Run the soak; 0 if each entity has one result and nothing is left."""
    given = options()
    facts = common.circumstances("cpu")
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        arguments = write_inputs(root, given.measurements)
        cluster = Cluster(root)
        begin = time.perf_counter()
        try:
            killed, code = operate(cluster, root, arguments, given.every, given.seed, given.measurements)
            took_s = time.perf_counter() - begin
            stored = soak.results(root)
            time.sleep(10)
            left = {
                "trainers and hosts": len(cluster.running("trainer")) + len(cluster.running("host")),
                "run directories": len(list((root / "state" / "runs").glob("*"))),
                "placement groups": cluster.groups(),
            }
        finally:
            cluster.end()
    facts["load_average_after"] = round(os.getloadavg()[0], 2)
    found = judge(stored, given.measurements)
    met = code == 0 and not (found["lost"] or found["twice"] or found["unexplained"]) and not any(left.values())
    content = {
        "benchmark": "soak_nodes", "measurements": given.measurements, **facts, "took_s": round(took_s, 1), "every_s": given.every,
        "exit_status": code, "killed": dict(killed), **found, "left": left, "met": met,
    }  # fmt: skip
    common.write(given.output, content, text(content))
    return 0 if met else 1


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--measurements", type=int, default=60, help="a multiple of 3 (default 60)")
    parser.add_argument("--every", type=float, default=12.0, metavar="S", help="seconds between two kills (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed (default 0)")
    default = common.ROOT / "benchmarks" / "results" / "soak_nodes.json"
    parser.add_argument("--output", type=Path, default=default, help=f"JSON file (default {default})")
    return parser.parse_args()


def write_inputs(root: Path, measurements: int) -> list[str]:
    """Write the inputs of ``soak`` without its faults, with four requests in flight and more repetitions; return ado's arguments."""
    arguments: list[str] = soak.write_inputs(root, measurements)
    space, configuration, operation = (
        root / f"{name}.yaml" for name in ("space", "actuatorconfiguration", "operation")
    )
    content = yaml.safe_load(space.read_text(encoding="utf-8"))
    (seeds,) = [one for one in content["entitySpace"] if one["identifier"] == "seed"]
    healthy = [seed for seed in range(10 * measurements) if soak.expected(seed) is soak.HEALTHY]
    seeds["propertyDomain"]["values"] = healthy[: measurements // len(soak.BATCH_SIZES)]
    one_cpu = {"property": {"identifier": "cpus_per_process"}, "value": 1}
    content["experiments"][0]["parameterization"].append(one_cpu)
    space.write_text(yaml.safe_dump(content), encoding="utf-8")
    content = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    # a killed node is back after seconds
    content["parameters"] |= {"max_retries": 5, "autoscaling": True}
    configuration.write_text(yaml.safe_dump(content), encoding="utf-8")
    content = yaml.safe_load(operation.read_text(encoding="utf-8"))
    content["operation"]["parameters"] |= {"batchSize": 4, "numberEntities": "all"}
    operation.write_text(yaml.safe_dump(content), encoding="utf-8")
    return arguments


def operate(
    cluster: Cluster, root: Path, arguments: list[str], every_s: float, seed: int, measurements: int
) -> tuple[Counter[str], int]:
    """Run the operation and kill; return how often each kind was killed, and the exit status."""
    drawn = random.Random(seed)
    killed: Counter[str] = Counter()
    with (root / "operation.log").open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "ado"), *arguments],
            cwd=root,
            env=cluster.environ,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline, last = time.monotonic() + LIMIT_S, 0
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(every_s)
            done = soak.count(root)
            # the first measurement shows that all of ado's actors have started, on the head
            if done and not last:
                cluster.join()
            elif done and process.poll() is None:
                kind = drawn.choices(list(KINDS), list(KINDS.values()))[0]
                killed[kind] += kill(cluster, kind, drawn)
            if done != last:
                common.say(f"{done} of {measurements} results, killed: {dict(killed)}")
                last = done
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        common.say((root / "operation.log").read_text(errors="replace")[-3000:])
    return killed, process.returncode


def kill(cluster: Cluster, kind: str, drawn: random.Random) -> bool:
    """Kill one process of a kind, or a node, which joins again; return whether there was one."""
    if kind == "node":
        return cluster.kill_node()
    found = cluster.running(kind)
    with contextlib.suppress(psutil.Error):
        if found:
            drawn.choice(found).kill()
            return True
    return False


def judge(stored: list[dict[str, Any]], measurements: int) -> dict[str, Any]:
    """Count the results: entities without or with two, those that are valid, those that failed for another reason than a kill, attempts."""
    results = Counter(one["entityIdentifier"] for one in stored)
    verdicts = [soak.verdict(one) for one in stored]
    return {
        "results": len(stored),
        "lost": measurements // len(soak.BATCH_SIZES) * len(soak.BATCH_SIZES) - len(results),
        "twice": sum(number > 1 for number in results.values()),
        "unexplained": sum(one["is_valid"] != 1 and not KILLED.search(one["reason"]) for one in verdicts),
        "valid": sum(one["is_valid"] == 1 for one in verdicts),
        "attempts": dict(sorted(Counter(str(one["attempts"]) for one in verdicts).items())),
        "reasons": dict(Counter(one["reason"] for one in verdicts if one["is_valid"] != 1).most_common()),
    }


def text(content: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    killed = ", ".join(f"{number} {kind}" for kind, number in sorted(content["killed"].items())) or "nothing"
    attempts = [[attempts, str(number)] for attempts, number in content["attempts"].items()]
    reasons = [[reason, str(number)] for reason, number in content["reasons"].items()] or [["none", ""]]
    return "\n\n".join(
        [
            common.heading("Soak on two nodes", content),
            (
                f"{content['results']} results of {content['measurements']} measurements in {content['took_s'] / 60:.1f} minutes; killed "
                f"every {content['every_s']:g} s, in all: {killed}. Lost: {content['lost']}, there twice: {content['twice']}, valid: "
                f"{content['valid']}; target {'met' if content['met'] else 'NOT met'}."
            ),
            common.table(["attempts", "measurements"], attempts),
            common.table(["why there is no measurement", "measurements"], reasons),
            f"Left behind: {', '.join(f'{number} {what}' for what, number in content['left'].items())}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
