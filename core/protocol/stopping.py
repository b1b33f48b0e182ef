"""Decides when warm-up ends and when a measurement stops, from step times alone. Reads no clock; imports the standard library only.

Warm-up lasts at least 3 steps. It ends when the median of the last five steps differs by less than 3 % from the median of the five
steps that end one step earlier; those last five steps count as measured. Warm-up takes at most 40 % of ``max_steps`` and of
``stop_after_seconds``, but not fewer than 3 steps. It always leaves one step to measure: of three steps one is measured, and a
single step is measured without warm-up.

A measurement stops when the half-width of the confidence interval of the mean step time is at most the target, both with and without
the last tenth of the measured steps and with at least ten steps each; or at ``max_steps``; or after ``stop_after_seconds``. The interval
and the time stop nothing before ``min_steps`` steps have been measured, so that a slow step leaves more than one of them.
"""

from __future__ import annotations

import statistics

from .confidence import half_width_percent

WINDOW = 5
LEAST_WARMUP = 3
LEAST_MEASURED = 10
SETTLED = 0.03
WARMUP_SHARE = 0.4
# up to this step a check follows every ``checks_apart`` steps; later the distance to the next check is 10 % of the steps so far
DENSE_CHECKS = 12
# fewest steps between two checks if the ranks have to communicate at each
APART_FOR_RANKS = 4


class StoppingRule:
    """The stopping rule of one measurement.

    Args:
        target_ci_percent: half-width of the 95 % confidence interval at which to stop, percent of the mean; 0 disables this rule.
        max_steps: most optimizer steps including warm-up, as in ``transformers.TrainingArguments``.
        stop_after_seconds: most seconds since training began, including warm-up; None sets no limit.
        checks_apart: fewest steps between two checks, at each of which the ranks communicate.
        min_steps: fewest measured steps before the interval or the time may stop the measurement; ``max_steps`` stops it before.
    """

    def __init__(
        self,
        target_ci_percent: float = 2.0,
        max_steps: int | None = None,
        stop_after_seconds: float | None = None,
        checks_apart: int = 1,
        min_steps: int = LEAST_MEASURED,
    ) -> None:
        self._target_percent = target_ci_percent
        self._max_steps = max_steps
        self._limit_s = stop_after_seconds
        self._checks_apart = checks_apart
        self._min_steps = min_steps
        self._durations: list[float] = []
        self._elapsed_s = 0.0
        self._warmup: int | None = None

    def add(self, duration_s: float) -> None:
        """Add the duration of the next optimizer step in seconds, beginning with the first step.

        Raises:
            ValueError: the duration is not positive.
        """
        if not duration_s > 0:
            raise ValueError(
                f"Step {len(self._durations) + 1} has duration {duration_s} s; expected a positive number."
            )
        self._durations.append(duration_s)
        self._elapsed_s += duration_s
        if self._warmup is None:
            self._detect_end_of_warmup()

    @property
    def warm(self) -> bool:
        """Whether warm-up has ended."""
        return self._warmup is not None

    @property
    def warmup_steps(self) -> int:
        """Number of leading steps that are not measured if the measurement stops now; if any step ran, at least one is measured."""
        ran = len(self._durations)
        warmup = self._warmup if self._warmup is not None else max(LEAST_WARMUP, int(WARMUP_SHARE * ran))
        return max(0, min(warmup, ran - 1))

    @property
    def measured(self) -> list[float]:
        """Durations of the measured steps so far, seconds."""
        return self._durations[self.warmup_steps :]

    @property
    def steady(self) -> bool:
        """Whether the step time has converged.

        At least ten steps are measured, the medians of their first and second half differ by less than 3 %, and the confidence
        interval is no wider than that of ten equal steps.
        """
        measured = self.measured
        if len(measured) < LEAST_MEASURED or half_width_percent(measured) > half_width_percent([1.0] * LEAST_MEASURED):
            return False
        half = len(measured) // 2
        return _close(statistics.median(measured[:half]), statistics.median(measured[-half:]))

    def should_stop(self) -> str | None:
        """Return the reason to stop now: ``confidence``, ``max_steps`` or ``stop_after_seconds``; None means to go on."""
        enough = len(self._durations) - self.warmup_steps >= self._min_steps
        if enough and self._confident():
            return "confidence"
        if self._max_steps is not None and len(self._durations) >= self._max_steps:
            return "max_steps"
        if enough and self._limit_s is not None and self._elapsed_s >= self._limit_s:
            return "stop_after_seconds"
        return None

    def check_steps(self, step: int) -> bool:
        """Return whether the ranks exchange a decision after this step, counted from 1. The result is the same on every rank."""
        return is_check(step, self._checks_apart) or (self._max_steps is not None and step >= self._max_steps)

    def _confident(self) -> bool:
        if self._target_percent <= 0 or self._warmup is None:
            return False
        measured = self.measured
        earlier = measured[: -max(1, len(measured) // 10)]
        if len(earlier) < LEAST_MEASURED:
            return False
        return all(half_width_percent(steps) <= self._target_percent for steps in (measured, earlier))

    def _detect_end_of_warmup(self) -> None:
        steps = self._durations
        if len(steps) >= LEAST_WARMUP + WINDOW and _close(
            statistics.median(steps[-WINDOW - 1 : -1]), statistics.median(steps[-WINDOW:])
        ):
            self._warmup = len(steps) - WINDOW
        elif len(steps) >= LEAST_WARMUP and self._share_used_up():
            self._warmup = len(steps)

    def _share_used_up(self) -> bool:
        steps_left = self._max_steps is None or len(self._durations) + 1 <= WARMUP_SHARE * self._max_steps
        time_left = self._limit_s is None or self._elapsed_s < WARMUP_SHARE * self._limit_s
        return not (steps_left and time_left)


def is_check(step: int, apart: int = 1) -> bool:
    """Return whether ``step``, counted from 1, is a check: every ``apart`` steps up to 12, then each 10 % later than the last."""
    if step <= DENSE_CHECKS:
        return step % apart == 0
    check = DENSE_CHECKS
    while check < step:
        check += max(apart, check // 10)
    return check == step


def _close(before: float, after: float) -> bool:
    return abs(after - before) < SETTLED * before
