"""Memory of known accelerators by device name, GiB, and how much of it training can use. Standard library only.

Makers' GB of device memory are GiB. Cards with GDDR memory keep their error correction in it, which takes a sixteenth: the
driver of an L40S of 48 GB says 46068 MiB, that of a T4 of 16 GB 15360 MiB. Of all of it torch sees up to 1.2 % less: 79.1 of 80 GiB
on an H100, 139.8 of 141 on an H200, 44.4 of 45 on an L40S, 14.6 of 15 on a T4.
"""

from __future__ import annotations

import re

GIB = 2**30
# what the driver keeps, and CUDA's context with the kernels of torch and its libraries, all outside torch's allocator
DRIVER_SHARE = 0.012
CONTEXT_GIB = 0.5
GDDR = 15 / 16

# The first pattern that matches a name decides, so variants stand before the family they belong to.
TABLE: tuple[tuple[str, float], ...] = (
    # NVIDIA DGX B200 data sheet: eight GPUs, 1440 GB HBM3e
    (r"\bB200\b", 180.0),
    # NVIDIA H200 Tensor Core GPU data sheet: 141 GB HBM3e, SXM and NVL
    (r"\bH200\b", 141.0),
    # NVIDIA H100 Tensor Core GPU data sheet: NVL 94 GB HBM3; SXM 80 GB HBM3; PCIe product brief: 80 GB HBM2e
    (r"\bH100[ -]NVL\b", 94.0),
    (r"\bH100\b", 80.0),
    # NVIDIA A100 Tensor Core GPU data sheet: 40 GB HBM2, 80 GB HBM2e
    (r"\bA100\b.*\b80 ?GB?\b", 80.0),
    (r"\bA100\b.*\b40 ?GB?\b", 40.0),
    # NVIDIA L40S, L40, L4 and A40 data sheets: 48, 48, 24 and 48 GB GDDR6
    (r"\b(L40S|L40|A40)\b", 48.0 * GDDR),
    (r"\bL4\b", 24.0 * GDDR),
    # NVIDIA A30 data sheet: 24 GB HBM2
    (r"\bA30\b", 24.0),
    # NVIDIA A10 data sheet, and AWS G5 for A10G: 24 GB GDDR6
    (r"\bA10G?\b", 24.0 * GDDR),
    # NVIDIA V100 data sheet: 16 or 32 GB HBM2; V100S 32 GB
    (r"\bV100S\b|\bV100\b.*\b32 ?GB\b", 32.0),
    (r"\bV100\b.*\b16 ?GB\b", 16.0),
    # NVIDIA T4 data sheet: 16 GB GDDR6
    (r"\bT4\b", 16.0 * GDDR),
    # AMD Instinct MI325X and MI300X data sheets: 256 GB HBM3E, 192 GB HBM3
    (r"\bMI325X\b", 256.0),
    (r"\bMI300X\b", 192.0),
)


def device_memory_gib(gpu_model: str) -> tuple[float | None, str]:
    """Return the memory of one device in GiB, or None and one sentence that says why it is not known."""
    if gpu_model == "any":
        return None, "gpu_model any names no device."
    if re.search(r"\bMIG\b", gpu_model):
        return None, f"the memory of {gpu_model!r}, a part of a GPU, is not known."
    for pattern, gib in TABLE:
        if re.search(pattern, gpu_model, re.IGNORECASE):
            return gib, ""
    return None, f"the memory of gpu_model {gpu_model!r} is not known."


def usable_bytes(gpu_model: str) -> int | None:
    """Return the bytes torch's allocator can hand out on one device, or None where its memory is not known."""
    gib, _ = device_memory_gib(gpu_model)
    return None if gib is None else int((gib * (1 - DRIVER_SHARE) - CONTEXT_GIB) * GIB)
