"""Turns exceptions of a trace into messages. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from ..errors import BadInput, Refused


@contextlib.contextmanager
def explained(model_name: str) -> Iterator[None]:
    """Turn an exception of a trace into a message; the log gets the traceback.

    Raises:
        Refused: the workload cannot be traced.
    """
    model = f"finetune_memory_estimate cannot trace model {model_name[-60:]}"
    try:
        yield
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise Refused(f"{model}: its shapes depend on data.") from error
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
        if isinstance(error, BadInput):
            raise
        if "BF16 type" in str(error):
            # torch's implementation of grouped matrix products on fake tensors supports no other type
            raise Refused(
                "finetune_memory_estimate traces experts in bfloat16 only: use torch_dtype bfloat16 or mixed_precision bf16."
            ) from error
        raise Refused(f"{model}: its code failed", error) from error
