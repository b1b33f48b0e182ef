"""Step times and rates against hand-computed numbers."""

import pytest

from ado_actuators.sfttrainer.core.failures import Broken
from ado_actuators.sfttrainer.core.metrics import throughput
from ado_actuators.sfttrainer.core.metrics.throughput import ImpossibleRecord
from ado_actuators.sfttrainer.core.protocol.confidence import half_width_percent, student_t_975


def test_durations_are_differences_of_step_ends():
    """The first step counts from the beginning of training."""
    assert throughput.durations(10.0, [13.0, 14.5, 16.0]) == [3.0, 1.5, 1.5]


@pytest.mark.parametrize("ends", [[12.0, 11.0], [12.0, 12.0], [9.0], [11.0, float("nan")], [float("inf")]])
def test_time_that_goes_back_is_refused(ends):
    """A step must end after the step before it."""
    with pytest.raises(ImpossibleRecord):
        throughput.durations(10.0, ends)


def test_refusal_names_the_step_and_both_times():
    """The message has the values."""
    with pytest.raises(ImpossibleRecord) as refused:
        throughput.durations(0.0, [1.0, 3.0, 2.0])
    assert str(refused.value) == "Step 3 ended at 2.0 s, not after the step before it, which ended at 3.0 s."
    assert isinstance(refused.value, Broken)


def test_a_step_lasts_as_long_as_on_its_slowest_rank():
    """Ranks are joined step by step, not rank by rank."""
    assert throughput.slowest([[1.0, 4.0, 2.0], [3.0, 1.0, 2.5]]) == [3.0, 4.0, 2.5]


@pytest.mark.parametrize("ranks", [[[1.0, 1.0], [1.0]], []])
def test_ranks_that_disagree_on_the_number_of_steps_are_refused(ranks):
    """Ranks with different numbers of steps are rejected."""
    with pytest.raises(ImpossibleRecord):
        throughput.slowest(ranks)


def test_counts_are_summed_over_ranks_without_warm_up():
    """3 + 4 + 30 + 40; the first two steps are not measured."""
    assert throughput.total("samples", [[1, 2, 3, 4], [10, 20, 30, 40]], steps=4, skip=2) == 77


@pytest.mark.parametrize("counts", [[[1, -1, 1]], [[1, 1]]])
def test_impossible_counts_are_refused(counts):
    """Negative counts, and a missing count, are rejected."""
    with pytest.raises(ImpossibleRecord):
        throughput.total("samples", counts, steps=3, skip=0)


def test_one_stalled_step_moves_mean_and_tail_but_not_the_median():
    """Nineteen steps of 1 s and one of 21 s."""
    times = throughput.summarise([1.0] * 19 + [21.0])
    assert (times.count, times.total_s, times.mean_s, times.median_s) == (20, 40.0, 2.0, 1.0)
    # position 19 · 0.95 = 18.05 lies a twentieth of the way from 1 s to 21 s
    assert times.p95_s == pytest.approx(2.0)
    # variance (19·1 + 361)/19 = 20
    assert times.cv == pytest.approx(20**0.5 / 2)


def test_a_single_step_has_no_spread():
    """A single step has neither a coefficient of variation nor an interval."""
    times = throughput.summarise([2.0])
    assert (times.mean_s, times.p95_s, times.cv, times.ci95_percent) == (2.0, 2.0, None, None)


@pytest.mark.parametrize("steps", [[], [1.0, 0.0], [1.0, -1.0]])
def test_no_step_and_no_time_are_refused(steps):
    """A step that took no time is rejected."""
    with pytest.raises(ImpossibleRecord):
        throughput.summarise(steps)


def test_percentiles_interpolate():
    """Type 7 of Hyndman and Fan, as in numpy's default."""
    assert throughput.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert throughput.percentile([1.0, 2.0, 3.0, 4.0, 5.0], 95) == pytest.approx(4.8)


def test_rates_are_counts_over_time():
    """A rate is a count per second; a time that is not positive is rejected."""
    assert throughput.rate(600, 4.0) == 150.0
    with pytest.raises(ImpossibleRecord):
        throughput.rate(1, 0.0)


def test_interval_of_even_steps_is_what_unseen_stalls_may_add():
    """Rule of three: 3/n stalls of a fifth of a step; 30 steps for 2 %."""
    assert half_width_percent([1.0] * 30) == pytest.approx(2.0)
    assert half_width_percent([0.5] * 60) == pytest.approx(1.0)


def test_interval_of_alternating_steps_claims_no_more_than_independence():
    """Negative correlation does not narrow the interval: t(9) · s / √10, and one more stall of 1 s in 10 steps, over the mean of 2 s."""
    steps = [1.0, 3.0] * 5
    expected = 100 * (2.2622 * (10 / 9) ** 0.5 / 10**0.5 + 1 / 10) / 2
    assert half_width_percent(steps) == pytest.approx(expected, rel=1e-3)


def test_interval_of_a_trend_is_wider_than_of_the_same_steps_shuffled():
    """Positively correlated steps give a wider interval."""
    trend = [1.0 + 0.01 * step for step in range(40)]
    shuffled = [trend[(7 * step) % 40] for step in range(40)]
    assert half_width_percent(trend) > 2 * half_width_percent(shuffled)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227)]
)
def test_student_quantiles_agree_with_the_tables(degrees, quantile):
    """Within 0.2 %, from one degree of freedom on."""
    assert student_t_975(degrees) == pytest.approx(quantile, rel=2e-3)
