"""Capacity of devices, what devices share, and the report of an estimate: exact numbers, no torch."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics import accelerators, roofline
from ado_actuators.sfttrainer.core.metrics import memory_estimate as memory_report
from ado_actuators.sfttrainer.core.workload import fields, models, validation

GIB = 2**30
ARCHITECTURE: Any = models.resolve("tiny-llama-5m").architecture
PARAMETERS = 4_999_424
LIMITS = {"step_time_limit_s", "tokens_per_second_limit", "usd_per_million_tokens_limit"}
DEVICE = {"device_memory_gib", "fits", "largest_batch_size", "minimum_gpus"}
VALUES = {
    "model_name": "tiny-llama-5m",
    "model_max_length": 128,
    "batch_size": 8,
    "number_gpus": 2,
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
}


def made(**change: Any) -> fields.Workload:
    """Return a workload."""
    return validation.parse({**VALUES, **change})


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA-A100-80GB-PCIe", 80.0),
        ("NVIDIA-A100-SXM4-80GB", 80.0),
        ("A100-40G", 40.0),
        ("NVIDIA-H100-PCIe", 80.0),
        ("NVIDIA-H100-80GB-HBM3", 80.0),
        ("NVIDIA H100 NVL", 94.0),
        ("L40S", 45.0),
        ("Tesla-V100-PCIE-16GB", 16.0),
        ("Tesla-T4", 15.0),
        ("H100", 80.0),
        ("A100-80GB", 80.0),
        ("RTX-4090", 24.0),
        ("NVIDIA GeForce RTX 3090", 24.0),
        ("NVIDIA-GeForce-RTX-5090", 32.0),
        ("NVIDIA RTX A6000", 48.0),
        ("NVIDIA RTX 6000 Ada Generation", 48.0),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96.0),
        ("NVIDIA A10G", 22.5),
        ("NVIDIA GH200 480GB", 96.0),
        ("NVIDIA B300 SXM6 AC", 270.0),
        ("NVIDIA GB200", 186.0),
        ("AMD Instinct MI355X", 288.0),
    ],
)
def test_memory_of_known_devices(name: str, gib: float) -> None:
    """Names as Ray and node labels spell them; cards with GDDR lose a sixteenth to error correction."""
    assert accelerators.device_memory_gib(name) == (gib, "")
    assert accelerators.usable_bytes(name) == int((0.988 * gib - accelerators.context_gib(gib)) * GIB)


@pytest.mark.parametrize(("gib", "context"), [(15.0, 0.5), (24.0, 0.51), (48.0, 1.02), (80.0, 1.7), (288.0, 1.7)])
def test_what_the_context_of_cuda_takes_grows_with_the_device(gib: float, context: float) -> None:
    """From half a GiB to what was measured on an A100 of 80 GB."""
    assert accelerators.context_gib(gib) == pytest.approx(context)


@pytest.mark.parametrize(
    ("backend", "gpus", "mib"),
    [("FSDP", 1, 0), ("DDP", 2, 544), ("FSDP2", 2, 544), ("FSDP2", 4, 688), ("FSDP", 2, 544 + 1126)],
)
def test_several_gpus_leave_less_to_the_allocator(backend: Any, gpus: int, mib: int) -> None:
    """Buffers of NCCL, and with FSDP1 the pieces between its blocks."""
    workload = made(number_gpus=gpus, batch_size=8, distributed_backend=backend)
    alone = accelerators.usable_bytes(workload.gpu_model)
    assert alone is not None
    assert memory_report.usable_bytes(workload) == alone - mib * 2**20


@pytest.mark.parametrize(
    ("name", "seen_gib"), [("NVIDIA H200", 139.8), ("NVIDIA-H100-80GB-HBM3", 79.1), ("L40S", 44.4), ("Tesla-T4", 14.6)]
)
def test_no_device_has_more_than_torch_sees_of_it(name: str, seen_gib: float) -> None:
    """CUDA's context has to fit together with what training can use, and at most a twentieth goes unused."""
    usable = accelerators.usable_bytes(name)
    assert usable is not None
    assert 0.95 * seen_gib * GIB < usable < (seen_gib - 0.25) * GIB


@pytest.mark.parametrize(
    "name",
    [
        "any",
        "A100",
        "V100",
        "GH200",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "Abacus 3",
    ],
)
def test_memory_that_is_not_known(name: str) -> None:
    """A name that fits several sizes, a part of a GPU, or none: a message, no guess."""
    gib, reason = accelerators.device_memory_gib(name)
    assert gib is None
    assert reason.endswith(".")
    assert accelerators.usable_bytes(name) is None


def record(passes_gib: float, update_gib: float) -> Any:
    """Return a record with these peaks."""
    names = ("parameters", "gradients", "optimizer", "activations", "temporaries")
    shares = dict(zip(names, (0.5, 0.25, 0.125, 0.0625, 0.0625), strict=True))
    peaks = {"passes": passes_gib, "update": update_gib}
    return {
        "peaks_bytes": {
            phase: {name: int(share * gib * GIB) for name, share in shares.items()} for phase, gib in peaks.items()
        },
        "largest_batch_size": 24,
        "reserved_bytes": {"most": int(70 * GIB), "needed": int(66 * GIB)},
        "minimum_gpus": 1,
        "architecture": ARCHITECTURE,
        "model_parameters": PARAMETERS,
        "trainable_parameters": PARAMETERS,
    }


def without_counts() -> Any:
    """Return the record of an estimate for devices whose memory is not known."""
    return {key: value for key, value in record(64, 32).items() if key != "minimum_gpus"}


def bound(workload: fields.Workload) -> roofline.Limit:
    """Return the bound that ``plan`` shows."""
    found, _ = roofline.limit(workload, ARCHITECTURE, model_parameters=PARAMETERS, trainable_parameters=PARAMETERS)
    assert found is not None
    return found


def test_the_report_of_an_estimate() -> None:
    """The fuller phase counts, with its parts; it fits if torch can have so much."""
    got = memory_report.make(record(64, 32), made(), total_s=3.0)
    assert got.properties == {
        "is_valid": 1,
        "failure": "none",
        "memory_estimate_gib": 64.0,
        "memory_parameters_gib": 32.0,
        "memory_gradients_gib": 16.0,
        "memory_optimizer_gib": 8.0,
        "memory_activations_gib": 4.0,
        "memory_temporaries_gib": 4.0,
        "memory_reserved_gib": 70.0,
        "device_memory_gib": 80.0,
        "fits": 1,
        "largest_batch_size": 24,
        "minimum_gpus": 1,
        "step_time_limit_s": bound(made()).step_s,
        "tokens_per_second_limit": bound(made()).tokens_per_second,
        "total_s": 3.0,
    }
    assert got.omitted == {
        "usd_per_million_tokens_limit": "The actuator configuration has no price_usd_per_device_hour."
    }


def test_an_upper_bound_is_called_one() -> None:
    """The kernels are left out of the trace."""
    notes = memory_report.make(record(1, 1), made(torch_compile=True), total_s=3.0).notes
    assert notes[0] == "An upper bound: it leaves out what torch_compile saves."


def test_the_bound_on_speed_and_cost() -> None:
    """Token slots of the whole batch over the least time of a step; two GPUs at 1.8 USD cost 0.1 cent a second."""
    got = memory_report.make(record(1, 1), made(), total_s=3.0, price_usd_per_device_hour=1.8)
    limit: dict[str, Any] = dict(got.properties)
    assert limit["tokens_per_second_limit"] == pytest.approx(8 * 128 / limit["step_time_limit_s"])
    assert limit["usd_per_million_tokens_limit"] == pytest.approx(0.001 * 1e6 / limit["tokens_per_second_limit"])
    assert got.notes == (f"step_time_limit_s is set by {bound(made()).resource}.",)
    assert got.omitted == {}


def test_several_micro_batches_are_one_step() -> None:
    """The bound of the step grows with them; the tokens of all of them count."""
    got: dict[str, Any] = dict(
        memory_report.make(record(1, 1), made(gradient_accumulation_steps=4), total_s=3.0).properties
    )
    assert got["tokens_per_second_limit"] == pytest.approx(4 * 8 * 128 / got["step_time_limit_s"])


@pytest.mark.parametrize(
    ("change", "architecture", "reason"),
    [
        ({"gpu_model": "Abacus 3"}, ARCHITECTURE, "The peak of device 'Abacus 3' is not known."),
        ({"gpu_model": "Tesla-T4", "torch_dtype": "bfloat16"}, ARCHITECTURE, "gives no peak for bfloat16."),
        ({}, {"model_type": "other"}, "other"),
    ],
)
def test_no_bound_has_a_reason(change: dict[str, Any], architecture: dict[str, Any], reason: str) -> None:
    """Of an unknown device, number or model nothing is guessed."""
    got = memory_report.make(
        record(1, 1) | {"architecture": architecture}, made(**change), total_s=3.0, price_usd_per_device_hour=1.0
    )
    assert not LIMITS & set(got.properties)
    assert {reason in got.omitted[name] for name in LIMITS} == {True}
    assert not any("step_time_limit_s" in note for note in got.notes)


@pytest.mark.parametrize(
    ("most", "needed", "fits", "reserved"), [(75, 74, 1, 75.0), (90, 76.8, 1, 76.80875), (90, 76.82, 0, 76.82)]
)
def test_what_the_allocator_needs_decides(most: float, needed: float, fits: int, reserved: float) -> None:
    """Of what it reserves it gives back unused segments before it runs out of memory: two GPUs can give 76.8 GiB each."""
    made_of = record(64, 32) | {"reserved_bytes": {"most": int(most * GIB), "needed": int(needed * GIB)}}
    got = memory_report.make(made_of, made(), total_s=3.0).properties
    assert got["fits"] == fits
    assert got["memory_reserved_gib"] == pytest.approx(reserved)


def test_what_the_context_of_cuda_takes_is_not_there() -> None:
    """79.5 GiB do not fit a device of 80 GiB."""
    assert memory_report.make(record(1, 79.5), made(), total_s=3.0).properties["fits"] == 0


def test_an_unknown_device_gives_no_verdict() -> None:
    """What depends on the device is left out, with the reason."""
    got = memory_report.make(without_counts(), made(gpu_model="any"), total_s=3.0)
    reason = "gpu_model any names no device."
    assert got.omitted == dict.fromkeys(DEVICE | LIMITS, reason)


def test_any_other_device_is_described_by_its_memory() -> None:
    """The verdict is there, and no bound on speed."""
    got = memory_report.make(record(64, 32), made(gpu_model="Abacus 3", gpu_memory_gib=70.0), total_s=3.0)
    assert (got.properties["device_memory_gib"], got.properties["fits"]) == (70.0, 1)
    assert set(got.omitted) == LIMITS


ALTERNATIVES = [
    {"change": {"gradient_checkpointing": True}, "needed_bytes": 79 * GIB, "fits": False},
    {"change": {"torch_dtype": "bfloat16"}, "needed_bytes": 70 * GIB, "fits": True},
    {"change": {"method": "lora", "gradient_checkpointing": True}, "needed_bytes": 40 * GIB, "fits": True},
]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"alternatives": ALTERNATIVES, "minimum_gpus": 4},
            "It fits with torch_dtype bfloat16 (70.0 GiB), method lora and gradient_checkpointing (40.0 GiB) or number_gpus 4 under FSDP.",
        ),
        ({"largest_batch_size": 2}, "It fits with batch_size 2."),
        ({"alternatives": ALTERNATIVES[:1]}, "Nothing that was tried makes it fit, not even 512 GPUs under FSDP."),
        ({"minimum_gpus": None}, "Nothing that was tried makes it fit."),
    ],
)
def test_what_does_not_fit_says_what_does(change: dict[str, Any], said: str) -> None:
    """By how much it does not, and the changes that were estimated to fit."""
    large = record(90, 32) | {"largest_batch_size": 0, "minimum_gpus": 0} | change
    got = memory_report.make(large, made(), total_s=3.0)
    assert got.properties["fits"] == 0
    assert got.notes[0] == f"Does not fit: 90.0 GiB of 76.8 GiB. {said}"
    assert got.properties.get("minimum_gpus") == large["minimum_gpus"]


def test_a_workload_without_gpus_gives_no_verdict() -> None:
    """The memory of a host is not known, and no allocator of CUDA reserves any."""
    without = without_counts() | {"reserved_bytes": None}
    got = memory_report.make(without, made(gpu_model="any", number_gpus=0), total_s=3.0)
    assert set(got.omitted) == DEVICE | LIMITS | {"memory_reserved_gib"}
    assert got.omitted["step_time_limit_s"].startswith("Without GPUs")


@pytest.mark.parametrize(("gib", "certain"), [(79.0, False), (80.9, False), (81.0, True)])
def test_only_what_exceeds_the_known_error_is_certain(gib: float, certain: bool) -> None:
    """At most 78.54 GiB can be had: 80.9 GiB may be 78.47 in truth, 81.0 are at least 78.57."""
    message = memory_report.certainly_too_large(record(1, gib), made())
    assert (message is not None) == certain
    assert message is None or len(message) <= 200


@pytest.mark.parametrize(
    ("gpu_model", "mib"),
    [("NVIDIA-A100-SXM4-80GB", 16.25), ("RTX-4090", 16.25), ("NVIDIA-H100-80GB-HBM3", 64.0), ("any", 64.0)],
)
def test_each_thread_that_multiplies_has_a_workspace(gpu_model: str, mib: float) -> None:
    """Two threads; torch gives each 8.125 MiB before Hopper, 32 MiB from then on."""
    assert accelerators.workspace_bytes(gpu_model) == mib * 2**20
