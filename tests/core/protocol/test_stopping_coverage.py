"""How often the confidence interval, when the measurement stops, contains the true mean step time.

The true mean is that of the random process that generates the steps or, if step times have a trend, the mean of the trend over the
measured steps. Long stalls that never occur while measuring cannot be taken into account. Series with such stalls count in the share
of all series, but need not reach that share by themselves.
"""

import itertools
import math
import random
import statistics

import pytest

from ado_actuators.sfttrainer.core.protocol.confidence import half_width_percent
from ado_actuators.sfttrainer.core.protocol.stopping import StoppingRule, is_check

MOST_STEPS = 1200
SERIES = 25
CHECKS = {step for step in range(1, MOST_STEPS) if is_check(step)} | {MOST_STEPS}


def noise(spread):
    """Independent steps."""

    def series(rng):
        while True:
            yield 1 + rng.gauss(0, spread), 1.0

    return series


def drift(slope, spread):
    """Steps whose mean moves by ``slope`` of the first step with each step."""

    def series(rng):
        for step in itertools.count():
            mean = 1 + slope * step
            yield mean * (1 + rng.gauss(0, spread)), mean

    return series


def spikes(chance, size):
    """Steps of which some take longer by ``size`` steps."""

    def series(rng):
        while True:
            yield 1 + rng.gauss(0, 0.01) + size * (rng.random() < chance), 1 + chance * size

    return series


def every(period, size):
    """Steps of which each ``period``-th takes longer by ``size`` steps, as with logging or garbage collection."""

    def series(rng):
        for step in itertools.count(rng.randrange(period)):
            yield 1 + rng.gauss(0, 0.01) + size * (step % period == 0), 1 + size / period

    return series


def autocorrelation(rho, spread):
    """A first-order autoregression."""

    def series(rng):
        value = rng.gauss(0, spread)
        while True:
            yield 1 + value, 1.0
            value = rho * value + math.sqrt(1 - rho * rho) * rng.gauss(0, spread)

    return series


KINDS = {
    "noise": [noise(0.0005), noise(0.02), noise(0.05), noise(0.1), noise(0.15)],
    "drift": [drift(1e-4, 0.01), drift(1e-3, 0.02), drift(-3e-4, 0.05), drift(3e-4, 0.1)],
    "spikes": [
        spikes(0.02, 0.2),
        spikes(0.1, 0.2),
        spikes(0.02, 0.5),
        spikes(0.1, 1.0),
        every(10, 0.5),
    ],
    "rare spikes": [spikes(0.01, 2.0), spikes(0.05, 0.5)],
    "autocorrelation": [
        autocorrelation(0.3, 0.05),
        autocorrelation(0.5, 0.1),
        autocorrelation(0.7, 0.05),
        autocorrelation(0.8, 0.03),
        autocorrelation(0.9, 0.02),
    ],
}


def stopped(series, **options):
    """Return the protocol of a measurement of these steps at its end, and the true means of the steps that it took."""
    protocol = StoppingRule(target_ci_percent=2.0, max_steps=MOST_STEPS, **options)
    truth = []
    for step, (duration, mean) in enumerate(itertools.islice(series, MOST_STEPS), start=1):
        protocol.add(max(duration, 0.05))
        truth.append(mean)
        if step in CHECKS and protocol.should_stop():
            break
    return protocol, truth


def covered(series, **options):
    """Return whether the confidence interval at the last step contains the true mean over the measured steps."""
    protocol, truth = stopped(series, **options)
    measured = protocol.measured
    mean = sum(measured) / len(measured)
    true_mean = sum(truth[protocol.warmup_steps :][: len(measured)]) / len(measured)
    return abs(mean - true_mean) <= half_width_percent(measured) / 100 * mean


@pytest.fixture(scope="module")
def shares():
    """Return, for each kind of series, the share whose interval contains the true mean."""
    found = {}
    for kind, makers in KINDS.items():
        rng = random.Random(kind)
        outcomes = [covered(make(rng)) for make in makers for _ in range(SERIES)]
        found[kind] = sum(outcomes) / len(outcomes)
    return found


# a time limit that the first step of every series passes
CUT_AT_ONCE = {"stop_after_seconds": 0.01}


@pytest.mark.parametrize("kind", ["noise", "drift", "autocorrelation"])
def test_ten_steps_are_enough_for_the_interval(kind):
    """Measurements that a time limit cuts to the ten steps of ``min_steps`` have intervals that contain the true mean."""
    rng = random.Random(kind)
    outcomes = [covered(make(rng), **CUT_AT_ONCE) for make in KINDS[kind] for _ in range(SERIES)]
    assert sum(outcomes) / len(outcomes) >= 0.9


def test_two_steps_tell_little():
    """The reason for ``min_steps``: with steps that vary by 5 %, the interval of two is ± 30 % or wider, that of ten below 10 %."""
    rng = random.Random(2)
    few, enough = (
        statistics.median(
            half_width_percent(stopped(noise(0.05)(rng), min_steps=fewest, **CUT_AT_ONCE)[0].measured)
            for _ in range(SERIES)
        )
        for fewest in (2, 10)
    )
    assert few > 29.9
    assert enough < 10


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("rare")])
def test_interval_covers_the_truth_in_93_percent_of_series(shares, kind):
    """The share holds for each kind of series, with a target of 2 %."""
    assert shares[kind] >= 0.93, shares


def test_long_rare_stalls_are_covered_less_often(shares):
    """As in docs/metrics.md: 33 % with a stall of two steps in every hundred, 83 % with one of half a step in every twenty."""
    assert shares["rare spikes"] == pytest.approx((0.33 + 0.83) / 2, abs=0.1)


def test_interval_covers_the_truth_in_93_percent_of_all_series(shares):
    """The share holds for all kinds together, including long rare stalls."""
    series = {kind: len(makers) for kind, makers in KINDS.items()}
    covered_series = sum(shares[kind] * count for kind, count in series.items())
    assert covered_series / sum(series.values()) >= 0.93, shares
