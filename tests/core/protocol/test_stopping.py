"""Warm-up and stopping for given step times."""

import subprocess
import sys
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.protocol.stopping import StoppingRule


def with_steps(steps, **options):
    """Return a stopping rule to which these step times were added."""
    protocol = StoppingRule(**options)
    for step in steps:
        protocol.add(step)
    return protocol


def run(steps, **options):
    """Add steps until the rule stops at a check; return it, the number of steps and the reason."""
    protocol = StoppingRule(**options)
    for step, duration in enumerate(steps, start=1):
        protocol.add(duration)
        if protocol.check_steps(step) and (reason := protocol.should_stop()):
            return protocol, step, reason
    return protocol, len(steps), None


def test_even_steps_need_the_least_warm_up():
    """Warm-up has three steps, including the slow first one. It ends when the next five steps are known."""
    assert not with_steps([9.0, *[1.0] * 6]).warm
    protocol = with_steps([9.0, *[1.0] * 7])
    assert protocol.warm
    assert protocol.warmup_steps == 3
    assert protocol.measured == [1.0] * 5


def test_warm_up_lasts_while_steps_get_faster():
    """Medians of five steps: 8 7 6 5 4 3 2 2. Two of them are equal for the first time after step 14."""
    steps = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    protocol = with_steps(steps[:11])
    assert not protocol.warm
    protocol = with_steps(steps)
    assert protocol.warmup_steps == 7


def test_one_stalled_step_does_not_prolong_warm_up():
    """The median is not affected by one step."""
    assert with_steps([9.0, 1.0, 1.0, 1.0, 7.0, 1.0, 1.0, 1.0]).warmup_steps == 3


def test_warm_up_takes_at_most_two_fifths_of_the_steps():
    """Of 20 steps that get faster until the end, 8 are warm-up."""
    steps = [2.0 * 0.9**step for step in range(20)]
    assert with_steps(steps, max_steps=20).warmup_steps == 8


def test_warm_up_takes_at_most_two_fifths_of_the_time():
    """The step time decreases from 10 s until the end; after the fifth step 40 s of 100 s have passed."""
    steps = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    protocol = with_steps(steps, stop_after_seconds=100.0)
    assert protocol.warmup_steps == 5


@pytest.mark.parametrize(("ran", "warmup"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 3), (7, 3)])
def test_something_is_measured_as_soon_as_a_step_ran(ran, warmup):
    """At least the last step is measured, for any budget."""
    for options in ({"max_steps": ran}, {"max_steps": 1000}, {"stop_after_seconds": 1.0}):
        assert with_steps([5.0, *[1.0] * 6][:ran], **options).warmup_steps == warmup


def test_stops_when_the_interval_is_narrow_enough():
    """With equal steps, 30 measured steps give 2 %. The rule must also hold without the last tenth, and the next check is step 39."""
    protocol, steps, reason = run([5.0] + [1.0] * 500, target_ci_percent=2.0)
    assert (reason, steps, len(protocol.measured), protocol.steady) == ("confidence", 39, 36, True)


def test_stops_with_ten_measured_steps_at_the_earliest():
    """Even with a coarse target, the rule must hold for ten steps and for the steps since then."""
    protocol, _, reason = run([5.0] + [1.0] * 500, target_ci_percent=50.0)
    assert (reason, len(protocol.measured)) == ("confidence", 11)


def test_target_of_zero_never_stops_for_confidence():
    """Only the limits stop the measurement."""
    _, steps, reason = run([1.0] * 500, target_ci_percent=0.0, max_steps=200)
    assert (steps, reason) == (200, "max_steps")


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 13, 21])
def test_stops_at_max_steps_even_between_scheduled_checks(most):
    """Step max_steps is always a check."""
    _, steps, reason = run([1.0] * 500, max_steps=most)
    assert (steps, reason) == (most, "max_steps")


def test_stops_after_seconds_counted_from_the_beginning():
    """The first step takes 6 s and the next four take 1 s each, 10 s together."""
    protocol, steps, reason = run([6.0] + [1.0] * 500, stop_after_seconds=10.0, min_steps=1)
    assert (steps, reason, protocol.warmup_steps) == (5, "stop_after_seconds", 3)


@pytest.mark.parametrize(("fewest", "steps"), [(2, 5), (10, 13), (25, 28)])
def test_the_time_leaves_the_fewest_measured_steps(fewest, steps):
    """Steps of 30 s pass a limit of 20 s at once; after three of warm-up the fewest are measured."""
    protocol, ran, reason = run([30.0] * 100, stop_after_seconds=20.0, min_steps=fewest)
    assert (ran, reason, protocol.warmup_steps, len(protocol.measured)) == (steps, "stop_after_seconds", 3, fewest)


def test_ten_steps_are_measured_by_default_however_slow():
    """The default is that of the workload's property, and makes an even rate steady."""
    protocol, _, reason = run([30.0] * 100, stop_after_seconds=20.0)
    assert (reason, len(protocol.measured), protocol.steady) == ("stop_after_seconds", 10, True)


def test_the_fewest_steps_hold_for_the_interval_too():
    """Equal steps would give 50 % after eleven measured steps; max_steps stops in any case."""
    protocol, _, reason = run([1.0] * 500, target_ci_percent=50.0, min_steps=40)
    assert (reason, len(protocol.measured)) == ("confidence", 43)
    _, steps, reason = run([1.0] * 500, target_ci_percent=50.0, min_steps=40, max_steps=20)
    assert (steps, reason) == (20, "max_steps")


def test_steps_with_a_trend_are_not_steady():
    """With steps that get slower by 1 % each, the medians of the halves differ by more than 3 %."""
    assert not with_steps([1.01**step for step in range(30)]).steady
    assert with_steps([1.0001**step for step in range(30)]).steady


def test_noise_is_not_steady():
    """The halves agree, but the confidence interval is too wide."""
    assert not with_steps([1.0] * 3 + [0.7, 1.0, 1.3] * 8).steady
    assert with_steps([1.0] * 3 + [0.97, 1.0, 1.03] * 8).steady


def test_few_steps_are_not_steady():
    """Nine measured steps are too few."""
    assert not with_steps([1.0] * 12).steady
    assert with_steps([1.0] * 13).steady


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan")])
def test_a_duration_that_is_not_positive_is_rejected(duration):
    """The message has the number of the step."""
    with pytest.raises(ValueError, match="Step 1 has duration"):
        StoppingRule().add(duration)


def test_checks_are_dense_at_first_and_then_a_tenth_apart():
    """The checks depend only on the number of the step, so they are the same on every rank."""
    checks = [step for step in range(1, 60) if StoppingRule().check_steps(step)]
    assert checks == [*range(1, 21), 22, 24, 26, 28, 30, 33, 36, 39, 42, 46, 50, 55]
    assert sum(StoppingRule().check_steps(step) for step in range(1, 10_001)) == 87


def test_ranks_communicate_at_few_steps():
    """Checks are four steps apart, then a tenth apart, and the same on every rank."""
    protocol = StoppingRule(checks_apart=4, max_steps=59)
    checks = [step for step in range(1, 60) if protocol.check_steps(step)]
    assert checks == [*range(4, 51, 4), 52, 57, 59]


def test_trainer_can_load_it_with_the_standard_library_alone():
    """The module is imported without site packages, because environments of trainers differ."""
    core = Path(__file__).parents[3] / "core"
    code = f"import sys; sys.path.insert(0, {str(core)!r}); import protocol.stopping"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], timeout=60).returncode == 0
