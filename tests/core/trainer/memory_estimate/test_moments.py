"""Peaks from the table of moments are those of the account."""

from __future__ import annotations

import pytest

from ado_actuators.sfttrainer.core.trainer.memory_estimate.extrapolation import Grown
from ado_actuators.sfttrainer.core.trainer.memory_estimate.ledger import PASSES, UNREDUCED, UPDATE, Ledger, Sharing
from ado_actuators.sfttrainer.core.trainer.memory_estimate.moments import Moments

pytestmark = pytest.mark.torch


def account(batch: int) -> Ledger:
    """Return a step in which a gradient is whole for a while and an update needs scratch."""
    ledger = Ledger()
    weight = ledger.allocate(400)
    ledger.name(weight, "parameters")
    kept = ledger.allocate(30 * batch)
    ledger.free(ledger.allocate(50 * batch))
    ledger.end_forward()
    gradient = ledger.allocate(400)
    ledger.name(gradient, UNREDUCED)
    ledger.free(kept)
    ledger.turn(gradient, "gradients")
    ledger.begin(UPDATE)
    ledger.free(ledger.allocate(1000))
    ledger.begin(PASSES)
    ledger.free(gradient)
    return ledger


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize(
    "sharing",
    [
        Sharing(extra_bytes={PASSES: {"temporaries": 3}}),
        Sharing(shares={"parameters": 0.25, "gradients": 0.25}, update_share=0.25),
    ],
)
def test_any_device_and_batch(batch: int, sharing: Sharing) -> None:
    """Both phases, with shares and with what a device holds besides."""
    one, two = account(1).account(), account(2).account()
    moments = Moments(Grown(one, one.sizes, two.sizes), 1)
    for phase, peak in account(batch).peaks(sharing).items():
        assert moments.total(sharing, phase, float(batch)) == peak.total
