"""The report of hand-written records: exact numbers, and a reason for each missing property."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ado_actuators.sfttrainer.core.metrics.benchmark import OUTPUTS, Report, first_loss_of_random_weights, make
from ado_actuators.sfttrainer.core.metrics.report import headline
from ado_actuators.sfttrainer.core.metrics.throughput import ImpossibleRecord
from ado_actuators.sfttrainer.core.protocol.confidence import half_width_percent
from ado_actuators.sfttrainer.core.protocol.messages import Record
from ado_actuators.sfttrainer.core.workload.validation import parse

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}


def record(**change: Any) -> Any:
    """Return the record of a rank with steps of 5, 1, 1, 2 and 2 s, on 2 samples of 10 slots with 8 real tokens."""
    steps = 5
    return {
        "rank": 0,
        "world_size": 1,
        "train_begin_s": 100.0,
        "step_end_s": [105.0, 106.0, 107.0, 109.0, 111.0],
        "samples": [2] * steps,
        "token_slots": [20] * steps,
        "real_tokens": [16] * steps,
        "trained_tokens": [12] * steps,
        "squared_lengths": [200] * steps,
        # sums over the trained tokens of a step
        "losses": [30.0, 28.8, 27.6, 26.4, 25.2],
        "warmup_steps": 1,
        "steady": False,
        "stopped_by": "max_steps",
        "phases": {"model_load_s": 0.5},
        "rss_peak_bytes": 2**30,
        "model_parameters": 100,
        "trainable_parameters": 100,
        "architecture": LLAMA,
        "facts": {"dtype": "float32"},
        **change,
    }


def report(
    *records: Record, price: float | None = None, device: dict[str, float] | None = None, **workload: Any
) -> Report:
    """Return the report of records on CPU."""
    values = {"model_name": "m", "model_max_length": 10, "batch_size": 2, "number_gpus": 0, **workload}
    return make(
        list(records), parse(values), device=device, device_names=["cpu"], price_usd_per_device_hour=price, total_s=20.0
    )


def test_times_and_rates_are_those_of_the_measured_steps() -> None:
    """Warm-up steps are excluded from all properties."""
    got = report(record()).properties
    assert (got["train_runtime_s"], got["measured_steps"], got["warmup_steps"], got["first_step_s"]) == (6.0, 4, 1, 5.0)
    assert (got["step_time_median_s"], got["step_time_mean_s"]) == (1.5, 1.5)
    assert got["train_samples_per_second"] == pytest.approx(8 / 6)
    assert got["train_tokens_per_second"] == pytest.approx(80 / 6)
    assert got["dataset_tokens_per_second"] == pytest.approx(64 / 6)
    assert got["trained_tokens_per_second"] == pytest.approx(48 / 6)


def test_products_of_8_bits_have_no_mfu() -> None:
    """Not all of them have 8 bits; the rate of operations is that of all."""
    values = {"model_name": "m", "model_max_length": 10, "batch_size": 2, "number_gpus": 1, "torch_dtype": "bfloat16"}
    got = make(
        [record(facts={"dtype": "bfloat16"})],
        parse({**values, "fp8_recipe": "tensorwise"}),
        device=None,
        device_names=["NVIDIA H200"],
        price_usd_per_device_hour=None,
        total_s=20.0,
    )
    assert "tflops_per_device" in got.properties
    for name in ("mfu_percent", "limit_percent"):
        assert got.omitted[name] == "Some products have 8 bits, others 16, and the peaks of both differ."


def test_shorter_samples_have_no_bound() -> None:
    """Their attention takes less, so the bound of full samples would be too low for them."""
    values = {"model_name": "m", "model_max_length": 40, "batch_size": 2, "number_gpus": 1, "torch_dtype": "bfloat16"}
    got = make(
        [record(facts={"dtype": "bfloat16"})],
        parse(values),
        device=None,
        device_names=["NVIDIA A100-SXM4-80GB"],
        price_usd_per_device_hour=None,
        total_s=20.0,
    )
    assert "mfu_percent" in got.properties
    assert got.omitted["limit_percent"] == "The bound assumes samples of model_max_length tokens; these are shorter."


def test_utilisation_of_a_known_device_is_exact() -> None:
    """Two A100s with bfloat16 weights: TFLOP per second and device, over 312; an unknown device gives a reason."""
    values = {"model_name": "m", "model_max_length": 10, "batch_size": 2, "number_gpus": 2, "torch_dtype": "bfloat16"}
    ranks = [record(rank=rank, world_size=2, facts={"dtype": "bfloat16"}) for rank in (0, 1)]

    def on(*devices: str) -> Report:
        return make(
            ranks, parse(values), device=None, device_names=devices, price_usd_per_device_hour=None, total_s=20.0
        )

    got = on("NVIDIA A100-SXM4-80GB").properties
    # per token slot: 2·4·8·8 for q, k, v, o, 2·3·8·16 for the MLP, 2·8·10 for the head, 4·2·4·10/2 for attention, three times
    assert got["model_flops_per_token"] == 3 * (512 + 768 + 160 + 160)
    # 4 measured steps of 20 slots on each device in 6 s
    assert got["tflops_per_device"] == pytest.approx(4800 * 80 / 6 / 1e12)
    assert got["mfu_percent"] == pytest.approx(100 * 4800 * 80 / 6 / 312e12)
    # the memory sets the bound: 720 weights of two bytes in two passes, and seven accesses of the optimizer to 100, for 20 slots
    assert got["limit_percent"] == pytest.approx(100 * (160 / 6) / (20 / ((2 * 720 * 2 + 7 * 100 * 2) / 2039e9)))
    unknown = on("Abacus 3000")
    assert unknown.properties["model_flops_per_token"] == 4800
    assert "Abacus 3000" in unknown.omitted["mfu_percent"]
    assert unknown.omitted["tflops_per_device"] == unknown.omitted["mfu_percent"] == unknown.omitted["limit_percent"]
    mixed = on("NVIDIA H200", "NVIDIA A100-SXM4-80GB").omitted["mfu_percent"]
    assert mixed == "Devices of different models were used: NVIDIA A100-SXM4-80GB, NVIDIA H200."


def test_two_gpus_under_lora_with_everything_known() -> None:
    """Each property, with numbers that distinguish the rules for joining ranks and devices."""
    phases = {"model_load_s": 0.5}
    one = record(
        world_size=2, architecture={**LLAMA, "num_hidden_layers": 2}, trainable_parameters=5, steady=True, phases=phases,
        torch_peak_allocated_bytes=2**30, torch_peak_reserved_bytes=2**31, real_tokens=[10] * 5, warmup_steps=0,
        losses=[20.0] * 5, trained_tokens=[5] * 5,
    )  # fmt: skip
    other = one | {
        "rank": 1, "torch_peak_allocated_bytes": 3 * 2**30, "torch_peak_reserved_bytes": 2**32, "rss_peak_bytes": 2**31,
        "phases": {"model_load_s": 0.7}, "losses": [30.0] * 5, "trained_tokens": [15] * 5,
    }  # fmt: skip
    asked = parse(
        {"model_name": "m", "model_max_length": 10, "batch_size": 4, "number_gpus": 2, "method": "lora", "r": 4,
         "target_modules": "q_proj", "mixed_precision": "bf16"}
    )  # fmt: skip
    got = make(
        [other, one], asked, device={"energy_joules": 22.0}, device_names=["NVIDIA A100-SXM4-80GB"],
        price_usd_per_device_hour=3.6, total_s=20.0, startup_s=3.0,
    ).properties  # fmt: skip
    # steps of 5, 1, 1, 2 and 2 s
    assert (got["train_runtime_s"], got["step_time_median_s"], got["step_time_p95_s"]) == (
        11.0,
        2.0,
        pytest.approx(4.4),
    )
    assert got["step_time_cv"] == pytest.approx(math.sqrt(2.7) / 2.2)
    assert got["throughput_ci95_percent"] == half_width_percent([5.0, 1.0, 1.0, 2.0, 2.0])
    assert got["steady"] == 1
    # two layers of q, k, v, o and MLP, a head and attention: frozen weights twice, adapters of 2·4·(8 + 8) and attention thrice
    assert got["model_flops_per_token"] == 2 * (2 * (512 + 768) + 160) + 3 * 2 * 2 * 4 * 16 + 3 * 2 * 160
    assert got["mfu_percent"] == pytest.approx(100 * got["model_flops_per_token"] * 100 / 11 / 312e12)
    assert (got["torch_peak_allocated_gib"], got["torch_peak_reserved_gib"]) == (3.0, 4.0)
    assert got["cpu_memory_peak_gib"] == 3.0
    assert got["energy_joules_per_token"] == 22 / 100
    # two devices for 11 s at 0.001 USD per second
    assert got["usd_per_million_tokens"] == pytest.approx(0.022 / 100 * 1e6)
    assert (got["model_load_s"], got["startup_s"]) == (0.7, 3.0)
    assert (got["loss_first"], got["loss_last"]) == (2.5, 2.5)
    assert got["dataset_tokens_per_second_per_gpu"] == pytest.approx(50 / 11)


@pytest.mark.parametrize(
    ("facts", "change", "peak"),
    [
        ({"dtype": "float32"}, {}, 19.5),
        # torch.compile enables TF32
        ({"dtype": "float32", "float32_products": "tf32"}, {}, 156.0),
        ({"dtype": "bfloat16", "float32_products": "tf32"}, {}, 312.0),
        ({"dtype": "float32"}, {"mixed_precision": "bf16"}, 312.0),
    ],
)
def test_the_peak_is_that_of_what_was_computed(facts: dict[str, str], change: dict[str, Any], peak: float) -> None:
    """The peak is that of the type of matrix products that the trainer reports."""
    asked = parse({"model_name": "m", "model_max_length": 10, "batch_size": 2, "number_gpus": 1, **change})
    got: dict[str, Any] = make(
        [record(facts=facts)], asked, device=None, device_names=["NVIDIA A100-SXM4-80GB"], price_usd_per_device_hour=None,
        total_s=20.0,
    ).properties  # fmt: skip
    assert got["tflops_per_device"] / got["mfu_percent"] * 100 == pytest.approx(peak)


def test_steps_with_less_than_the_batch_are_noted() -> None:
    """If the data ends within a step, only trained samples count, and a note says so."""
    assert not [note for note in report(record()).notes if "samples" in note]
    notes = report(record(samples=[2, 2, 1, 2, 2])).notes
    assert (
        "1 of 4 measured steps had fewer than the 2 samples of batch_size x gradient_accumulation_steps: the data set ended there."
        in notes
    )


def test_one_device_under_fsdp_is_noted() -> None:
    """FSDP on one device shards nothing, and a note says so."""
    assert (
        "distributed_backend FSDP2 has no effect on one device."
        in report(record(), number_gpus=1, distributed_backend="FSDP2").notes
    )


def test_a_rank_without_a_predicted_token_is_no_divergence() -> None:
    """A rank without trained tokens contributes nothing to the loss, a mean over the tokens of all ranks."""
    idle = record(rank=1, world_size=2, losses=[0.0] * 5, trained_tokens=[0] * 5)
    got = report(record(world_size=2), idle, number_nodes=2).properties
    assert (got["loss_finite"], got["loss_first"], got["loss_last"]) == (1, 2.5, pytest.approx(2.1))
    nothing = report(record(losses=[0.0] * 5, trained_tokens=[0] * 5))
    assert nothing.omitted["loss_first"] == "No token of this step carries loss."


def test_ranks_count_together_and_the_slowest_sets_the_time() -> None:
    """Tokens are summed over ranks; the duration of a step is the maximum over ranks."""
    slow = record(rank=1, world_size=2, step_end_s=[105.0, 107.0, 108.0, 110.0, 112.0])
    got = report(record(world_size=2), slow, number_nodes=2).properties
    assert got["train_runtime_s"] == 2 + 1 + 2 + 2
    assert got["train_samples_per_second"] == pytest.approx(16 / 7)


def test_every_output_is_measured_or_has_a_reason() -> None:
    """A missing value is omitted with a reason, never 0 or -1."""
    got = report(record())
    assert set(got.properties) | set(got.omitted) == set(OUTPUTS)
    assert not set(got.properties) & set(got.omitted)
    assert all(got.omitted.values())


def test_the_headline_has_what_matters() -> None:
    """Rate with its interval, steadiness, memory and cost; other experiments have none."""
    known = {"dataset_tokens_per_second": 760.4, "throughput_ci95_percent": 6.04, "measured_steps": 30, "steady": 1}
    assert headline(known) == "760 tokens/s ± 6 %, steady"
    memory = {"cpu_memory_peak_gib": 0.7012, "torch_peak_reserved_gib": 12.345}
    assert headline({**known, **memory, "steady": 0}) == "760 tokens/s ± 6 %, not steady, 12.3 GiB"
    short = {"dataset_tokens_per_second": 31.25, "measured_steps": 1, "steady": 0, "usd_per_million_tokens": 22.222}
    assert headline(short) == "31.2 tokens/s, 1 step, not steady, 22.2 USD per million tokens"
    assert headline({"is_valid": 1, "f_no_error": 1.0}) == ""


def test_properties_can_be_left_out_of_the_text() -> None:
    """Neither their value nor the reason of their absence is shown."""
    made = report(record())
    assert "dataset_tokens_per_second_per_gpu" in made.text()
    assert "mfu_percent" in made.text()
    short = made.text(without=("dataset_tokens_per_second_per_gpu", "mfu_percent"))
    assert "dataset_tokens_per_second_per_gpu" not in short
    assert "mfu_percent" not in short


def test_a_price_gives_a_cost() -> None:
    """3.6 USD per hour are 0.001 USD per second; 64 tokens took 6 s."""
    assert report(record(), price=3.6).properties["usd_per_million_tokens"] == pytest.approx(0.006 / 64 * 1e6)


def test_a_loss_that_is_not_finite_is_flagged() -> None:
    """The throughput is valid, and loss_finite says that training diverged."""
    made = report(record(losses=[30.0, 28.8, None, 26.4, 25.2]))
    assert "The loss of 1 of 5 steps is not finite: training diverged." in made.notes
    got = made.properties
    assert (got["is_valid"], got["loss_finite"], got["loss_first"], got["loss_last"]) == (1, 0, 2.5, pytest.approx(2.1))


def test_a_first_loss_far_from_that_of_random_weights_is_noted() -> None:
    """ln(10) is 2.3; a first loss of 9 gives a note."""
    assert not [note for note in report(record()).notes if "first loss" in note]
    assert [note for note in report(record(losses=[108.0, 28.8, 27.6, 26.4, 25.2])).notes if "first loss" in note]


@pytest.mark.parametrize(
    ("stopped_by", "remedy"),
    [
        ("max_steps", "Raise max_steps."),
        ("stop_after_seconds", "Raise min_steps or stop_after_seconds."),
        ("data", "Raise num_train_epochs, or use more data."),
    ],
)
def test_fewer_than_ten_measured_steps_are_noted(stopped_by: str, remedy: str) -> None:
    """The note says how many steps there are, and which property would give more."""
    assert (
        f"4 steps were measured, after 1 of warm-up; a reliable rate needs 10. {remedy}"
        in report(record(stopped_by=stopped_by)).notes
    )
    one = report(record(warmup_steps=4, stopped_by=stopped_by)).notes
    assert f"1 step was measured, after 4 of warm-up; a reliable rate needs 10. {remedy}" in one


def test_ten_measured_steps_are_not_noted() -> None:
    """Thirteen steps of one second, of which three are warm-up."""
    steps = 13
    counts = {name: [value] * steps for name, value in (("samples", 2), ("token_slots", 20), ("real_tokens", 16))}
    counts |= {"trained_tokens": [12] * steps, "squared_lengths": [200] * steps, "losses": [30] * steps}
    ends = [101.0 + step for step in range(steps)]
    assert report(record(step_end_s=ends, warmup_steps=3, **counts)).notes == ()


def test_the_loss_of_random_weights_depends_on_the_spread_of_logits() -> None:
    """A hidden size of 576 and a range of 1/24 give logits of variance 1, which adds 0.5 to the loss."""
    smollm2 = {"vocab_size": 49152, "hidden_size": 576, "initializer_range": 1 / 24}
    assert first_loss_of_random_weights(smollm2) == pytest.approx(math.log(49152) + 0.5)
    assert first_loss_of_random_weights({**smollm2, "logits_scaling": 10.0}) == pytest.approx(math.log(49152) + 0.005)
    assert first_loss_of_random_weights({}) is None


def test_energy_is_per_real_token() -> None:
    """128 J for 64 tokens."""
    assert report(record(), device={"energy_joules": 128.0}).properties["energy_joules_per_token"] == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"step_end_s": [105.0, 104.0, 107.0, 109.0, 111.0]},
        {"real_tokens": [21] * 5},
        {"warmup_steps": 5},
        {"samples": [2] * 4},
    ],
)
def test_impossible_records_are_refused(change: dict[str, Any]) -> None:
    """Decreasing times, more tokens than slots, no measured step and lists of different lengths are rejected."""
    with pytest.raises(ImpossibleRecord):
        report(record(**change))


def test_a_refusal_has_two_properties() -> None:
    """A workload that cannot run has no other properties."""
    got = Report.for_refusal("gpu_oom", "it does not fit.")
    assert got.properties == {"is_valid": 0, "failure": "gpu_oom"}
    assert set(got.omitted.values()) == {"it does not fit."}


def test_the_text_shows_every_property_and_reason() -> None:
    """The text has aligned values and grouped reasons."""
    text = report(record()).text()
    assert "train_runtime_s" in text
    assert "usd_per_million_tokens: The actuator configuration has no price_usd_per_device_hour." in text


@pytest.mark.parametrize(
    ("share", "gpus", "steady", "noted"),
    [(41.2, 0, 0, True), (95.0, 0, 1, False), (None, 0, 1, False), (41.2, 1, 1, True)],
)
def test_a_busy_machine_is_noted(share: float | None, gpus: int, steady: int, noted: bool) -> None:
    """The rate of training on CPUs is not steady if other work takes their time; that of a GPU may be."""
    device = {} if share is None else {"cpu_share_percent": share}
    made = report(record(steady=True), device=device, number_gpus=gpus)
    assert made.properties["steady"] == steady
    assert [note for note in made.notes if "got 41 % of the CPU time" in note] == [
        note for note in made.notes if "busy" in note
    ]
    assert any("busy" in note for note in made.notes) is noted


def test_the_rate_of_a_cpu_second_counts_only_the_time_that_training_got() -> None:
    """64 real tokens in 6 s with 40 % of a core took 2.4 s of CPU time; with GPUs it means nothing."""
    name = "dataset_tokens_per_cpu_second"
    assert report(record(), device={"cpu_compute_utilization": 40.0}).properties[name] == pytest.approx(64 / 2.4)
    assert report(record()).omitted[name] == "No device was sampled."
    assert report(record(), device={"cpu_compute_utilization": 40.0}, number_gpus=1).omitted[name] == (
        "It is computed for training on CPUs only."
    )


def test_the_output_layer_counts_for_the_tokens_that_it_computes() -> None:
    """12 of 20 slots carry loss: a kernel that leaves the others out computes 0.6 of 3·2·hidden_size·vocab_size per slot."""
    each = [
        float(report(record(facts={"dtype": "float32", "output_layer": tokens})).properties["model_flops_per_token"])
        for tokens in ("all tokens", "trained tokens")
    ]
    assert each[0] - each[1] == pytest.approx(0.4 * 3 * 2 * 8 * 10)
