"""Prints what torch reports of the device, then the speed of a matrix product, as two lines of JSON.

    python matrix_product.py cuda|cpu SECONDS DTYPE SIZE

Without a CUDA device ``cuda`` ends with an error after the first line.

``tflops`` is the median of rounds of products of two square matrices, each round timed by the clock between two synchronisations. It
multiplies for SECONDS at least, and until standard input is closed: its caller may still record the device under load.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from typing import Any

import torch

PRODUCTS_OF_A_ROUND = 10


def facts() -> dict[str, Any]:
    """Return torch's versions and, with CUDA, what it says of the device."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return found
    device = torch.cuda.get_device_properties(0)
    return found | {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "memory_bytes": device.total_memory,
        "multiprocessors": device.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def multiply(device: str, seconds: float, dtype: str, size: int, ended: threading.Event) -> dict[str, Any]:
    """Return the speed of a matrix product in TFLOP/s.

    Args:
        device: ``cuda`` or ``cpu``.
        seconds: how long to multiply, at least two rounds.
        dtype: type of the numbers.
        size: rows and columns.
        ended: set once it may end.
    """
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    rounds: list[float] = []
    begin = time.perf_counter()
    # the first round selects kernels
    while len(rounds) < 3 or time.perf_counter() - begin < seconds or not ended.is_set():
        start = time.perf_counter()
        for _ in range(PRODUCTS_OF_A_ROUND):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / PRODUCTS_OF_A_ROUND)
    return {"tflops": 2 * size**3 / statistics.median(rounds[1:]) / 1e12, "size": size, "rounds": len(rounds)}


if __name__ == "__main__":
    found = facts()
    print(json.dumps(found), flush=True)
    if sys.argv[1] == "cuda" and "name" not in found:
        # a product of this size takes a CPU minutes
        sys.exit(f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device")
    stop = threading.Event()

    def wait() -> None:
        """Wait for the end of standard input."""
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    print(json.dumps(multiply(sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), stop)), flush=True)
