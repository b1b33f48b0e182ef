"""What the library gets in the trace of a memory estimate instead of plugins that read weights or need CUDA. Imports torch.

- Weights in 4 bits are simulated (``core.trainer.memory_estimate.four_bits``). The plugin for bitsandbytes prepares the model, also for
  GPTQ, whose own plugin needs Triton and does the same: it freezes the model, and converts no parameter. The adapters are PEFT's for each.
- ``padding_free`` has the collator with which its plugin replaces that of the library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

from .core.protocol.messages import Job, JobWorkload

GPTQ_BITS = 4


def is_traced(job: Job) -> bool:
    """Return whether a job is the trace of a memory estimate, whose tensors have no data."""
    return job.task == "memory_estimate"


def workload(asked: JobWorkload) -> JobWorkload:
    """Return the workload whose settings the library gets in a trace of ``asked``."""
    bitsandbytes: dict[str, Any] = {"method": "qlora", "quantisation": "nf4"} if asked.method == "gptq_lora" else {}
    return dataclasses.replace(asked, padding_free=False, **bitsandbytes)


def quantised_with_gptq(network: Any, asked: JobWorkload) -> Any:
    """Replace the linear layers of ``network`` by simulated ones of GPTQ, and return it.

    A model without ``quantization_config`` gets groups of 128 inputs.

    Raises:
        Refused: the model has other weights than those of GPTQ with 4 bits.
    """
    import torch

    from .core.protocol.messages import AUTOCAST_DTYPES
    from .core.trainer.errors import Refused
    from .core.trainer.memory_estimate import four_bits

    stored = dict(getattr(network.config, "quantization_config", None) or {})
    kind, bits = stored.get("quant_method", "gptq"), stored.get("bits", GPTQ_BITS)
    if (kind, bits) != ("gptq", GPTQ_BITS):
        raise Refused(
            f"finetune_memory_estimate traces GPTQ with {GPTQ_BITS} bits, but the model has {str(kind)[:20]} with {str(bits)[:20]} bits."
        )
    inputs = stored.get("group_size", four_bits.GPTQ_GROUP)
    computed = getattr(torch, AUTOCAST_DTYPES.get(asked.mixed_precision, asked.torch_dtype))
    return four_bits.quantised(network, computed, kind="gptq", group=inputs if inputs and inputs > 0 else None)


@contextlib.contextmanager
def plugins(asked: JobWorkload, loader: Any) -> Iterator[None]:
    """Let the library's plugins work without CUDA and without weights inside the block.

    Args:
        asked: the workload.
        loader: replaces the class from which the plugin for bitsandbytes loads a model.
    """
    from tuning.data import setup_dataprocessor

    with contextlib.ExitStack() as changes:
        if asked.method in ("qlora", "gptq_lora"):
            from fms_acceleration_peft import framework_plugin_bnb as plugin

            changes.enter_context(mock.patch.object(plugin, "AutoModelForCausalLM", loader))
        if asked.method == "gptq_lora":
            changes.enter_context(mock.patch.object(plugin.BNBAccelerationPlugin, "augmentation", _with_adapters))
        if asked.padding_free:
            changes.enter_context(mock.patch.object(setup_dataprocessor, "get_data_collator", _flattening))
        yield


def _with_adapters(plugin: Any, model: Any, train_args: Any, modifiable_args: Any) -> tuple[Any, Any]:
    """Do what the plugin for GPTQ does, which unlike that for bitsandbytes also trains without mixed precision."""
    import peft
    from fms_acceleration_peft import framework_plugin_bnb

    prepared = framework_plugin_bnb._prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=train_args.gradient_checkpointing,
        gradient_checkpointing_kwargs=train_args.gradient_checkpointing_kwargs,
    )
    with mock.patch.object(peft.LoraModel, "_create_new_module", staticmethod(_adapter_of_gptq)):
        return peft.get_peft_model(prepared, modifiable_args[0]), (None,)


def _adapter_of_gptq(config: Any, name: str, layer: Any, **options: Any) -> Any:
    """Return PEFT's adapter for GPTQ, which unlike that for bitsandbytes also converts its input under autocast."""
    from peft.tuners.lora.gptq import GPTQLoraLinear

    # an argument since PEFT 0.19
    added = (config,) if "config" in inspect.signature(GPTQLoraLinear.__init__).parameters else ()
    return GPTQLoraLinear(layer, name, *added, **options)


def _flattening(*unused: Any, **also_unused: Any) -> Any:
    import transformers

    return transformers.DataCollatorWithFlattening()
