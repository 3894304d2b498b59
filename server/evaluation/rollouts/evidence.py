"""Whether one mean is proven to be above another, at any time one cares to look: betting on bounded values.

Somebody who doubts bets that the candidate's values lie above a bound ``m`` and the stable's below it. If in truth the
candidate's mean is not above the stable's, there is an ``m`` between both at which neither bet gains on average: the
wealth won is a nonnegative supermartingale that starts at 1, and by Ville's inequality it reaches ``1 / error_rate``
with a probability of ``error_rate`` at most, however often one looks and whenever one stops. So the proof is there once
the wealth is that high for *every* ``m``. This holds for any values from 0 to 1 that are drawn alike within an arm,
for any number of them, without a normal law and without a smallest sample.

The stakes are many, from timid to bold, and the wealth is their mean, so nobody has to know how far apart the means
are. Half of it is staked alike on both arms, which wins most at the bounds between the means, and half on each arm
apart, which wins at all others. Each wealth is a product over the values: the order they come in is of no consequence,
and a score that comes late is as good as one that comes at once, as long as its coming does not depend on what it is.

Letters: K stakes, N values. Any thread.

Source:
    Betting on a bounded mean: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    arXiv 2010.09686. Ville's inequality: J. Ville, "Étude critique de la notion de collectif", 1939. That the wealths
    of two samples at one bound multiply follows: each value moves one of the factors, by 1 or less on average.
"""

import math

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# The best stake for a difference d at a variance v is d / v: these reach from half a point of ROUGE in a wide spread to
# differences nobody needs statistics for. The stake of nothing is for bounds at which one of the arms can only lose.
_STAKES_K: Values = np.array([0.0, *np.geomspace(0.2, 10.0, 14)])
# The most of one's wealth that one value may take: all of it, and a single outlier would end the game for good.
_MAX_LOSS = 0.9
_NARROWEST = 1e-6
_MAX_NUM_BOUNDS = 4000


def is_above(candidate: Values, stable: Values, *, share: float, margin: float = 0.0, error_rate: float) -> bool:
    """Return whether the candidate's mean is proven to exceed the stable's by more than a margin.

    Args:
        candidate: Values from 0 to 1.
        stable: Values from 0 to 1.
        share: Share of the values that were *planned* to be the candidate's, above 0 and below 1; known before any
            value is. It makes the proof come sooner, and is not needed for it to hold.
        margin: What must be exceeded, 0 or more.
        error_rate: Probability that this is ever wrongly true, over all looks.
    """
    # Where the means lie the wrong way round, there is a bound between them at which no stake has won anything.
    if not len(candidate) or not len(stable) or candidate.mean() - margin <= stable.mean():
        return False
    wanted = -math.log(error_rate)
    winning, losing = _counted(candidate), _counted(1.0 - stable)

    def wealth(upper: float, lower: float) -> float:
        up_K = _log_gains(winning, min(upper + margin, 1.0), _STAKES_K * (1.0 - share))
        down_K = _log_gains(losing, 1.0 - lower, _STAKES_K * share)
        together, apart = _log_mean(up_K + down_K), _log_mean(up_K) + _log_mean(down_K)
        return float(np.logaddexp(together, apart)) - math.log(2.0)

    # Most looks end here: this is close to where a doubter would set the bound.
    num_values = len(candidate) + len(stable)
    pooled = float(((candidate - margin).sum() + stable.sum()) / num_values)
    doubted = min(max(pooled, 0.0), 1.0)
    if wealth(doubted, doubted) < wanted:
        return False
    # What the candidate's bet wins falls with the bound and what the stable's wins rises: so between two bounds there
    # is no less than what both win at the end that is worse for them.
    open_bounds = [(0.0, 1.0)]
    for _ in range(_MAX_NUM_BOUNDS):
        if not open_bounds:
            return True
        low, high = open_bounds.pop()
        if wealth(high, low) >= wanted:
            continue
        middle = (low + high) / 2
        if high - low < _NARROWEST or wealth(middle, middle) < wanted:
            return False
        open_bounds += [(low, middle), (middle, high)]
    return False


def is_mean_above(values: Values, bound: float, *, error_rate: float) -> bool:
    """Return whether a mean is proven to be above a bound, at any look.

    Args:
        values: From 0 to 1.
        bound: From 0 to 1.
        error_rate: Probability that this is ever wrongly true, over all looks.
    """
    if not len(values) or values.mean() <= bound:
        return False
    return _log_mean(_log_gains(_counted(values), bound, _STAKES_K)) >= -math.log(error_rate)


def _counted(values_N: Values) -> tuple[Values, Values]:
    """Return each value that occurs, and how often: scores of short texts and failures are often alike."""
    values_N, counts_N = np.unique(values_N, return_counts=True)
    return values_N, counts_N.astype(np.float64)


def _log_gains(counted: tuple[Values, Values], bound: float, stakes_K: Values) -> Values:
    """Return, by stake, the logarithm of what betting on values above a bound has made of 1."""
    values_N, counts_N = counted
    stakes_K = np.minimum(stakes_K, _MAX_LOSS / max(bound, _NARROWEST))
    gains_K: Values = np.log1p(np.outer(stakes_K, values_N - bound)) @ counts_N
    return gains_K


def _log_mean(logs_K: Values) -> float:
    highest = float(logs_K.max())
    return highest + math.log(float(np.exp(logs_K - highest).mean()))
