"""Writes the table of docs/reliability.md from pytest's reports: ``python tools/fault_table.py REPORT.xml...``.

A test of a fault records the fault, the outcome, the seconds and the remaining files and processes (``record_property``). The tests in
``ELSEWHERE`` record nothing; their time is that of the whole test. Standard library only.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: made by tools/fault_table.py -->\n", "<!-- end of faults -->\n"
# test: the fault, and the outcome that the test asserts
ELSEWHERE = {
    "test_a_killed_rank_is_repeated_in_fresh_processes": (
        "one rank of two killed, on two Ray nodes",
        "transient, measured at the second attempt",
    ),
    "test_a_killed_host_is_repeated": ("host actor killed", "transient, measured at the second attempt"),
    "test_a_host_that_stops_answering_is_lost": (
        "host actor stopped (SIGSTOP)",
        "transient, measured at the second attempt",
    ),
    "test_a_killed_dispatcher_is_started_again": (
        "dispatcher actor killed while it holds every CPU",
        "restarted; this and later measurements succeed",
    ),
    "test_other_measurements_go_on": (
        "trainer killed during another measurement",
        "measured at the second attempt; the other at the first",
    ),
    "test_a_node_lost_in_mid_measurement[default configuration]": (
        "node of a two-node cluster removed",
        "transient, then failed: the remaining nodes are too small",
    ),
    "test_nothing_survives[SIGINT]": ("Ctrl-C in an operation", "operation ends"),
    "test_nothing_survives[SIGTERM]": ("operation terminated", "operation ends"),
    "test_nothing_survives[SIGKILL]": ("driver killed", "operation ends"),
    "test_a_killed_build_is_repaired": ("environment build killed", "built by the next one"),
}


def rows(report: Path) -> list[tuple[str, str, str, str]]:
    """Return fault, outcome, seconds and remains of each test of a report; a failed test ends the program."""
    found = []
    for case in ET.parse(report).iter("testcase"):
        noted = {one.get("name"): one.get("value", "") for one in case.iter("property")}
        name = case.get("name", "")
        if case.find("failure") is not None or case.find("error") is not None:
            sys.exit(f"The test {name} failed. The table needs a report in which all tests pass.")
        if "fault" in noted:
            found.append((noted["fault"], noted["outcome"], noted["seconds"], noted["left"]))
        elif name in ELSEWHERE and case.find("skipped") is None:
            found.append((*ELSEWHERE[name], f"{float(case.get('time', 0)):.0f} *", "nothing"))
    return found


def main() -> None:
    """Replace the table of the page."""
    lines = ["| fault | outcome | seconds | left behind |", "|---|---|--:|---|"]
    lines += [f"| {' | '.join(row)} |" for report in sys.argv[1:] for row in rows(Path(report))]
    text = PAGE.read_text(encoding="utf-8")
    table = BEGIN + "\n".join(lines) + "\n" + END
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
    print(f"{len(lines) - 2} faults written to {PAGE}")


if __name__ == "__main__":
    main()
