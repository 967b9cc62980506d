"""What is computed from the runs of a benchmark: spread, interquartile mean, sample efficiency, reliability.

A run is a benchmarks.records.Run.  Its curve is the logged return: the mean over the last 100 episodes to end.
"""

from statistics import mean, median, stdev

import numpy as np
from scipy.stats import bootstrap, trim_mean


def spread(values):
    """Mean and, of several seeds, their standard deviation (n - 1)."""
    return f"{mean(values):.0f}" + (f" +- {stdev(values):.0f}" if len(values) > 1 else "")


def iqm(values):
    """Interquartile mean with its 95 % percentile bootstrap interval over seeds, "-" for fewer than three of them."""
    if len(values) < 3:
        return "-"

    def statistic(x, axis):
        return trim_mean(x, 0.25, axis=axis)

    interval = bootstrap((values,), statistic, method="percentile", rng=0).confidence_interval
    return f"{trim_mean(values, 0.25):.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def mean_interval(values):
    """Ends of the 95 % percentile bootstrap interval of the mean over runs: (runs, steps) -> two of (steps,).

    The means of all n^n resamples of n <= 5 runs are enumerated; of more runs 2,000 resamples are drawn.
    """
    n = len(values)
    if n <= 5:
        resamples = np.stack(np.meshgrid(*[range(n)] * n, indexing="ij"), -1).reshape(-1, n)
    else:
        resamples = np.random.default_rng(0).integers(n, size=(2000, n))
    return np.percentile(values[resamples].mean(1), [2.5, 97.5], axis=0, method="inverted_cdf")


def aggregate_iqm(by_task, draws=2000):
    """Interquartile mean over the runs of all tasks and its 95 % interval, (center, low, high).

    by_task: one list of normalised returns per task.  The bootstrap draws seeds within their task (Agarwal et al. 2021,
    "Deep Reinforcement Learning at the Edge of the Statistical Precipice").
    """
    rng = np.random.default_rng(0)
    resampled = np.concatenate([rng.choice(returns, (draws, len(returns))) for returns in by_task], axis=1)
    low, high = np.percentile(trim_mean(resampled, 0.25, axis=1), [2.5, 97.5])
    return trim_mean(np.concatenate(by_task), 0.25), low, high


def steps_to(run, value):
    """The first step at which the curve of a run is at `value` or above, None if it never is."""
    return next((step for step, seen in sorted(run.logged("episodic_return").items()) if seen >= value), None)


def median_steps_to(group, value):
    """The median over runs of steps_to(), None where half of them or more never get there."""
    steps = [steps_to(run, value) or float("inf") for run in group]
    return None if median(steps) == float("inf") else median(steps)


def is_reliable(run, scale):
    """Whether the curve never falls below 0.9 of the highest value that it had reached (after REPPO, section 5).

    Counted from where it first reaches a tenth of `scale`: below that, 0.9 is within the noise.  None where it never
    gets there: a run that has learned nothing has nothing to lose.
    """
    highest = None
    for _, seen in sorted(run.logged("episodic_return").items()):
        if highest is not None or seen >= scale / 10:
            highest = max(highest or seen, seen)
            if seen < 0.9 * highest:
                return False
    return None if highest is None else True


def largest_drop(run):
    """How far the curve falls at most below the highest value before."""
    curve = np.array([seen for _, seen in sorted(run.logged("episodic_return").items())])
    return float((np.maximum.accumulate(curve) - curve).max())
