"""The parts of ``benchmarks/gpu.py``. Each has ``run`` (measures), ``judge`` and ``blocks`` (pure: from what was found)."""
