"""How often a study calls one of several unsafe truncations safe: python benchmarks/choice.py

Every truncation of a simulated study truly loses a little more than the 3 points that are allowed
(answers lost minus answers won). Given is the share of studies in which at least one of 18 passes
on the calibration samples: by the adjusted Wald interval alone, with Holm's correction, and with
the exact binomial probability beside it, as studies do; 95 % confidence allows 5 %.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from vlmflow.statistics.intervals import adjusted_difference
from vlmflow.statistics.loss_tests import ALPHA, holm, least_samples, loss_p_value

MOST, TRIED = 0.03, 18


def wald_p_value(scores: np.ndarray, reference: np.ndarray) -> float:
    centre, error = adjusted_difference(scores, reference)
    return 0.5 * math.erfc((centre + MOST) / error / math.sqrt(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print("samples   lost    won    Wald alone   with Holm   and exact")
    for samples in (200, 400):
        for lost, won in ((0.035, 0.0), (0.0301, 0.0), (0.0401, 0.01), (0.2301, 0.2)):
            wrong = np.zeros(3)
            for _ in range(arguments.studies):
                drawn = rng.random((TRIED, samples))
                scores = np.where(drawn < lost, 0.0, np.where(drawn < lost + won, 2.0, 1.0))
                reference = np.ones(samples)
                wald = [wald_p_value(row, reference) for row in scores]
                exact = [loss_p_value(row, reference, MOST) for row in scores]
                wrong += min(wald) <= ALPHA, any(holm(wald)), any(holm(exact))
            alone, corrected, ours = wrong / arguments.studies
            print(
                f"{samples:7}  {lost:5.2%}  {won:5.2%}   {alone:10.1%}  {corrected:10.1%}"
                f"  {ours:10.1%}"
            )
    print("\nleast calibration samples, for a truncation without any loss")
    for most in (0.01, 0.02, 0.03, 0.05):
        counts = ", ".join(f"{least_samples(most, tried)} of {tried}" for tried in (1, 6, 18))
        print(f"at most {100 * most:g} points: {counts}")


if __name__ == "__main__":
    main()
