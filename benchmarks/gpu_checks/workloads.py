"""The workloads of the parts, by the memory of the device and the type of number it computes in. Pure: standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any

Values = dict[str, Any]
MANY_STEPS = 1_000_000
EAGER: Values = {"attn_implementation": "eager"}
# a few steps, without a limit of time or precision
SHORT: Values = {"max_steps": 6, "stop_after_seconds": 0, "target_ci_percent": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload with a name.

    Attributes:
        name: for tables.
        values: property values; ``method`` among them, which names the experiment.
        needs_gib: memory of a device that it needs, context included.
        package: the optional package it needs, or empty.
    """

    name: str
    values: Values
    needs_gib: float
    package: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chooses workloads for a device.

    Attributes:
        device: ``gpu`` or ``cpu``.
        gib: memory of the device; 0 for a CPU.
        dtype: ``bfloat16``, or ``float16`` on GPUs without it.
        quick: the smallest set that passes through all the code.
    """

    device: str
    gib: float = 0.0
    dtype: str = "bfloat16"
    quick: bool = False

    @property
    def base(self) -> Values:
        """The workload of the parts that measure time: 1B parameters if they fit."""
        if self.device == "cpu":
            return _tiny()
        if self.gib >= 38:
            return self._gpu("llama3.2-1b", 2048, 4, optim="adamw_torch_fused")
        if self.gib >= 20:
            return self._gpu("llama3.2-1b", 1024, 2, optim="adamw_torch_fused")
        length, batch = (1024, 4) if self.gib >= 10 else (512, 2)
        return self._gpu("smollm2-135m", length, batch, optim="adamw_torch_fused")

    def memory(self) -> list[Case]:
        """Workloads whose memory is predicted and measured, smaller ones first."""
        if self.device == "cpu":
            return [
                Case("tiny full 64x2", {**_tiny(), **SHORT}, 0.0),
                Case("tiny LoRA 64x2", {**_tiny(), "method": "lora", **SHORT}, 0.0),
            ]
        cases = self._memory_of_gpus()
        if not self.quick:
            return cases
        return [cases[0], next(case for case in cases if case.values.get("method") == "lora")]

    def _memory_of_gpus(self) -> list[Case]:
        small, base, large = "qwen2.5-0.5b", "llama3.2-1b", "llama3.1-8b"
        fused, lora = {"optim": "adamw_torch_fused"}, {"method": "lora"}
        checkpointed = {"gradient_checkpointing": True}
        autocast = {"torch_dtype": "float32", "mixed_precision": "bf16" if self.dtype == "bfloat16" else "fp16"}
        packed = {"packing": True, "packing_strategy": "wrapped", "dataset_id": "synthetic-uniform"}
        flash = {"attn_implementation": "flash_attention_2"}
        # name, model, length, batch, what else, GiB that it needs, package
        rows: list[tuple[str, str, int, int, Values, float, str]] = [
            ("135M full 512x4, fused", "smollm2-135m", 512, 4, fused, 6, ""),
            ("0.5B full 512x4, fused", small, 512, 4, fused, 10, ""),
            ("0.5B full 2048x4, checkpointing, fused", small, 2048, 4, checkpointed | fused, 14, ""),
            ("0.5B float32, autocast 1024x2", small, 1024, 2, autocast, 20, ""),
            ("0.5B full 1024x4, packing, fused", small, 1024, 4, packed | fused, 16, ""),
            ("1B full 2048x2", base, 2048, 2, {}, 28, ""),
            ("1B LoRA 512x4", base, 512, 4, lora, 12, ""),
            ("1B LoRA 2048x4, dropout 0.1", base, 2048, 4, lora | {"lora_dropout": 0.1}, 38, ""),
            ("1B LoRA 2048x4, eager, checkpointing", base, 2048, 4, lora | checkpointed | EAGER, 20, ""),
            ("1B QLoRA 2048x2", base, 2048, 2, {"method": "qlora"}, 20, "bitsandbytes"),
            ("1B full 2048x2, flash attention, fused", base, 2048, 2, flash | fused, 28, "flash-attn"),
            ("8B LoRA 2048x1, checkpointing", large, 2048, 1, lora | checkpointed, 22, ""),
        ]
        return [
            Case(name, self._gpu(model, length, batch, **more, **SHORT), needs, package)
            for name, model, length, batch, more, needs, package in rows
        ]

    def edge(self) -> Values:
        """The workload whose largest batch is searched."""
        steps = {**SHORT, "max_steps": 4}
        if self.gib >= 20:
            return self._gpu("llama3.2-1b", 2048, 4, optim="adamw_torch_fused", **steps)
        return self._gpu("smollm2-135m", 1024, 4, optim="adamw_torch_fused", **steps)

    def rates(self) -> list[Case]:
        """Three shapes whose speed is compared with its limits."""
        few = {**SHORT, "max_steps": 20}
        if self.device == "cpu":
            shapes = [(64, 2)] if self.quick else [(64, 2), (128, 4), (32, 8)]
            return [
                Case(f"tiny full {length}x{batch}", {**_tiny(length, batch), **few}, 0.0) for length, batch in shapes
            ]
        small = self._gpu("qwen2.5-0.5b", 512, 8, optim="adamw_torch_fused", **few)
        large = self._gpu("llama3.1-8b", 2048, 1, method="lora", gradient_checkpointing=True, **few)
        cases = [
            Case("base", {**self.base, **few}, 0),
            Case("0.5B full 512x8", small, 14),
            Case("8B LoRA 2048x1, checkpointing", large, 22),
        ]
        return cases[:1] if self.quick else cases

    def repeated(self) -> list[Values]:
        """Ten workloads for one trainer, of different size and method in turns."""
        if self.device == "cpu":
            full, lora = {**_tiny(), **SHORT}, {**_tiny(32, 4), "method": "lora", **SHORT}
        else:
            model = "qwen2.5-0.5b" if self.gib >= 14 else "smollm2-135m"
            full = self._gpu(model, 512, 4, **SHORT)
            lora = self._gpu(model, 1024, 2, method="lora", **SHORT)
        return [full, lora] * (2 if self.quick else 5)

    def patched(self) -> list[Case]:
        """Workloads that change libraries, each with a trainer of its own."""
        if self.device == "cpu":
            return []
        few = {**SHORT, "max_steps": 12}
        small = self._gpu("smollm2-135m", 512, 4, optim="adamw_torch_fused", **few)
        return [
            Case("use_liger_kernel", {**small, "use_liger_kernel": True}, 6, "liger-kernel"),
            Case("torch_compile", {**small, "torch_compile": True}, 6),
        ]

    def _gpu(self, model: str, length: int, batch: int, **more: Any) -> Values:
        return {
            "model_name": model,
            "model_max_length": length,
            "batch_size": batch,
            "number_gpus": 1,
            "torch_dtype": self.dtype,
            **more,
        }


def _tiny(length: int = 64, batch: int = 2) -> Values:
    return {
        "model_name": "tiny-llama-5m",
        "model_max_length": length,
        "batch_size": batch,
        "number_gpus": 0,
        "cpus_per_process": 1,
    }


def refusal(case: Case, gib: float, absent: dict[str, str]) -> str:
    """Return why a workload is left out on a device of ``gib`` without the ``absent`` packages, or nothing."""
    if case.package in absent:
        return f"{case.package} is not installed"
    if case.needs_gib > gib > 0:
        return f"it needs {case.needs_gib:g} GiB, the device has {gib:.1f} GiB"
    return ""
