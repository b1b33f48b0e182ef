"""Known accelerators by device name: memory, dense peaks by type of number, memory bandwidth. Standard library only.

Data sheets' figures with sparsity are halved. ``float32`` is the rate without TF32, which is torch's default; ``tf32`` that of the
tensor cores on float32 numbers. Tensor rates accumulate in float32, as training does.

Data sheets write GB for GiB of device memory. Data center cards with GDDR6 keep their error correction in it, which takes a sixteenth: the
driver of an L40S of 48 GB says 46068 MiB, that of a T4 of 16 GB 15360 MiB. torch can use up to 1.2 % less of it: 79.1 of 80 GiB
on an H100, 139.8 of 141 on an H200, 44.4 of 45 on an L40S, 14.6 of 15 on a T4.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping

GIB = 2**30
# what the driver keeps
DRIVER_SHARE = 0.012
# CUDA's context, and the kernels of torch and its libraries with the memory that they spill to. On one A100 of 80 GB nvidia-smi shows a
# median of 1.7 GiB more than the allocator (benchmarks/published.py); messages of torch about a lack of memory show 0.1 GiB on a T4, 0.3 to
# 1.2 on cards of 24 GB and from 0.5 on an A100. In between it is assumed to grow with the memory
CONTEXT_SHARE = 1.7 / 80
LEAST_CONTEXT_GIB, MOST_CONTEXT_GIB = 0.5, 1.7
GDDR = 15 / 16

# rates of links, 10^9 bytes/s to a device: half of what data sheets name for both directions
PCIE_4, PCIE_5 = 31.5, 63.0
# NVLink of V100 300, of A100 600, of Hopper 900, of Blackwell 1800; Infinity Fabric of MI300 and MI350: seven links of 128
NVLINK_2, NVLINK_3, NVLINK_4, NVLINK_5 = 150.0, 300.0, 450.0, 900.0
INFINITY_FABRIC = 448.0

# cuBLAS's workspaces, which torch's allocator provides: one for the thread of the forward pass and one for that of the backward pass.
# torch's defaults: 32 MiB from Hopper on, 4096 KiB twice and 16 KiB eight times on older devices
HOPPER = 9.0
WORKSPACE_BYTES, OLDER_WORKSPACE_BYTES = 2 * 32 * 2**20, 2 * (2 * 4096 + 8 * 16) * 2**10

# a slice of a GPU: by MIG, as a vGPU profile (A100-1-5C, A40-8Q), or a virtual function
SLICE = re.compile(r"\b(MIG|GRID|VF)\b|-\d+[ABCQ](ME)?\b")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A row of the table.

    Attributes:
        pattern: regular expression that the device name contains, in upper or lower case.
        memory_gib: memory of one device; None where the name fits several sizes.
        tflops: dense peak in TFLOP/s by type of number; empty where the name fits devices of several speeds.
        bandwidth_gb_s: memory bandwidth, 10^9 bytes/s; None where the name fits several.
        capability: CUDA's compute capability; None: not a device of NVIDIA.
        link_gb_s: rate of the link to other devices of the node, 10^9 bytes/s to a device. Bridges between PCIe cards do not count.
    """

    pattern: str
    memory_gib: float | None
    tflops: Mapping[str, float]
    bandwidth_gb_s: float | None
    capability: float | None = None
    link_gb_s: float = PCIE_4


def _rates(tensor: float, float32: float, tf32: float | None = None) -> dict[str, float]:
    return {"bfloat16": tensor, "float16": tensor, "tf32": tensor / 2 if tf32 is None else tf32, "float32": float32}


_H100_SXM, _H100_PCIE = _rates(989.5, 67.0), _rates(756.5, 51.0)
_A100 = _rates(312.0, 19.5)
_V100_SXM, _V100_PCIE = {"float16": 125.0, "float32": 15.7}, {"float16": 112.0, "float32": 14.0}

# The first pattern that matches a name decides, so variants stand before the family they belong to.
TABLE: tuple[Accelerator, ...] = (
    # NVIDIA GB200 NVL72 data sheet: 72 GPUs, 360 PFLOP/s FP16/BF16 with sparsity, 5760 TFLOP/s FP32, 13.4 TB HBM3e, 576 TB/s
    Accelerator(r"\bGB200\b", 186.0, _rates(2500.0, 80.0), 8000.0, capability=10.0, link_gb_s=NVLINK_5),
    # NVIDIA HGX B300 data sheet: eight GPUs, 36 PFLOP/s FP16/BF16 with sparsity, 600 TFLOP/s FP32, 270 GB HBM3e and 8 TB/s each
    Accelerator(r"\bB300\b", 270.0, _rates(2250.0, 75.0), 8000.0, capability=10.3, link_gb_s=NVLINK_5),
    # NVIDIA HGX and DGX B200 data sheets: eight GPUs, 36 PFLOP/s FP16/BF16 with sparsity, 600 TFLOP/s FP32, 1440 GB HBM3e, 64 TB/s
    Accelerator(r"\bB200\b", 180.0, _rates(2250.0, 75.0), 8000.0, capability=10.0, link_gb_s=NVLINK_5),
    # NVIDIA GH200 data sheet: 1979 with sparsity, 67; 96 GB HBM3 and 4 TB/s (the driver's GH200 480GB), or 144 GB HBM3e and 4.9 TB/s
    Accelerator(r"\bGH200\b.*\b(480|96) ?GB?\b", 96.0, _H100_SXM, 4000.0, capability=9.0, link_gb_s=NVLINK_4),
    Accelerator(r"\bGH200\b.*\b144 ?GB?\b", 144.0, _H100_SXM, 4900.0, capability=9.0, link_gb_s=NVLINK_4),
    Accelerator(r"\bGH200\b", None, _H100_SXM, None, capability=9.0, link_gb_s=NVLINK_4),
    # NVIDIA H200 data sheet: NVL 1671 with sparsity, 60; SXM 1979 with sparsity, 67; both 141 GB HBM3e, 4.8 TB/s
    Accelerator(r"\bH200[ -]NVL\b", 141.0, _rates(835.5, 60.0), 4800.0, capability=9.0, link_gb_s=PCIE_5),
    Accelerator(r"\bH200\b", 141.0, _H100_SXM, 4800.0, capability=9.0, link_gb_s=NVLINK_4),
    # NVIDIA H20 data sheet: 148 dense, 44; 96 GB HBM3, 4 TB/s
    Accelerator(r"\bH20\b", 96.0, _rates(148.0, 44.0), 4000.0, capability=9.0, link_gb_s=NVLINK_4),
    # NVIDIA H100 data sheet: NVL 1671 with sparsity, 60; 94 GB HBM3, 3.9 TB/s
    Accelerator(r"\bH100[ -]NVL\b", 94.0, _rates(835.5, 60.0), 3900.0, capability=9.0, link_gb_s=PCIE_5),
    # NVIDIA H100 PCIe product brief and data sheet: 1513 with sparsity, 51; 80 GB HBM2e, 2 TB/s. H800 PCIe: the same
    Accelerator(
        r"\bH[18]00[ -]PCIe\b|\bH100[ -]80GB[ -]HBM2e\b", 80.0, _H100_PCIE, 2000.0, capability=9.0, link_gb_s=PCIE_5
    ),
    # NVIDIA H100 data sheet: SXM 1979 with sparsity, 67; 80 GB HBM3, 3.35 TB/s. H800 SXM: the same, with NVLink of 400 GB/s. A name
    # without its form is read as SXM
    Accelerator(r"\bH800[ -]SXM|^H800$|\bNVIDIA[ -]H800$", 80.0, _H100_SXM, 3350.0, capability=9.0, link_gb_s=200.0),
    Accelerator(
        r"\bH100[ -]SXM|\bH100[ -]80GB[ -]HBM3\b|^H100$", 80.0, _H100_SXM, 3350.0, capability=9.0, link_gb_s=NVLINK_4
    ),
    Accelerator(r"\bH[18]00\b", 80.0, {}, None, capability=9.0),
    # NVIDIA A100 data sheet: 312, 19.5; 40 GB HBM2 1555 GB/s; 80 GB HBM2e, PCIe 1935 and SXM 2039 GB/s
    Accelerator(r"\bA100\b.*\b80 ?GB?[ -]PCIe\b|\bA100[ -]PCIe[ -]80 ?GB?\b", 80.0, _A100, 1935.0, capability=8.0),
    Accelerator(r"\bA100\b.*\b80 ?GB?\b", 80.0, _A100, 2039.0, capability=8.0, link_gb_s=NVLINK_3),
    Accelerator(r"\bA100\b.*\b40 ?GB?[ -]PCIe\b|\bA100[ -]PCIe[ -]40 ?GB?\b", 40.0, _A100, 1555.0, capability=8.0),
    Accelerator(r"\bA100\b.*\b40 ?GB?\b", 40.0, _A100, 1555.0, capability=8.0, link_gb_s=NVLINK_3),
    Accelerator(r"\bA100\b", None, _A100, None, capability=8.0, link_gb_s=NVLINK_3),
    # NVIDIA L40S data sheet: 362.05 dense, 91.6; 48 GB GDDR6, 864 GB/s
    Accelerator(r"\bL40S\b", 48.0 * GDDR, _rates(362.05, 91.6), 864.0, capability=8.9),
    # NVIDIA L40 data sheet: 181.05 dense, 90.5; 48 GB GDDR6, 864 GB/s
    Accelerator(r"\bL40\b", 48.0 * GDDR, _rates(181.05, 90.5), 864.0, capability=8.9),
    # NVIDIA L4 data sheet: 242 with sparsity, 30.3; 24 GB GDDR6, 300 GB/s
    Accelerator(r"\bL4\b", 24.0 * GDDR, _rates(121.0, 30.3), 300.0, capability=8.9),
    # NVIDIA A40 data sheet: 149.7 dense, 37.4; 48 GB GDDR6, 696 GB/s
    Accelerator(r"\bA40\b", 48.0 * GDDR, _rates(149.7, 37.4), 696.0, capability=8.6),
    # NVIDIA A30 data sheet: 165 dense, 10.3; 24 GB HBM2, 933 GB/s
    Accelerator(r"\bA30\b", 24.0, _rates(165.0, 10.3), 933.0, capability=8.0),
    # NVIDIA A10G data sheet for AWS G5 (AWS itself names 250 and 125 for other types): BF16 70 dense, FP32 31.52; 24 GB GDDR6, 600 GB/s
    Accelerator(r"\bA10G\b", 24.0 * GDDR, _rates(70.0, 31.52), 600.0, capability=8.6),
    # NVIDIA A10 data sheet: 125 dense, 31.2; 24 GB GDDR6, 600 GB/s
    Accelerator(r"\bA10\b", 24.0 * GDDR, _rates(125.0, 31.2), 600.0, capability=8.6),
    # NVIDIA RTX PRO 6000 Blackwell data sheets: 4000 TOPS FP4 with sparsity, eight times BF16 dense; Workstation 125, 1792 GB/s; Max-Q
    # 3511 TOPS, 110; Server 120, 1597 GB/s; 96 GB GDDR7, whose error correction takes none of it
    Accelerator(r"\bPRO[ -]6000\b.*\bMax-Q\b", 96.0, _rates(438.9, 110.0), 1792.0, capability=12.0, link_gb_s=PCIE_5),
    Accelerator(r"\bPRO[ -]6000\b.*\bServer\b", 96.0, _rates(500.0, 120.0), 1597.0, capability=12.0, link_gb_s=PCIE_5),
    Accelerator(r"\bPRO[ -]6000\b", 96.0, _rates(500.0, 125.0), 1792.0, capability=12.0, link_gb_s=PCIE_5),
    # NVIDIA RTX 6000 Ada data sheet: 1457 FP8 with sparsity, four times BF16 dense, 91.1; 48 GB GDDR6 (no error correction), 960 GB/s
    Accelerator(r"\b6000[ -]Ada\b", 48.0, _rates(364.25, 91.1), 960.0, capability=8.9),
    # NVIDIA RTX A6000 data sheet: 309.7 with sparsity, 38.7; 48 GB GDDR6 (error correction is off by default), 768 GB/s
    Accelerator(r"\bA6000\b", 48.0, _rates(154.8, 38.7), 768.0, capability=8.6),
    # NVIDIA RTX Blackwell whitepaper: RTX 5090 209.5 dense with FP32 accumulation, 104.8; 32 GB GDDR7, 1792 GB/s
    Accelerator(
        r"\bRTX[ -]?5090\b(?!.*(\bD\b|Laptop))", 32.0, _rates(209.5, 104.8), 1792.0, capability=12.0, link_gb_s=PCIE_5
    ),
    # NVIDIA Ada whitepaper: RTX 4090 165.2 dense with FP32 accumulation, 82.6; 24 GB GDDR6X, 1008 GB/s. RTX 4080 97.5, 48.7; 16 GB, 717
    Accelerator(r"\bRTX[ -]?4090\b(?!.*(\bD\b|Laptop))", 24.0, _rates(165.2, 82.6), 1008.0, capability=8.9),
    Accelerator(r"\bRTX[ -]?4080\b(?!.*(SUPER|Laptop))", 16.0, _rates(97.5, 48.7), 716.8, capability=8.9),
    # NVIDIA GA102 whitepaper: RTX 3090 71 dense with FP32 accumulation, 35.6; 24 GB GDDR6X, 936 GB/s
    Accelerator(r"\bRTX[ -]?3090\b(?![ -]?Ti)", 24.0, _rates(71.0, 35.6), 936.0, capability=8.6),
    # NVIDIA V100 data sheet: tensor 130, 125 and 112; single precision 16.4, 15.7 and 14; no bfloat16; 1134 and 900 GB/s
    Accelerator(r"\bV100S\b", 32.0, {"float16": 130.0, "float32": 16.4}, 1134.0, capability=7.0),
    Accelerator(r"\bV100-SXM.*\b32 ?GB\b", 32.0, _V100_SXM, 900.0, capability=7.0, link_gb_s=NVLINK_2),
    Accelerator(r"\bV100-SXM.*\b16 ?GB\b", 16.0, _V100_SXM, 900.0, capability=7.0, link_gb_s=NVLINK_2),
    Accelerator(r"\bV100-SXM", None, _V100_SXM, 900.0, capability=7.0, link_gb_s=NVLINK_2),
    Accelerator(r"\bV100-PCIE.*\b32 ?GB\b", 32.0, _V100_PCIE, 900.0, capability=7.0),
    Accelerator(r"\bV100-PCIE.*\b16 ?GB\b", 16.0, _V100_PCIE, 900.0, capability=7.0),
    Accelerator(r"\bV100-PCIE", None, _V100_PCIE, 900.0, capability=7.0),
    Accelerator(r"\bV100\b.*\b32 ?GB\b", 32.0, {}, 900.0, capability=7.0),
    Accelerator(r"\bV100\b.*\b16 ?GB\b", 16.0, {}, 900.0, capability=7.0),
    # NVIDIA T4 data sheet: mixed precision 65, single precision 8.1; no bfloat16; 16 GB GDDR6, 320 GB/s
    Accelerator(r"\bT4\b", 16.0 * GDDR, {"float16": 65.0, "float32": 8.1}, 320.0, capability=7.5),
    # AMD Instinct MI355X and MI350X data sheets: 2516.6 and 2306.9 without sparsity, 157.3 and 144.2; 288 GB HBM3E, 8 TB/s; no TF32
    Accelerator(
        r"\bMI355X\b",
        288.0,
        {"bfloat16": 2516.6, "float16": 2516.6, "float32": 157.3},
        8000.0,
        link_gb_s=INFINITY_FABRIC,
    ),
    Accelerator(
        r"\bMI350X\b",
        288.0,
        {"bfloat16": 2306.9, "float16": 2306.9, "float32": 144.2},
        8000.0,
        link_gb_s=INFINITY_FABRIC,
    ),
    # AMD Instinct MI325X and MI300X data sheets: 1307.4 without sparsity, 163.4; 256 GB HBM3E 6 TB/s, 192 GB HBM3 5.3 TB/s
    Accelerator(r"\bMI325X\b", 256.0, _rates(1307.4, 163.4), 6000.0, link_gb_s=INFINITY_FABRIC),
    Accelerator(r"\bMI300X\b", 192.0, _rates(1307.4, 163.4), 5300.0, link_gb_s=INFINITY_FABRIC),
)


# names for the command plan: one for each row of the table that has a single memory size and speed
NAMES = (
    *(
        "GB200",
        "B300",
        "B200",
        "GH200-144GB",
        "GH200-96GB",
        "H200",
        "H200-NVL",
        "H20",
        "H100",
        "H100-NVL",
        "H100-PCIe",
        "H800",
    ),
    *("A100-80GB", "A100-40GB", "L40S", "L40", "L4", "A40", "A30", "A10G", "A10"),
    *("RTX-PRO-6000", "RTX-6000-Ada", "RTX-A6000", "RTX-5090", "RTX-4090", "RTX-4080", "RTX-3090"),
    *("V100-SXM2-32GB", "V100-SXM2-16GB", "T4", "MI355X", "MI350X", "MI325X", "MI300X"),
)


def find(name: str) -> Accelerator | None:
    """Return the row of a device, or None."""
    return next((row for row in TABLE if re.search(row.pattern, name, re.IGNORECASE)), None)


def peak_tflops(device_name: str, dtype: str) -> tuple[float | None, str]:
    """Return the dense peak of one device in TFLOP/s, or None and one message that says why there is none.

    Args:
        device_name: as the driver gives it, for example ``NVIDIA A100-SXM4-80GB``.
        dtype: type the products are computed in: ``bfloat16``, ``float16``, ``tf32`` or ``float32``.
    """
    if SLICE.search(device_name):
        return None, f"The peak of {device_name!r}, a part of a GPU, is not known."
    row = find(device_name)
    if row is None or not row.tflops:
        return None, f"The peak of device {device_name!r} is not known."
    if dtype not in row.tflops:
        return None, f"The data sheet of {device_name!r} gives no peak for {dtype}."
    return row.tflops[dtype], ""


def device_memory_gib(gpu_model: str) -> tuple[float | None, str]:
    """Return the memory of one device in GiB, or None and one message that says why it is not known."""
    if gpu_model == "any":
        return None, "gpu_model any names no device."
    if re.search(r"\bMIG\b", gpu_model):
        return None, f"The memory of {gpu_model!r}, a part of a GPU, is not known."
    row = find(gpu_model)
    if row is None or row.memory_gib is None:
        return None, f"The memory of gpu_model {gpu_model!r} is not known."
    return row.memory_gib, ""


def workspace_bytes(gpu_model: str) -> int:
    """Return the bytes of cuBLAS's workspaces on a device; the larger size if the device is not known."""
    row = find(gpu_model)
    older = row is not None and row.capability is not None and row.capability < HOPPER
    return OLDER_WORKSPACE_BYTES if older else WORKSPACE_BYTES


def unknown(gpu_model: str) -> str:
    """Return the message about a device whose memory is not known, with similar known names."""
    close = difflib.get_close_matches(gpu_model.upper()[:40], NAMES, n=4, cutoff=0.5)
    known = f"similar known ones are {', '.join(close)}" if close else "the command plan lists the known ones"
    return f"The memory of gpu_model {gpu_model[:40]!r} is not known; {known}. Or set gpu_memory_gib."


def usable_bytes(gpu_model: str, memory_gib: float = 0.0) -> int | None:
    """Return the bytes torch's allocator can hand out on a device that trains alone, or None where its memory is not known.

    Args:
        gpu_model: name of the device.
        memory_gib: memory of the device; 0: that of ``gpu_model``.
    """
    gib = memory_gib or device_memory_gib(gpu_model)[0]
    return None if gib is None else int((gib * (1 - DRIVER_SHARE) - context_gib(gib)) * GIB)


def most_usable_bytes(gpu_model: str, memory_gib: float = 0.0) -> int | None:
    """Return ``usable_bytes`` with the least that CUDA's context is known to take: more than that does certainly not fit."""
    gib = memory_gib or device_memory_gib(gpu_model)[0]
    return None if gib is None else int((gib * (1 - DRIVER_SHARE) - LEAST_CONTEXT_GIB) * GIB)


def context_gib(memory_gib: float) -> float:
    """Return what CUDA's context and kernels are assumed to take of a device with that much memory, GiB."""
    return min(MOST_CONTEXT_GIB, max(LEAST_CONTEXT_GIB, CONTEXT_SHARE * memory_gib))
