"""Dense peak of known accelerators by device name and type of number, TFLOP/s. Standard library only.

Data sheets' figures with sparsity are halved. ``float32`` is the rate without TF32, which is torch's default; ``tf32`` that of the
tensor cores on float32 numbers, on every sheet below half of their rate on numbers of 16 bits (rounded).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Peaks = Mapping[str, float]


# a slice of a GPU: by MIG, as a vGPU profile (A100-1-5C, A40-8Q), or a virtual function
SLICE = re.compile(r"\b(MIG|GRID|VF)\b|-\d+[ABCQ](ME)?\b")


def _rates(tensor: float, float32: float) -> dict[str, float]:
    return {"bfloat16": tensor, "float16": tensor, "tf32": tensor / 2, "float32": float32}


# The first pattern that matches a name decides, so variants stand before the family they belong to.
TABLE: tuple[tuple[str, Peaks], ...] = (
    # HGX B200 data sheet: eight GPUs, 36 PFLOP/s FP16/BF16 with sparsity, 600 TFLOP/s FP32
    (r"\bB200\b", _rates(2250.0, 75.0)),
    # NVIDIA H200 Tensor Core GPU data sheet: NVL 1671 with sparsity, 60; SXM 1979 with sparsity, 67
    (r"\bH200 NVL\b", _rates(835.5, 60.0)),
    (r"\bH200\b", _rates(989.5, 67.0)),
    # NVIDIA H100 Tensor Core GPU data sheet: NVL 1671 with sparsity, 60
    (r"\bH100 NVL\b", _rates(835.5, 60.0)),
    # NVIDIA H100 PCIe product brief and data sheet: 1513 with sparsity, 51
    (r"\bH100[ -]PCIe\b|\bH100 80GB HBM2e\b", _rates(756.5, 51.0)),
    # NVIDIA H100 Tensor Core GPU data sheet: SXM 1979 with sparsity, 67
    (r"\bH100[ -]SXM|\bH100 80GB HBM3\b|\bH100-80GB-HBM3\b", _rates(989.5, 67.0)),
    # NVIDIA A100 Tensor Core GPU data sheet: 312, 19.5; the same for 40 and 80 GB, SXM and PCIe
    (r"\bA100\b", _rates(312.0, 19.5)),
    # NVIDIA L40S data sheet: 362.05 dense, 91.6
    (r"\bL40S\b", _rates(362.05, 91.6)),
    # NVIDIA L40 data sheet: 181.05 dense, 90.5
    (r"\bL40\b", _rates(181.05, 90.5)),
    # NVIDIA L4 data sheet: 242 with sparsity, 30.3
    (r"\bL4\b", _rates(121.0, 30.3)),
    # NVIDIA A40 data sheet: 149.7 dense, 37.4
    (r"\bA40\b", _rates(149.7, 37.4)),
    # NVIDIA A30 data sheet: 165 dense, 10.3
    (r"\bA30\b", _rates(165.0, 10.3)),
    # NVIDIA A10 data sheet: 125 dense, 31.2
    (r"\bA10\b", _rates(125.0, 31.2)),
    # NVIDIA V100 data sheet: tensor 130, 125 and 112; single precision 16.4, 15.7 and 14; no bfloat16
    (r"\bV100S\b", {"float16": 130.0, "float32": 16.4}),
    (r"\bV100-SXM", {"float16": 125.0, "float32": 15.7}),
    (r"\bV100-PCIE", {"float16": 112.0, "float32": 14.0}),
    # NVIDIA T4 data sheet: mixed precision 65, single precision 8.1; no bfloat16
    (r"\bT4\b", {"float16": 65.0, "float32": 8.1}),
    # AMD Instinct MI325X and MI300X data sheets: 1307.4 without sparsity, 163.4
    (r"\bMI3(00|25)X\b", _rates(1307.4, 163.4)),
)


def peak_tflops(device_name: str, dtype: str) -> tuple[float | None, str]:
    """Return the dense peak of one device in TFLOP/s, or None and one sentence that says why there is none.

    Args:
        device_name: as the driver gives it, for example ``NVIDIA A100-SXM4-80GB``.
        dtype: type the products are computed in: ``bfloat16``, ``float16``, ``tf32`` or ``float32``.
    """
    if SLICE.search(device_name):
        return None, f"the peak of {device_name!r}, a part of a GPU, is not known."
    for pattern, peaks in TABLE:
        if re.search(pattern, device_name, re.IGNORECASE):
            if dtype in peaks:
                return peaks[dtype], ""
            return None, f"the data sheet of {device_name!r} gives no peak for {dtype}."
    return None, f"the peak of device {device_name!r} is not known."
