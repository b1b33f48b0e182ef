"""The parts of ``benchmarks/gpu.py``.

Each part is a module with ``run``, which measures and writes plain values into a dict, and the pure functions ``judge`` (checks) and
``blocks`` (Markdown), which read that dict. ``prepare`` starts memory estimates before the first part.
"""
