"""Translates workloads of IBM's own actuator ``SFTTrainer`` into workloads of this project. Imports pydantic.

Findings describe the choices made, and properties without a counterpart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .experiments import KINDS, fields
from .fields import Workload
from .ibm_names import (
    ABSENT,
    ADAPTER_DEFAULTS,
    DEFAULTS,
    ENDS,
    GPTQ_DEFAULTS,
    MODULES,
    MOST_MODULES,
    RENAMED,
    REQUIRED,
    WARMUP_THEN_STABLE,
)
from .ibm_values import FMS, Choices, Finding, ValueTranslator, is_true, number

WARMUP_THEN_STABLE_S = 180.0
NO_LIMIT_STEPS = 1_000_000
ADAPTERS_OF_IBM = ("lora", "gptq_lora")
MIXED_PRECISION = "accelerate_config_mixed_precision"


@dataclasses.dataclass
class Translation:
    """An experiment's properties here.

    Attributes:
        fixed: our properties whose values differ from our defaults.
        origin: for each of our properties the one of IBM's that set it; without an entry IBM's default set it.
        varied: for each of IBM's varied properties our name and values, or None if it has no counterpart.
        findings: messages for the user.
    """

    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    origin: dict[str, str] = dataclasses.field(default_factory=dict)
    varied: dict[str, tuple[str, list[Any]] | None] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def set(self, name: str, value: Any, set_by: str | None = None) -> None:
        """Set one of our properties; ``set_by`` is the property of the study that sets it, None for IBM's default."""
        self.fixed[name] = value
        self.origin.pop(name, None)
        if set_by:
            self.origin[name] = set_by


def translate(
    experiment: str, given: Mapping[str, Any], varied: Mapping[str, Sequence[Any]], choices: Choices
) -> Translation:
    """Translate the properties of one experiment.

    Args:
        experiment: our identifier.
        given: IBM's properties that the experiment fixes.
        varied: IBM's properties that the space varies, with their values; the required ones are among them.
        choices: the user's options.

    Raises:
        InvalidValue: a value that has to be a number is none.
    """
    kind = KINDS[experiment]
    known = fields(choices.actuator, kind)
    # a dimension with one value fixes it
    ends = {name: varied[name][0] for name in ENDS if len(varied.get(name, ())) == 1}
    values = ValueTranslator(choices, max(_whole("model_max_length", varied), default=0))
    found = Translation(findings=values.findings)
    found.varied = {name: None if name in ends else _vary(name, wanted, values) for name, wanted in varied.items()}
    _join_precision(found, {**_defaults(experiment), **given}, varied, values)
    covered = {pair[0] for pair in found.varied.values() if pair}
    for name, value in {**_defaults(experiment), **given}.items():
        stated = name if name in given else None
        if name in varied or name in ENDS or (name == "bf16" and not is_true(value)):
            continue
        for ours, translated in values.of(name, value).items():
            # bf16 comes before accelerate_config_mixed_precision and takes precedence if it is true
            settled = ours == "mixed_precision" and found.fixed.get(ours) == "bf16"
            if ours in known and ours not in covered and not settled:
                found.set(ours, translated, stated)
    if kind.task == "benchmark":
        _set_ends(found, {**given, **ends}, values)
        found.origin = {ours: name for ours, name in found.origin.items() if name not in ends}
    found.set("weights", choices.weights)
    if kind.sets.get("method") in ADAPTERS_OF_IBM:
        found.set("target_modules", _modules(varied.get("model_name", ()), values))
    _check_backend(found, _whole("number_gpus", varied), experiment, values)
    _check_attention(found, _whole("number_gpus", varied), values)
    found.fixed = {name: value for name, value in found.fixed.items() if name in known and not _is_default(name, value)}
    if message := ABSENT.get((choices.actuator, experiment)):
        values.add_finding(f"{experiment} is not available in {choices.actuator}: {message}.", same=False)
    return found


def workload(experiment: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workload of a measurement of IBM's actuator as our properties; properties with our default are left out.

    Args:
        experiment: our identifier of the experiment.
        measured: the properties of IBM's measurement; missing ones have its defaults.
    """
    required = {name: measured[name] for name in REQUIRED if name in measured}
    given = {name: value for name, value in measured.items() if name not in required}
    varied = {name: [value] for name, value in required.items()}
    return required | translate(experiment, given, varied, Choices(FMS, weights="pretrained", adaptive=True)).fixed


def _defaults(experiment: str) -> dict[str, Any]:
    method = KINDS[experiment].sets.get("method")
    defaults = dict(DEFAULTS)
    if method in ADAPTERS_OF_IBM:
        defaults |= ADAPTER_DEFAULTS
    if method == "gptq_lora":
        defaults |= GPTQ_DEFAULTS
    return defaults


def _is_default(name: str, value: Any) -> bool:
    field = Workload.model_fields[name]
    same_kind = isinstance(value, bool) == isinstance(field.default, bool)
    return not field.is_required() and same_kind and value == field.default


def _whole(name: str, varied: Mapping[str, Sequence[Any]]) -> list[int]:
    return [int(number(name, value)) for value in varied.get(name, ())]


def _join_precision(
    found: Translation, fixed: Mapping[str, Any], varied: Mapping[str, Sequence[Any]], values: ValueTranslator
) -> None:
    """Make one dimension of those that are mixed_precision here: bf16 counts where it is true."""
    names = [name for name in (MIXED_PRECISION, "bf16") if name in varied]
    if not names:
        return
    joined: list[Any] = []
    for bf16 in varied.get("bf16", (fixed["bf16"],)):
        for mode in varied.get(MIXED_PRECISION, (fixed[MIXED_PRECISION],)):
            asked = ("bf16", True) if is_true(bf16) else (MIXED_PRECISION, mode)
            joined += [one for one in values.of(*asked).values() if one not in joined]
    found.varied[names[0]] = ("mixed_precision", joined) if joined else None
    for name in names[1:]:
        found.varied[name] = None
        values.add_finding(
            f"{name} and {names[0]} are one property here: mixed_precision {', '.join(map(str, joined))}."
        )


def _vary(name: str, wanted: Sequence[Any], values: ValueTranslator) -> tuple[str, list[Any]] | None:
    """Return our name and values of a varied property, or None if it has no counterpart."""
    if name in ENDS:
        values.add_finding(f"{name} is varied, which has no counterpart: measurements stop by themselves.", same=False)
        return None
    ours, translated = RENAMED.get(name, name), []
    if not wanted and ours in Workload.model_fields:
        text = f"{name} has no values of its own and takes those of the experiment, which are others here"
        values.add_finding(f"{text}: write propertyDomain with values.", same=False)
        return ours, []
    for value in wanted:
        answer = values.of(name, value).get(ours)
        if answer is not None and answer not in translated:
            translated.append(answer)
    return (ours, translated) if translated else None


def _set_ends(found: Translation, given: Mapping[str, Any], values: ValueTranslator) -> None:
    """Translate the properties that end a measurement."""
    given = {name: value for name, value in given.items() if name in ENDS and value not in (None, "None")}
    ends = {name: given.get(name, DEFAULTS[name]) for name in ENDS}
    steps, epochs, seconds = (
        number(name, ends[name]) for name in ("max_steps", "num_train_epochs", "stop_after_seconds")
    )
    steps, stated = int(steps), [name for name in ENDS if name in given]
    if values.choices.adaptive:
        not_by = f"not by {', '.join(f'{name} {given[name]}' for name in stated)}" if stated else "not after 1 epoch"
        values.add_finding(f"Each measurement ends when its rate has converged, {not_by}.")
        return
    automatic = ends["auto_stop_method"] == WARMUP_THEN_STABLE
    if ends["auto_stop_method"] and not automatic:
        text = f"auto_stop_method {ends['auto_stop_method']} has no counterpart: there is {WARMUP_THEN_STABLE}."
        values.add_finding(text, same=False)
    if automatic:
        seconds = WARMUP_THEN_STABLE_S
        values.add_finding(f"auto_stop_method {WARMUP_THEN_STABLE} becomes stop_after_seconds 180, warm-up included.")
    data = values.choices.data
    if seconds <= 0 and steps <= 0 and not data:
        text = "Each measurement ends when its rate has converged, at the latest after 100 steps or 120 s"
        values.add_finding(f"{text}; IBM's ends after num_train_epochs {epochs:g}.")
        return
    found.set("target_ci_percent", 0.0)
    origin = "auto_stop_method" if automatic else "stop_after_seconds" if "stop_after_seconds" in given else None
    found.set("stop_after_seconds", max(seconds, 0.0), origin)
    found.set("max_steps", steps if steps > 0 else NO_LIMIT_STEPS, "max_steps" if "max_steps" in given else None)
    if steps > 0:
        return
    if data:
        if not epochs.is_integer():
            values.add_finding(
                f"num_train_epochs {epochs:g} becomes {math.ceil(epochs)}: it must be a whole number.", same=False
            )
        found.set("num_train_epochs", math.ceil(epochs), "num_train_epochs" if "num_train_epochs" in given else None)
    elif "num_train_epochs" in given:
        values.add_finding(f"num_train_epochs {epochs:g} is left out: synthetic data has no end.")


def _modules(names: Iterable[Any], values: ValueTranslator) -> str:
    """Return the LoRA target modules for these models."""
    wanted = {str(name): MODULES.get(str(name), MOST_MODULES) for name in names}
    chosen = max(wanted.values(), key=list(wanted.values()).count, default=MOST_MODULES)
    if others := [f"{name} ({modules})" for name, modules in wanted.items() if modules != chosen]:
        text = f"target_modules is {chosen} for all models; IBM's differ for {', '.join(others)}"
        values.add_finding(f"{text}: make a separate space for them.", same=False)
    return chosen


def _check_backend(found: Translation, counts: Sequence[int], experiment: str, values: ValueTranslator) -> None:
    """Leave FSDP out where IBM's actuator does not use it, and where it is not supported here."""
    if found.fixed.get("distributed_backend") != "FSDP":
        return
    if max(counts, default=0) < 2:
        # IBM's actuator uses no backend below two GPUs; DDP has no effect on one device
        del found.fixed["distributed_backend"]
    elif KINDS[experiment].sets.get("method") == "gptq_lora":
        values.add_finding("distributed_backend becomes DDP: GPTQ-LoRA is not supported with FSDP.", same=False)
        del found.fixed["distributed_backend"]
    elif 0 in counts:
        text = (
            "distributed_backend FSDP needs GPUs, and the space has number_gpus 0, for which IBM's actuator uses none"
        )
        values.add_finding(f"{text}: make a separate space for it.", same=False)


def _check_attention(found: Translation, counts: Sequence[int], values: ValueTranslator) -> None:
    """Leave IBM's default of ``flash_attn`` out where the study has no GPU: flash attention needs one."""
    by_default = "attn_implementation" in found.fixed and "attn_implementation" not in found.origin
    if by_default and counts and not any(counts):
        del found.fixed["attn_implementation"]
        values.add_finding("flash_attn is True by default and needs a GPU: attn_implementation stays auto.")
