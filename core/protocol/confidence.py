"""Confidence interval of a mean step time from steps that depend on each other. Standard library only.

The half-width is the larger of two:

- Student's t times the standard error of the mean, the variance multiplied by the autocorrelation time τ and the
  degrees of freedom reduced to n/τ - 1; plus what one more stall like the worst one seen would add, (max - median)/n,
  since few stalls make a skewed sum. τ is the largest of several estimates: stopping looks at the interval again and
  again, and would otherwise pick the moment at which an estimate is too small by chance.
- What stalls may add of which none was seen: after n steps their rate is at most 3/n with 95 % confidence (rule of
  three), and a stall is taken to cost a fifth of a step. Steps as even as a clock's so need 30 steps for 2 %.

The mean it speaks of is that of the process which made the steps; where the steps trend, the mean of the trend over the
measured steps. Simulated up to the moment of stopping at 2 %, it covers that mean in over 95 % of series with noise,
drift, stalls and autocorrelation up to 0.9. No rule sees stalls that are dear and too rare to happen once while it
watches: with one of half a step in every 20 it covers 83 %. Both rooms, arithmetic and trainer, import this file.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Sequence

STALL_SHARE = 0.2
# more points than this are joined in equal neighbours before their correlation is looked at, which bounds the work
MOST_POINTS = 512
BATCHES = (5, 10)
Z_975 = 1.959963984540054


def half_width_percent(durations: Sequence[float]) -> float:
    """Return the half-width of the 95 % confidence interval of the mean, percent of the mean.

    Args:
        durations: step times in seconds, at least two, in the order in which they happened.
    """
    n = len(durations)
    mean = math.fsum(durations) / n
    points = _join_neighbours(durations)
    variance = _variance(points)
    tau = autocorrelation_time(points)
    effective = len(points) / tau
    noise = student_t_975(effective - 1) * math.sqrt(variance / effective)
    one_more = (max(durations) - statistics.median(durations)) / n
    return 100 * max((noise + one_more) / mean, 3 * STALL_SHARE / n)


def autocorrelation_time(points: Sequence[float]) -> float:
    """Return how many neighbouring points carry the information of one: at least 1.

    The largest of: the initial monotone positive sequence of autocovariances (Geyer 1992, Statistical Science 7), the
    time of a first-order autoregression, and the variance of batch means.
    """
    n = len(points)
    mean = math.fsum(points) / n
    centred = [point - mean for point in points]
    gamma0 = math.fsum(x * x for x in centred) / n
    if gamma0 <= (1e-12 * mean) ** 2:
        return 1.0
    estimates = [1.0, _initial_sequence(centred, gamma0), _autoregression(centred, gamma0)]
    estimates += [_batch_means(points, batches) for batches in BATCHES if n >= 3 * batches]
    # two points of information are the least that leaves a degree of freedom
    return min(max(estimates), n / 2)


def _initial_sequence(centred: Sequence[float], gamma0: float) -> float:
    n = len(centred)
    total, smallest, lag = 0.0, math.inf, 0
    while lag + 1 < n - 1:
        pair = (_autocovariance(centred, lag) + _autocovariance(centred, lag + 1)) / gamma0
        if pair <= 0:
            break
        smallest = min(smallest, pair)
        total += smallest
        lag += 2
    return max(1.0, 2 * total - 1)


def _autoregression(centred: Sequence[float], gamma0: float) -> float:
    n = len(centred)
    rho = _autocovariance(centred, 1) / gamma0
    if rho < 1.64 / math.sqrt(n):
        # not distinguishable from independent steps
        return 1.0
    # the estimate is too small by (1 + 3ρ)/n (Kendall 1954); one standard error on top errs on the side of more steps
    rho = min(0.99, rho + (1 + 3 * rho) / n + math.sqrt((1 - rho * rho) / n))
    return (1 + rho) / (1 - rho)


def _batch_means(points: Sequence[float], batches: int) -> float:
    size = len(points) // batches
    means = [math.fsum(points[i * size : (i + 1) * size]) / size for i in range(batches)]
    return size * _variance(means) / _variance(points)


def _autocovariance(centred: Sequence[float], lag: int) -> float:
    return math.fsum(map(operator.mul, centred, centred[lag:])) / len(centred)


def _join_neighbours(values: Sequence[float]) -> list[float]:
    size = -(-len(values) // MOST_POINTS)
    return [math.fsum(values[i : i + size]) / size for i in range(0, len(values) - size + 1, size)]


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def student_t_975(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t, within 0.2 %; exact for 1 and 2 degrees of freedom.

    Abramowitz and Stegun 26.7.5. Degrees of freedom are rounded down to whole ones below 3, and up to 1.
    """
    if degrees < 2:
        return 12.706204736432095
    if degrees < 3:
        return 4.302652729911275
    z, v = Z_975, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
