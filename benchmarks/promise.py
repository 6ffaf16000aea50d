"""How often does a certified policy break its promise? On real measurements, drawn again.

    vlmflow certify scenes-existence --calibration 400 --out policy.json
    python benchmarks/promise.py policy        # the directory beside the policy's file

All samples that a finished ``vlmflow certify`` has measured, of both splits, are taken as a
population, in which the risk of any policy is known exactly. From it as many calibration samples
as there were are drawn with replacement, policies are fitted and tested on them anew, and the one
that would be deployed is judged on the whole population: ``--redraws`` times. Beside it stands a
wrong variant, which deploys the first policy that fails. An exact one-sided test at 1 % says
whether a promise is broken more often than its confidence allows.

The promise is the one about changed answers (``--risk``); losses would take the task's scores.
``--without-probe`` leaves out the probe, whose fits take most of the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmflow.errors import InputError
from vlmflow.statistics.risk_control import binomial_p_value
from vlmflow.studies.certification.findings import Findings
from vlmflow.studies.certification.independent import divided
from vlmflow.studies.certification.outcomes import FloatArray, Outcomes
from vlmflow.studies.certification.paths import (
    Promise,
    choose_path,
    fit_path,
    pass_along,
    signal_values,
)
from vlmflow.studies.certification.store import CERTIFY, StoredExits, unpack
from vlmflow.studies.rescue import readable_rows
from vlmflow.studies.store import Store

TEST_LEVEL = 0.01


@dataclass(frozen=True)
class Redraws:
    """Risks in the population of what was deployed; 0 where nothing was certified."""

    risks: FloatArray  # (R,): of the policy that is deployed
    wrong: FloatArray  # (R,): of the first that fails
    certified: int  # In how many draws a policy passed

    def broken(self, risk: float) -> tuple[int, int]:
        """Count the draws whose risk is larger than promised: deployed, and the wrong variant."""
        return int((self.risks > risk).sum()), int((self.wrong > risk).sum())


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
        What is promised of changed answers.
    samples, draws, seed : int
        Calibration samples of each draw, with replacement; how many draws; of the generator.
    probe : bool
        Whether a probe is fitted, too.
    """
    generator = np.random.default_rng(seed)
    risks, wrong, certified = np.zeros(draws), np.zeros(draws), 0
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
        found = [float(population.changes(exits, path.keep).mean()) for exits in replayed]
        failing = 0
        if tested.accepted is not None:
            certified += 1
            risks[number] = found[tested.accepted]
            failing = min(tested.accepted + 1, len(found) - 1)
        wrong[number] = found[failing]
    return Redraws(risks, wrong, certified)


def read_population(directory: Path) -> tuple[Outcomes, Findings]:
    """Read all samples that a finished certificate was made of, in no order that matters.

    Raises
    ------
    InputError
        If it is not finished, promises no risk, or its store holds measurements of other settings.
    """
    store = Store(directory, CERTIFY)
    try:
        findings = Findings.from_json(store.record())
        rows = [StoredExits(*row[:-1]) for row in readable_rows(store.path, CERTIFY)["exits"]]
    finally:
        store.close()
    settings = findings.settings
    if settings.risk is None:
        raise InputError(f"the certificate in {str(directory)!r} promises no risk of a change")
    measured = [
        unpack(row.plain, row.arrays)
        for row in rows
        if row.plain is not None and row.arrays is not None
    ]
    shape = len(findings.layers), len(settings.keeps)
    least = findings.fitted + findings.tested
    alike = all(len(own.answers) == 1 + shape[0] * shape[1] for own in measured)
    if not alike or not least < len(measured) <= least + settings.samples:
        raise InputError(
            f"the store in {str(directory)!r} holds measurements of other settings, too; certify "
            "into a new directory"
        )
    changed = [
        [other["ids"] != own.answers[0]["ids"] for other in own.answers[1:]] for own in measured
    ]
    signals: Mapping[str, FloatArray] = {
        name: np.stack([own.signals[name] for own in measured]) for name in measured[0].signals
    }
    places = tuple(map(str, range(len(measured))))
    population = Outcomes(
        layers=findings.layers,
        depth=int(findings.model["layers"]),
        keeps=settings.keeps,
        changed=np.array(changed, dtype=bool).reshape(len(measured), *shape),
        losses=np.zeros((len(measured), *shape)),
        signals=dict(signals),
        states=np.stack([own.states for own in measured]),
        texts=np.stack([own.text for own in measured]),
        groups=("",) * len(measured),
        clusters=places,  # of a sample that is drawn twice the same, so folds do not share it
    )
    return population, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--redraws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-probe", action="store_true")
    arguments = parser.parse_args()
    population, findings = read_population(arguments.directory)
    settings = findings.settings
    assert settings.risk is not None
    promise = Promise(settings.risk, None, settings.confidence)
    samples = findings.fitted + findings.tested
    drawn = redraw(
        population,
        promise,
        samples,
        arguments.redraws,
        arguments.seed,
        probe=not arguments.without_probe,
    )
    print(
        f"{len(population)} samples of {findings.task}; {arguments.redraws} draws of {samples}; "
        f"promised: at most {settings.risk:.1%} change, with {settings.confidence:.0%} confidence\n"
        f"a policy was certified in {drawn.certified} draws\n"
    )
    print("deployed                  broken          chance of as many   kept (test at 1 %)")
    names = ("the last that passes", "the first that fails")
    for name, broken in zip(names, drawn.broken(settings.risk), strict=True):
        chance = chance_of_as_many(broken, arguments.redraws, promise.level)
        share = f"{broken} ({broken / arguments.redraws:.1%})"
        print(f"{name:24}  {share:14}  {chance:17.2g}   {'yes' if chance > TEST_LEVEL else 'NO'}")


if __name__ == "__main__":
    main()
