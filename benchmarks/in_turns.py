"""Trains with the bare script whenever a line comes on standard input, and answers with a line of JSON: python in_turns.py SPEC.json."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import bare_trl

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for _ in sys.stdin:
        gc.collect()  # the model before, as a trainer gives it back
        print(json.dumps(bare_trl.main(spec), default=str), file=answers, flush=True)
