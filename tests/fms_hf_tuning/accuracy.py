"""Predicts the memory of small workloads with fms-hf-tuning, and measures it: ``python -m tests.fms_hf_tuning.accuracy JOBS``.

JOBS is a file with a job in each line, of which the peaks are printed as JSON, bytes. What training allocates is counted by PyTorch's
profiler; the parameters are there before. The kernels of bitsandbytes for CPUs allocate more than those for CUDA, so products with
quantised weights run as those for CUDA would, with weights of zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers

from ado_actuators.fms_hf_tuning import stack
from ado_actuators.fms_hf_tuning.core.protocol.messages import Job
from ado_actuators.fms_hf_tuning.core.trainer import accelerate_state
from ado_actuators.fms_hf_tuning.core.trainer.memory_estimate import four_bits, tracing
from ado_actuators.fms_hf_tuning.core.trainer.memory_estimate.ledger import Sharing

from ..memory import held


def predicted(job: Job) -> int:
    """Return the peak of a trace."""
    ledger, _ = tracing.trace(stack, job, cuda=False)
    return max(peak.total for peak in ledger.peaks(Sharing()).values())


def real(job: Job) -> int:
    """Train, and return the peak."""
    before: list[int] = []
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    class Begin(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
            before.append(stored_bytes(model))
            profile.__enter__()

    with _products_of_cuda():
        stack.train(dataclasses.replace(job, task="benchmark"), tracing.QuietClock(Begin()))
    profile.__exit__(None, None, None)
    return before[0] + max(allocated for _, allocated in held(profile))


def stored_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, those of quantised scales included."""
    tensors = [*model.parameters(), *model.buffers()]
    for state in (getattr(one, "quant_state", None) for one in model.parameters()):
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    storages = [one.untyped_storage() for one in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


@contextlib.contextmanager
def _products_of_cuda() -> Iterator[None]:
    product, whole = bitsandbytes.matmul_4bit, four_bits._whole
    bitsandbytes.matmul_4bit, four_bits._whole = _product, _zeros
    try:
        yield
    finally:
        bitsandbytes.matmul_4bit, four_bits._whole = product, whole


def _product(given: Any, weight: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
    shape = quant_state.shape
    return four_bits._product(
        given, weight, types.SimpleNamespace(shape=shape, scales=shape.numel() // four_bits.NF4_BLOCK), out, bias
    )


def _zeros(like: torch.Tensor, state: Any) -> torch.Tensor:
    scales = like.new_empty(state.scales, dtype=torch.float32)
    weight = like.new_zeros(state.shape)
    del scales
    return weight


def main() -> None:
    """Print a line for each job."""
    stack.load()
    jobs = [Job.from_line(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    # one after the other without a reset, as an estimate traces several workloads
    traced = [predicted(job) for job in jobs]
    for job, peak in zip(jobs, traced, strict=True):
        with accelerate_state.restored():
            print("peaks " + json.dumps([peak, real(job)]))


if __name__ == "__main__":
    main()
