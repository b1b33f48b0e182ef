"""Trains with the plain script for each line on standard input, and writes a line of JSON: python in_turns.py SPEC.json."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import bare_trl
import torch

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for _ in sys.stdin:
        made = bare_trl.main(spec)
        # released as a trainer does, since the other side needs the memory
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(made, default=str), file=answers, flush=True)
