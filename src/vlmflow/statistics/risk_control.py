"""Promises about a risk: tests that it is at most what is allowed, one policy after another.

Learn-then-test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: policies are
put in an order from safe to aggressive that does not depend on the samples they are tested on, and
tested along it at one level until the first that fails. Then with probability at least
``1 - level`` none that was accepted has a larger risk than allowed, however many were tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_LARGEST_BET = 0.75
"""Share of the largest bet that could lose everything, which a bet may reach (WSR's c)."""


def binomial_p_value(events: int, trials: int, share: float) -> float:
    """Give the probability of at most so many events, were each as likely as ``share``: exact.

    The p-value of "the probability of an event is more than ``share``", for independent trials.
    """
    if share >= 1:
        return float(events >= trials)
    if share <= 0:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(share)
        + (trials - count) * math.log1p(-share)
        for count in range(min(events, trials) + 1)
    ]
    largest = max(logs)
    return min(1.0, math.exp(largest) * math.fsum(math.exp(log - largest) for log in logs))


def betting_p_value(losses: npt.ArrayLike, most: float, level: float) -> float:
    """Test "the mean loss is more than ``most``", for independent losses from -1 to 1.

    A bet against the hypothesis whose capital cannot be expected to grow while it is true; the
    p-value is one over the largest capital reached (Ville's inequality; Waudby-Smith and Ramdas
    2024, arXiv 2010.09686, section 4, with their predictable plug-in bets). It is valid for
    every distribution and number of samples. Gains may make up for losses.

    Parameters
    ----------
    losses : (n,) array-like
        In an order that does not depend on their values.
    most : float
        Loss that is allowed, below 1.
    level : float
        Error that the bets aim at; valid at any other, too.
    """
    values = (np.asarray(losses, np.float64) + 1) / 2
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("a loss lies outside -1 to 1")
    mean = (1 + most) / 2  # of the hypothesis, on the scale from 0 to 1
    if mean >= 1 or not values.size:
        return 1.0
    log_capital = largest = 0.0
    total, spread = 0.5, 0.25  # Half a sample in the middle, and its variance, to begin with
    pace = 2 * math.log(1 / level) / values.size
    for count, value in enumerate(values.tolist(), start=1):
        bet = min(math.sqrt(pace * count / spread), _LARGEST_BET / (1 - mean))
        log_capital += math.log1p(bet * (mean - value))
        largest = max(largest, log_capital)
        total += value
        spread += (value - total / (count + 1)) ** 2
    return math.exp(-largest)


def last_accepted(p_values: Sequence[float], level: float) -> int | None:
    """Return the last of the policies that pass before the first that fails; None: none passes.

    ``p_values`` are in the order from safe to aggressive.
    """
    accepted = list(itertools.takewhile(lambda p_value: p_value <= level, p_values))
    return len(accepted) - 1 if accepted else None


def least_trials(share: float, level: float) -> int | None:
    """Count the samples without any event that a policy needs to be accepted; None: no number."""
    if share <= 0:
        return None
    return 1 if share >= 1 else math.ceil(math.log(level) / math.log1p(-share) - 1e-12)


def most_events(trials: int, share: float, level: float) -> int | None:
    """Return the largest number of events with which a policy is accepted; None: not even 0."""
    allowed = None
    for events in range(trials + 1):
        if binomial_p_value(events, trials, share) > level:
            break
        allowed = events
    return allowed
