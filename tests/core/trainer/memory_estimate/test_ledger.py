"""The account of a traced step, with exact numbers."""

from __future__ import annotations

from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import (
    GATHERED,
    LOADING,
    PASSES,
    UNREDUCED,
    UPDATE,
    Ledger,
    Sharing,
)


def step() -> Ledger:
    """Return the account of a made-up step: weights 100, kept 30, scratch 7, gradient 100, optimizer 200, update scratch 50."""
    ledger = Ledger()
    weights, kept, gone = ledger.allocate(100), ledger.allocate(30), ledger.allocate(5)
    ledger.name(weights, "parameters")
    ledger.free(gone)
    ledger.end_forward()
    gradient, scratch = ledger.allocate(100), ledger.allocate(7)
    ledger.name(gradient, "gradients")
    ledger.free(scratch)
    ledger.free(kept)
    ledger.begin(UPDATE)
    state, spare = ledger.allocate(200), ledger.allocate(50)
    ledger.name(state, "optimizer")
    ledger.free(spare)
    ledger.free(gradient)
    return ledger


def test_the_fullest_moment_of_each_phase() -> None:
    """Passes are fullest in the backward pass, the update while its temporaries live."""
    peaks = step().peaks(Sharing())
    assert peaks[UPDATE].parts == {
        "parameters": 100,
        "gradients": 100,
        "optimizer": 200,
        "activations": 0,
        "temporaries": 50,
    }
    assert peaks[UPDATE].total == 450
    assert peaks[PASSES].total == 237


def test_the_most_that_passes_by() -> None:
    """Activations and temporaries together, whenever they were most."""
    assert step().peaks(Sharing())[PASSES].passing == 30 + 7


def test_what_lives_when_the_backward_pass_begins_is_an_activation() -> None:
    """What was freed before was a temporary, whatever came later as well."""
    parts = step_without_update().peaks(Sharing())[PASSES].parts
    assert parts == {"parameters": 100, "gradients": 0, "optimizer": 0, "activations": 30, "temporaries": 40}


def step_without_update() -> Ledger:
    """Return an account whose fullest moment lies in the backward pass."""
    ledger = Ledger()
    ledger.name(ledger.allocate(100), "parameters")
    ledger.allocate(30)
    ledger.free(ledger.allocate(35))
    ledger.end_forward()
    ledger.allocate(40)
    return ledger


def test_the_first_name_stands() -> None:
    """A parameter stays one when it lives on into the backward pass."""
    ledger = Ledger()
    number = ledger.allocate(8)
    ledger.name(number, "parameters")
    ledger.end_forward()
    assert ledger.peaks(Sharing())[PASSES].parts["parameters"] == 8


def test_shares_decide_which_moment_is_the_fullest() -> None:
    """With weights, gradients and state divided by four a device holds a quarter of each, and of the update's temporaries."""
    shares = dict.fromkeys(("parameters", "gradients", "optimizer"), 0.25)
    peaks = step().peaks(Sharing(shares=shares, update_share=0.25))
    assert peaks[UPDATE].total == 25 + 25 + 50 + 13
    assert peaks[PASSES].total == 25 + 25 + 30 + 7


def test_extra_bytes_are_added_to_their_kind() -> None:
    """Buckets count as gradients."""
    peaks = step().peaks(Sharing(extra_bytes={PASSES: {"gradients": 11}}))
    assert (peaks[PASSES].total, peaks[UPDATE].total) == (248, 450)


def test_sizes_are_rounded_up_to_blocks() -> None:
    """Each storage takes whole blocks, as on CUDA."""
    ledger = Ledger()
    ledger.allocate(1)
    ledger.allocate(512)
    ledger.allocate(513)
    assert ledger.peaks(Sharing(block_bytes=512))[PASSES].total == 512 + 512 + 1024


def test_a_gradient_is_whole_until_it_is_reduced() -> None:
    """From then on a device holds its share; both count as gradients."""
    ledger = Ledger()
    number = ledger.allocate(100)
    ledger.name(number, UNREDUCED)
    ledger.turn(number, "gradients")
    ledger.begin(UPDATE)
    ledger.free(ledger.allocate(1))
    peaks = ledger.peaks(Sharing(shares={"gradients": 0.25}))
    assert (peaks[PASSES].parts["gradients"], peaks[UPDATE].parts["gradients"]) == (100, 25)


def test_what_is_gathered_is_held_whole() -> None:
    """And counts as parameters."""
    ledger = Ledger()
    ledger.name(ledger.allocate(100), "parameters")
    number = ledger.allocate(40)
    ledger.name(number, GATHERED)
    ledger.free(number)
    assert ledger.peaks(Sharing(shares={"parameters": 0.5}))[PASSES].parts["parameters"] == 50 + 40


def test_of_loading_only_what_is_left_counts() -> None:
    """Weights in a type that training does not have are no peak of it."""
    ledger = Ledger()
    ledger.begin(LOADING)
    before, after = ledger.allocate(100), ledger.allocate(25)
    ledger.free(before)
    ledger.begin(PASSES)
    ledger.name(after, "parameters")
    ledger.free(ledger.allocate(5))
    assert [change.size for change in ledger.changes(Sharing())] == [25, 5, -5]
    assert ledger.peaks(Sharing())[PASSES].total == 30


def test_nothing_is_part_of_an_account_that_has_ended() -> None:
    """Python destroys what was traced in an order that differs between runs."""
    ledger = Ledger()
    number = ledger.allocate(8)
    ledger.end()
    ledger.free(number)
    ledger.free(ledger.allocate(16))
    assert ledger.account().events == [(True, number)]
