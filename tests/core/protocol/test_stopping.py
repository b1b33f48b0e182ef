"""Warm-up and stopping on hand-written step times."""

import subprocess
import sys
from pathlib import Path

import pytest

from ado_actuators.sfttrainer.core.protocol.stopping import Protocol


def fed(steps, **options):
    """Return a protocol that has seen these step times."""
    protocol = Protocol(**options)
    for step in steps:
        protocol.add(step)
    return protocol


def run(steps, **options):
    """Feed steps until the protocol stops at a check; return it, the steps that ran and why it stopped."""
    protocol = Protocol(**options)
    for step, duration in enumerate(steps, start=1):
        protocol.add(duration)
        if protocol.check_steps(step) and (reason := protocol.should_stop()):
            return protocol, step, reason
    return protocol, len(steps), None


def test_even_steps_need_the_least_warm_up():
    """The first three steps, the slow first one among them; known once the five after them are seen."""
    assert not fed([9.0, *[1.0] * 6]).warm
    protocol = fed([9.0, *[1.0] * 7])
    assert protocol.warm
    assert protocol.warmup_steps == 3
    assert protocol.measured == [1.0] * 5


def test_warm_up_lasts_while_steps_get_faster():
    """Medians of five: 8 7 6 5 4 3 2 2 - they are equal for the first time over steps 10 to 14."""
    steps = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    protocol = fed(steps[:11])
    assert not protocol.warm
    protocol = fed(steps)
    assert protocol.warmup_steps == 7


def test_one_stalled_step_does_not_prolong_warm_up():
    """A median does not see it."""
    assert fed([9.0, 1.0, 1.0, 1.0, 7.0, 1.0, 1.0, 1.0]).warmup_steps == 3


def test_warm_up_takes_at_most_two_fifths_of_the_steps():
    """Of 20 steps that never settle, 8."""
    steps = [2.0 * 0.9**step for step in range(20)]
    assert fed(steps, max_steps=20).warmup_steps == 8


def test_warm_up_takes_at_most_two_fifths_of_the_time():
    """Steps of 10 s and less that never settle: 40 s of 100 s have passed after the fifth."""
    steps = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    protocol = fed(steps, stop_after_seconds=100.0)
    assert protocol.warmup_steps == 5


@pytest.mark.parametrize(("ran", "warmup"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 3), (7, 3)])
def test_something_is_measured_as_soon_as_a_step_ran(ran, warmup):
    """At least the last step, whatever the budget was."""
    for options in ({"max_steps": ran}, {"max_steps": 1000}, {"stop_after_seconds": 1.0}):
        assert fed([5.0, *[1.0] * 6][:ran], **options).warmup_steps == warmup


def test_stops_when_the_interval_is_narrow_enough():
    """Even steps: 30 measured steps give 2 %, the rule holds as well without the last tenth, and 39 is the next check."""
    protocol, steps, reason = run([5.0] + [1.0] * 500, target_ci_percent=2.0)
    assert (reason, steps, len(protocol.measured), protocol.steady) == ("confidence", 39, 36, True)


def test_stops_with_ten_measured_steps_at_the_earliest():
    """A coarse target does not stop sooner: the rule has to hold with ten, and with the steps since."""
    protocol, _, reason = run([5.0] + [1.0] * 500, target_ci_percent=50.0)
    assert (reason, len(protocol.measured)) == ("confidence", 11)


def test_target_of_zero_never_stops_for_confidence():
    """Only the limits stop."""
    _, steps, reason = run([1.0] * 500, target_ci_percent=0.0, max_steps=200)
    assert (steps, reason) == (200, "max_steps")


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 13, 21])
def test_stops_at_max_steps_even_between_scheduled_checks(most):
    """The last step is always a check."""
    _, steps, reason = run([1.0] * 500, max_steps=most)
    assert (steps, reason) == (most, "max_steps")


def test_stops_after_seconds_counted_from_the_beginning():
    """The first step of 6 s and four of 1 s make 10 s."""
    protocol, steps, reason = run([6.0] + [1.0] * 500, stop_after_seconds=10.0)
    assert (steps, reason, protocol.warmup_steps) == (5, "stop_after_seconds", 3)


def test_steps_that_trend_are_not_steady():
    """Slower by 1 % each: the medians of the halves differ by more than 3 %."""
    assert not fed([1.01**step for step in range(30)]).steady
    assert fed([1.0001**step for step in range(30)]).steady


def test_noise_is_not_steady():
    """However well the halves happen to agree, a rate that is known to a tenth only has not converged."""
    assert not fed([1.0] * 3 + [0.7, 1.0, 1.3] * 8).steady
    assert fed([1.0] * 3 + [0.97, 1.0, 1.03] * 8).steady


def test_few_steps_are_not_steady():
    """Nine measured steps don't show it."""
    assert not fed([1.0] * 12).steady
    assert fed([1.0] * 13).steady


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan")])
def test_a_step_that_takes_no_time_is_refused(duration):
    """Time went back."""
    with pytest.raises(ValueError, match="Step 1 has duration"):
        Protocol().add(duration)


def test_checks_are_dense_at_first_and_then_a_tenth_apart():
    """The same steps on every rank, whatever the rank has seen."""
    checks = [step for step in range(1, 60) if Protocol().check_steps(step)]
    assert checks == [*range(1, 21), 22, 24, 26, 28, 30, 33, 36, 39, 42, 46, 50, 55]
    assert sum(Protocol().check_steps(step) for step in range(1, 10_001)) == 87


def test_ranks_talk_to_each_other_at_few_steps():
    """Every fourth step, then a tenth apart: no rank waits for another at each step, and all do at the same ones."""
    protocol = Protocol(checks_apart=4, max_steps=59)
    checks = [step for step in range(1, 60) if protocol.check_steps(step)]
    assert checks == [*range(4, 51, 4), 52, 57, 59]


def test_trainer_can_load_it_with_the_standard_library_alone():
    """Without site packages, as any Python may run the trainer."""
    core = Path(__file__).parents[3] / "core"
    code = f"import sys; sys.path.insert(0, {str(core)!r}); import protocol.stopping"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], timeout=60).returncode == 0
