"""What holds for every file of the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_file_has_a_conflict_marker() -> None:
    """A merge that was not finished is seen in no other test if it is in a document."""
    command = ["git", "grep", "--line-number", "-E", "^(<{7}|>{7}) "]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
