"""Where a field of a workload applies: the methods, actuators and tasks that have it, as the extra of its pydantic field."""

from __future__ import annotations

from typing import Any

ADAPTERS = ("lora", "qlora", "gptq_lora")
TRL = ("sfttrainer",)
FMS = ("fms_hf_tuning",)


def where(
    methods: tuple[str, ...] = (),
    stacks: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the extra of a field.

    Args:
        methods: fine-tuning methods that have the field; empty: all.
        stacks: actuators that have it; empty: all.
        examples: values that ado offers for a text.
        tasks: tasks that have it; empty: all.
    """
    return {"methods": list(methods), "stacks": list(stacks), "values": list(examples), "tasks": list(tasks)}
