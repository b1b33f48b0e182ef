"""Which workloads a memory estimate can trace. Standard library only: whoever wants an estimate asks before a trainer starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# what an estimate would get wrong: kernels and formats that allocate in ways a trace on the CPU does not show
UNTRACEABLE = ("use_liger_kernel", "torch_compile", "padding_free", "fast_kernels", "fast_moe", "multipack")


def refusal(workload: Mapping[str, Any]) -> str | None:
    """Return the sentence for a workload that cannot be traced, or None."""
    if workload["method"] in ("qlora", "gptq_lora"):
        return f"finetune_memory_estimate cannot trace method {workload['method']}: kernels of quantised weights need data."
    found = next((name for name in UNTRACEABLE if workload[name]), None)
    return f"finetune_memory_estimate cannot trace {found}: what its kernels allocate is not known." if found else None
