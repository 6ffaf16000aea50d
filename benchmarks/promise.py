"""How often does a certified policy break its promise? On real measurements, drawn again.

    vlmflow certify scenes-mixed --calibration 4900 --samples 100 --timed 0 --out pool.json
    python benchmarks/promise.py pool --calibration 500 --redraws 2000 --loss 0.02 --without-probe

All samples that a finished ``vlmflow certify`` has measured, of both splits, are taken as a
population, in which the risk of any policy is known exactly. From it calibration samples are drawn
with replacement (as many as there were, or ``--calibration``), policies are fitted and tested on
them anew, and the one that would be deployed is judged on the whole population: ``--redraws``
times. Beside it stands a wrong variant, which deploys the first policy that fails. An exact
one-sided test at 1 % says whether a promise is broken more often than its confidence allows.

Both promises are tested, each alone: the one about changed answers with the certificate's own risk
(or ``--risk``), and with ``--loss`` the one about the mean loss of the task's score. The
measurements are read through the model and the task that they were made with; what the store lacks
is measured. ``--without-probe`` leaves out the probe, whose fits take most of the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import vlmflow
from vlmflow.certification import ALL, exit_signals
from vlmflow.errors import InputError
from vlmflow.statistics.risk_control import binomial_p_value
from vlmflow.studies.certification.findings import Findings
from vlmflow.studies.certification.independent import divided, independent_samples
from vlmflow.studies.certification.measurements import outcomes_of
from vlmflow.studies.certification.measuring import Measuring
from vlmflow.studies.certification.outcomes import FloatArray, IntArray, Outcomes
from vlmflow.studies.certification.paths import (
    choose_path,
    fit_path,
    pass_along,
    signal_values,
)
from vlmflow.studies.certification.run import read_certificate
from vlmflow.studies.certification.store import CERTIFY
from vlmflow.studies.promise import Promise
from vlmflow.studies.store import writing
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import find_task

TEST_LEVEL = 0.01


@dataclass(frozen=True)
class Redraws:
    """What the deployed policies do in the population; 0 where nothing was certified.

    It is the share of changed answers or the mean loss, whichever is promised.
    """

    risks: FloatArray  # (R,): of the policy that is deployed
    wrong: FloatArray  # (R,): of the first that fails
    saved: FloatArray  # (R,): share of the image tokens' work that the deployed policy spares
    certified: int  # In how many draws a policy passed

    def broken(self, most: float) -> tuple[int, int]:
        """Count the draws in which more happens than is promised: deployed, and the wrong one."""
        return int((self.risks > most).sum()), int((self.wrong > most).sum())


def promised(population: Outcomes, exits: IntArray, keep: int, promise: Promise) -> float:
    """Return what a promise is about, over a whole population."""
    if promise.risk is not None:
        return float(population.changes(exits, keep).mean())
    return float(population.loss(exits, keep).mean())


def chance_of_as_many(broken: int, draws: int, level: float) -> float:
    """Return the probability of so many broken promises or more, were each as likely as allowed."""
    return 1.0 if broken == 0 else max(0.0, 1 - binomial_p_value(broken - 1, draws, level))


def values_of(
    fitted: Outcomes, others: Sequence[Outcomes], *, probe: bool
) -> list[dict[str, FloatArray]]:
    """Return the values of every signal on the fitting part and on others, as certifying does."""
    if probe:
        return signal_values(fitted, others)
    return [dict(part.signals) for part in (fitted, *others)]


def redraw(
    population: Outcomes, promise: Promise, samples: int, draws: int, seed: int, *, probe: bool
) -> Redraws:
    """Fit and test on samples of a population, and judge what is deployed on all of it.

    Parameters
    ----------
    population : Outcomes
        Every sample once.
    promise : Promise
        What is promised: a risk or a loss, one of them.
    samples, draws, seed : int
        Calibration samples of each draw, with replacement; how many draws; of the generator.
    probe : bool
        Whether a probe is fitted, too.
    """
    generator = np.random.default_rng(seed)
    risks, wrong, saved, certified = np.zeros(draws), np.zeros(draws), np.zeros(draws), 0
    first, second = divided(range(samples))
    for number in range(draws):
        calibration = population.of(generator.integers(0, len(population), samples))
        fitted, testing = calibration.of(first), calibration.of(second)
        inside, own, everywhere = values_of(fitted, [testing, population], probe=probe)
        paths = [
            fit_path(fitted, name, keep, table)
            for name, table in inside.items()
            for keep in range(len(population.keeps))
        ]
        path = choose_path(paths, fitted, inside, promise)
        tested = pass_along(testing, path.exits(own[path.signal]), path.keep, promise)
        replayed = path.exits(everywhere[path.signal])
        failing = 0
        if tested.accepted is not None:
            certified += 1
            risks[number] = promised(population, replayed[tested.accepted], path.keep, promise)
            saved[number] = population.saved(replayed[tested.accepted], path.keep).mean()
            failing = min(tested.accepted + 1, len(replayed) - 1)
        wrong[number] = promised(population, replayed[failing], path.keep, promise)
    return Redraws(risks, wrong, saved, certified)


def read_population(directory: Path, vlm: vlmflow.LVLM, task: Task, findings: Findings) -> Outcomes:
    """Read all samples that a finished certificate was made of, in no order that matters.

    Raises
    ------
    InputError
        If no sample was measured, or the store cannot be used.
    """
    settings = findings.settings
    with writing(directory, CERTIFY) as store:
        measuring = Measuring(vlm, task, exit_signals(ALL), settings, findings.layers, store)
        pairs = [
            pair
            for split, count in (("calibration", settings.calibration), ("test", settings.samples))
            for pair in measuring.exits(
                split, independent_samples(task, split, count, settings.seed), lambda: None
            )
        ]
    if not pairs:
        raise InputError(f"the certificate in {str(directory)!r} has no measured sample")
    population = outcomes_of(
        task, pairs, findings.layers, vlm.num_layers, settings.keeps, bounded=True
    )
    # Of a sample that is drawn twice the same, so that folds do not share it.
    return replace(population, clusters=tuple(map(str, range(len(pairs)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--calibration", type=int, help="samples of a draw")
    parser.add_argument("--redraws", type=int, default=500)
    parser.add_argument("--risk", type=float, help="the certificate's own where left out")
    parser.add_argument("--loss", type=float, help="test a promise about the mean loss, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-probe", action="store_true")
    arguments = parser.parse_args()
    findings = read_certificate(arguments.directory)
    settings, task = findings.settings, find_task(findings.task)
    vlm = vlmflow.load(str(findings.model["name"]), dtype=str(findings.model["dtype"]))
    population = read_population(arguments.directory, vlm, task, findings)
    samples = arguments.calibration or findings.fitted + findings.tested
    print(
        f"{len(population)} samples of {findings.task} on {findings.model['name']} as the "
        f"population; {arguments.redraws} draws of {samples}; {settings.confidence:.0%} confidence"
    )
    promises = [
        (name, most)
        for name, most in (
            ("risk", arguments.risk or settings.risk), ("loss", arguments.loss)
        )
        if most is not None
    ]  # fmt: skip
    for name, most in promises:
        promise = Promise(
            most if name == "risk" else None,
            most if name == "loss" else None,
            settings.confidence,
        )
        drawn = redraw(
            population, promise, samples, arguments.redraws, arguments.seed,
            probe=not arguments.without_probe,
        )  # fmt: skip
        what = "answers that change" if name == "risk" else "mean loss of the score"
        oracle = float(population.saved(population.oracle, int(np.argmin(population.keeps))).mean())
        print(
            f"\n{what}: at most {most:.1%} promised; certified in {drawn.certified} draws; on "
            f"average {drawn.saved.mean():.1%} of the image tokens' work is spared (oracle: "
            f"{oracle:.1%})\n"
        )
        print("deployed                  broken          chance of as many   kept (test at 1 %)")
        names = ("the last that passes", "the first that fails")
        for variant, broken in zip(names, drawn.broken(most), strict=True):
            chance = chance_of_as_many(broken, arguments.redraws, promise.level)
            share = f"{broken} ({broken / arguments.redraws:.1%})"
            kept = "yes" if chance > TEST_LEVEL else "NO"
            print(f"{variant:24}  {share:14}  {chance:17.2g}   {kept}")


if __name__ == "__main__":
    main()
