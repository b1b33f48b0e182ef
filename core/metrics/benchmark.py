"""Computes the properties of a throughput experiment from the records of all ranks. Pure: no torch, no clock, no I/O.

Every output is either in ``properties``, or in ``omitted`` with a reason. A missing number is never 0, -1 or NaN.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..protocol.messages import AUTOCAST_DTYPES, COUNTS, Record
from ..protocol.stopping import LEAST_MEASURED
from ..workload.fields import Workload
from ..workload.outputs import DEVICE_OUTPUTS, LEAST_CPU_SHARE_PERCENT, OUTPUTS
from ..workload.validation import without_effect
from . import accelerators, flops, roofline, throughput
from .accelerators import GIB
from .report import Report
from .throughput import ImpossibleRecord

__all__ = ["OUTPUTS", "ImpossibleRecord", "Report", "make"]

NO_DEVICE_SAMPLES = "No device was sampled."
MORE_STEPS = {
    "max_steps": " Raise max_steps.",
    "stop_after_seconds": " Raise min_steps or stop_after_seconds.",
    "data": " Raise num_train_epochs, or use more data.",
}
SHARE_OF_LIMIT = "limit_percent"
SPEEDS = ("tflops_per_device", "mfu_percent", SHARE_OF_LIMIT)
# least ratio of mean length to model_max_length for which the bound, which assumes full samples, applies
LEAST_LENGTH = 0.99


def make(
    records: Sequence[Record],
    workload: Workload,
    *,
    device: Mapping[str, float] | None,
    device_names: Collection[str],
    price_usd_per_device_hour: float | None,
    total_s: float,
    startup_s: float | None = None,
    omitted: Mapping[str, str] | None = None,
) -> Report:
    """Return the report of a measurement that ran.

    Args:
        records: one ``protocol.messages.Record`` per rank, in any order.
        workload: what was trained.
        device: properties summarised from the samples of the devices, or None.
        device_names: names of the GPUs as the driver gives them, or ``cpu``.
        price_usd_per_device_hour: price of a GPU-hour, or of the hour of a process without GPUs, or None.
        total_s: wall time of the whole measurement, seconds.
        startup_s: wall time until the training processes were ready, seconds.
        omitted: reasons for device properties that are missing.

    Raises:
        ImpossibleRecord: the records contradict time, arithmetic or each other.
    """
    found = _Findings(omitted={**dict.fromkeys(DEVICE_OUTPUTS, NO_DEVICE_SAMPLES), **(omitted or {})})
    ranks = sorted(records, key=lambda record: record["rank"])
    measured = _measured(ranks)
    found.put(is_valid=1, failure="none", first_step_s=measured.steps_s[0])
    found.put(warmup_steps=measured.skip, steady=int(bool(ranks[0]["steady"])))
    _note_few_steps(found, measured, ranks[0])
    found.notes += (ranks[0].get("facts") or {}).get("notes") or []
    _note_short_steps(found, measured, ranks, workload)
    found.notes += without_effect(workload)
    _put_times(found, measured)
    _put_rates(found, measured, max(1, workload.number_gpus))
    _put_flops(found, measured, ranks[0], workload, set(device_names))
    _put_memory(found, ranks, device or {})
    _put_cpu_rate(found, workload)
    _note_busy_machine(found, workload)
    _put_cost(found, measured, workload, price_usd_per_device_hour)
    _put_losses(found, ranks, workload)
    found.put(total_s=total_s, model_load_s=_phase(ranks, "model_load_s"), startup_s=startup_s)
    found.put(
        model_parameters=ranks[0].get("model_parameters"), trainable_parameters=ranks[0].get("trainable_parameters")
    )
    return found.report(measured.steps_s)


@dataclasses.dataclass
class _Findings:
    omitted: dict[str, str]
    properties: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def put(self, **properties: Any) -> None:
        """Add properties; None and values that are not finite count as missing."""
        for name, value in properties.items():
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                self.omitted[name] = "The value is not finite."
                continue
            self.properties[name] = value

    def omit(self, reason: str, *names: str) -> None:
        self.omitted.update(dict.fromkeys(names, reason))

    def report(self, steps_s: list[float]) -> Report:
        return Report.complete(
            self.properties, self.omitted, "The trainer did not report it.", steps_s=steps_s, notes=tuple(self.notes)
        )


@dataclasses.dataclass(frozen=True)
class _Measured:
    steps_s: list[float]
    skip: int
    times: throughput.StepTimes
    totals: dict[str, int]


def _measured(ranks: Sequence[Record]) -> _Measured:
    steps_s = throughput.slowest([throughput.durations(rank["train_begin_s"], rank["step_end_s"]) for rank in ranks])
    skips = {int(rank["warmup_steps"]) for rank in ranks}
    if len(skips) != 1 or not 0 <= min(skips) < max(1, len(steps_s)):
        raise ImpossibleRecord(f"Warm-up of {sorted(skips)} steps does not fit {len(steps_s)} steps.")
    skip = skips.pop()
    totals: dict[str, int] = {
        name: throughput.total(name, [rank[name] for rank in ranks], len(steps_s), skip) for name in COUNTS
    }
    if totals["real_tokens"] > totals["token_slots"]:
        raise ImpossibleRecord(
            f"There are more real tokens ({totals['real_tokens']}) than token slots ({totals['token_slots']})."
        )
    return _Measured(steps_s, skip, throughput.summarise(steps_s[skip:]), totals)


def _note_few_steps(found: _Findings, measured: _Measured, record: Record) -> None:
    """Note that too few steps are measured for a rate that can be relied on, and what would give more."""
    count = measured.times.count
    if count >= LEAST_MEASURED:
        return
    remedy = MORE_STEPS.get(record["stopped_by"], "")
    found.notes.append(
        f"{count} step{' was' if count == 1 else 's were'} measured, after {measured.skip} of warm-up; a reliable rate needs "
        f"{LEAST_MEASURED}.{remedy}"
    )


def _note_short_steps(found: _Findings, measured: _Measured, ranks: Sequence[Record], workload: Workload) -> None:
    """Note steps with fewer samples than the workload requests, for example the last step of an epoch."""
    whole = workload.batch_size * workload.gradient_accumulation_steps
    samples = [sum(step) for step in zip(*(rank["samples"][measured.skip :] for rank in ranks), strict=True)]
    short = sum(count < whole for count in samples)
    if short:
        found.notes.append(
            f"{short} of {len(samples)} measured steps had fewer than the {whole} samples of batch_size x "
            "gradient_accumulation_steps: the data set ended there."
        )


def _put_cpu_rate(found: _Findings, workload: Workload) -> None:
    """Relate the rate of training on CPUs to the CPU time that it took: on a busy machine this can still be compared."""
    name, used_percent = "dataset_tokens_per_cpu_second", found.properties.get("cpu_compute_utilization")
    if workload.number_gpus:
        found.omit("It is computed for training on CPUs only.", name)
    elif used_percent:
        found.put(**{name: found.properties["dataset_tokens_per_second"] / (used_percent / 100)})
    else:
        found.omit(found.omitted.get("cpu_compute_utilization", NO_DEVICE_SAMPLES), name)


def _note_busy_machine(found: _Findings, workload: Workload) -> None:
    """Note that other work took CPU time. The rate of training on CPUs then counts as not steady: its interval cannot show this."""
    share = found.properties.get("cpu_share_percent")
    if share is None or share >= LEAST_CPU_SHARE_PERCENT:
        return
    instead = "" if workload.number_gpus else ", or compare dataset_tokens_per_cpu_second"
    found.notes.append(
        f"The machine was busy: the training processes got {share:.0f} % of the CPU time that they could have used. "
        f"Measure again without other work{instead}."
    )
    if not workload.number_gpus:
        found.put(steady=0)


def _put_times(found: _Findings, measured: _Measured) -> None:
    times = measured.times
    found.put(
        train_runtime_s=times.total_s,
        step_time_median_s=times.median_s,
        step_time_mean_s=times.mean_s,
        step_time_p95_s=times.p95_s,
        step_time_cv=times.cv,
        measured_steps=times.count,
        throughput_ci95_percent=times.ci95_percent,
    )
    if times.cv is None:
        found.omit("The spread of a single measured step is undefined.", "step_time_cv", "throughput_ci95_percent")


def _put_rates(found: _Findings, measured: _Measured, devices: int) -> None:
    seconds, totals = measured.times.total_s, measured.totals
    found.put(
        train_samples_per_second=throughput.rate(totals["samples"], seconds),
        train_steps_per_second=throughput.rate(measured.times.count, seconds),
    )
    for prefix, count in (("train", "token_slots"), ("dataset", "real_tokens"), ("trained", "trained_tokens")):
        tokens_per_second = throughput.rate(totals[count], seconds)
        found.properties[f"{prefix}_tokens_per_second"] = tokens_per_second
        found.properties[f"{prefix}_tokens_per_second_per_gpu"] = tokens_per_second / devices


def _put_flops(
    found: _Findings, measured: _Measured, record: Record, workload: Workload, device_names: set[str]
) -> None:
    totals = measured.totals
    if not totals["token_slots"]:
        found.omit("The trainer counted no tokens.", "model_flops_per_token", *SPEEDS)
        return
    architecture = record.get("architecture") or {}
    if workload.dataset_image_field:
        unknown = f"FLOPs of model type {architecture.get('model_type')!r} are not known."
        found.omit(unknown, "model_flops_per_token", *SPEEDS)
        return
    try:
        per_token = flops.per_token(
            architecture,
            method=workload.method,
            token_slots=totals["token_slots"],
            squared_lengths=totals["squared_lengths"],
            r=workload.r,
            target_modules=workload.target_modules,
            samples=totals["samples"],
            num_virtual_tokens=workload.num_virtual_tokens,
            adapters=(record.get("facts") or {}).get("adapters"),
            counted=(record.get("facts") or {}).get("counted_flops"),
            output_share=_output_share(totals, record),
        )
    except flops.UnknownArchitecture as error:
        found.omit(str(error), "model_flops_per_token", *SPEEDS)
        return
    found.put(model_flops_per_token=per_token)
    device_name, *others = sorted(device_names)
    if others:
        mixed = f"Devices of different models were used: {', '.join((device_name, *others))}."
        found.omit(mixed, *SPEEDS)
        return
    peak, reason = accelerators.peak_tflops(device_name, _compute_type(record, workload))
    if peak is None:
        found.omit(reason, *SPEEDS)
        return
    tflops = per_token * found.properties["train_tokens_per_second_per_gpu"] / 1e12
    found.put(tflops_per_device=tflops)
    if workload.fp8_recipe != "none":
        found.omit("Some products have 8 bits, others 16, and the peaks of both differ.", "mfu_percent", SHARE_OF_LIMIT)
        return
    found.put(mfu_percent=100 * tflops / peak)
    _put_share_of_limit(found, totals, record, workload.model_copy(update={"gpu_model": device_name}))


def _output_share(totals: dict[str, int], record: Record) -> float:
    """Return the share of the token slots that pass through the output layer: a kernel may leave out those without loss."""
    only_trained = (record.get("facts") or {}).get("output_layer") == "trained tokens"
    return totals["trained_tokens"] / totals["token_slots"] if only_trained else 1.0


def _put_share_of_limit(found: _Findings, totals: dict[str, int], record: Record, workload: Workload) -> None:
    """Relate the rate to the bound that the device's peak rates set, if samples are as long as the bound assumes."""
    if totals["squared_lengths"] < LEAST_LENGTH * totals["token_slots"] * workload.model_max_length:
        found.omit("The bound assumes samples of model_max_length tokens; these are shorter.", SHARE_OF_LIMIT)
        return
    predicted = totals["token_slots"] - totals["samples"]
    if _output_share(totals, record) < 1 and totals["trained_tokens"] < LEAST_LENGTH * predicted:
        found.omit("The bound assumes loss on all tokens; here only a part has loss.", SHARE_OF_LIMIT)
        return
    bound, reason = roofline.limit(
        workload,
        record.get("architecture") or {},
        model_parameters=record["model_parameters"],
        trainable_parameters=record["trainable_parameters"],
        computed=_compute_type(record, workload),
    )
    if bound is None:
        found.omit(reason, SHARE_OF_LIMIT)
    else:
        found.put(**{SHARE_OF_LIMIT: 100 * found.properties["train_tokens_per_second"] / bound.tokens_per_second})


def _compute_type(record: Record, workload: Workload) -> str:
    """Return the type of matrix products: autocast's, or that of the weights as the trainer reports it."""
    if workload.mixed_precision in AUTOCAST_DTYPES:
        return AUTOCAST_DTYPES[workload.mixed_precision]
    facts = record.get("facts", {})
    actual = str(facts.get("dtype", ""))
    computed = actual if actual in ("float32", "bfloat16", "float16") else workload.torch_dtype
    return "tf32" if computed == "float32" and facts.get("float32_products") == "tf32" else computed


def _put_memory(found: _Findings, ranks: Sequence[Record], device: Mapping[str, float]) -> None:
    found.put(**{name: device[name] for name in DEVICE_OUTPUTS if name in device})
    allocated = [rank["torch_peak_allocated_bytes"] for rank in ranks if "torch_peak_allocated_bytes" in rank]
    reserved = [rank["torch_peak_reserved_bytes"] for rank in ranks if "torch_peak_reserved_bytes" in rank]
    for name, peaks_bytes in (("torch_peak_allocated_gib", allocated), ("torch_peak_reserved_gib", reserved)):
        if len(peaks_bytes) < len(ranks):
            found.omit("Torch's allocator records no peak without a GPU.", name)
        else:
            found.properties[name] = max(peaks_bytes) / GIB
    resident = [rank.get("rss_peak_bytes") for rank in ranks]
    if all(resident):
        # the kernel's peak of a process is exact, and samples include its child processes
        seen = found.properties.get("cpu_memory_peak_gib", 0.0)
        found.put(cpu_memory_peak_gib=max(seen, sum(resident) / GIB))  # type: ignore[arg-type]


def _put_cost(found: _Findings, measured: _Measured, workload: Workload, price: float | None) -> None:
    real = measured.totals["real_tokens"]
    energy = found.properties.get("energy_joules")
    if energy is None:
        found.omit(found.omitted.get("energy_joules", NO_DEVICE_SAMPLES), "energy_joules_per_token")
    elif real:
        found.put(energy_joules_per_token=energy / real)
    if price is None:
        found.omit("The actuator configuration has no price_usd_per_device_hour.", "usd_per_million_tokens")
    elif real:
        devices = workload.number_gpus or workload.number_nodes
        found.put(usd_per_million_tokens=price * devices * measured.times.total_s / 3600 / (real / 1e6))
    if not real:
        found.omit("The trainer counted no real tokens.", "energy_joules_per_token", "usd_per_million_tokens")


def _put_losses(found: _Findings, ranks: Sequence[Record], workload: Workload) -> None:
    per_rank = [rank.get("losses") or [] for rank in ranks]
    if not all(per_rank):
        found.omit("The model returned no loss.", "loss_first", "loss_last", "loss_finite")
        return
    diverged = sum(None in step for step in zip(*per_rank, strict=True))
    found.put(loss_finite=int(not diverged))
    if diverged:
        found.notes.append(f"The loss of {diverged} of {len(per_rank[0])} steps is not finite: training diverged.")
    for name, step in (("loss_first", 0), ("loss_last", -1)):
        sums = [loss for losses in per_rank if (loss := losses[step]) is not None]
        trained = sum(rank["trained_tokens"][step] for rank in ranks)
        if len(sums) < len(per_rank):
            found.omit("The loss is not finite.", name)
        elif not trained:
            found.omit("No token of this step carries loss.", name)
        else:
            found.properties[name] = math.fsum(sums) / trained
    _note_first_loss(found, ranks[0], workload)


def _note_first_loss(found: _Findings, record: Record, workload: Workload) -> None:
    expected = first_loss_of_random_weights(flops.text_part(record.get("architecture") or {}))
    first = found.properties.get("loss_first")
    if workload.weights != "random" or expected is None or first is None:
        return
    if abs(first - expected) > 0.5:
        found.notes.append(
            f"The first loss, {first:.3f}, differs from that of random weights of this architecture, {expected:.3f} ± 0.5."
        )


def first_loss_of_random_weights(architecture: Mapping[str, Any]) -> float | None:
    """Return the loss that untrained weights give, or None if the vocabulary is unknown.

    Uniform guessing costs ln(vocabulary). Logits are sums over the hidden size of a normalised activation times an
    output weight, so their variance is hidden_size · initializer_range², and the mean of ln Σ exp of normal logits is
    higher by half of it.
    """
    vocabulary = architecture.get("vocab_size")
    if not vocabulary:
        return None
    deviation = (architecture.get("initializer_range") or 0.0) / (architecture.get("logits_scaling") or 1.0)
    return math.log(vocabulary) + (architecture.get("hidden_size") or 0) * deviation**2 / 2


def _phase(ranks: Sequence[Record], name: str) -> float | None:
    times = [rank["phases"][name] for rank in ranks if name in rank.get("phases", {})]
    return max(times) if times else None
