"""What each of several runs is to the others: the untouched one, a truncation, or a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.lmms_eval_model.arguments import NAMES, split_arguments
from vlmflow.studies.imported.logs import LISTED, LoggedRun
from vlmflow.studies.truncations.arms import NO_IMAGE, UNTOUCHED
from vlmflow.truncation.policy import SETTINGS
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.truncation import Truncation

OURS = "vlmflow"
RANDOM_OF = "random:"
"""Begins the name of a run of random tokens that is a control of the run named after it."""

BLIND = Truncation(0, 0, rank_by=Random())
"""The run without the picture, as :func:`_schedule` reads it."""

_REMOVING = ("preset", "policy")
_SAME = ("pretrained", "revision", "dtype")
"""Arguments in which the runs of one study must not differ."""


@dataclass(frozen=True)
class ImportedArm:
    """One run, and what it is to the others.

    Parameters
    ----------
    name : str
        What the user calls it, or what its arguments say.
    kind : str
        ``"untouched"``, ``"no image"``, ``"random"`` or ``"truncation"``.
    arguments : str
        Its ``--model_args``.
    of : tuple of str
        Of a run of random tokens: the runs that it is a control of.
    ranks : bool
        Whether it chooses tokens, so that random ones are its control.
    """

    name: str
    kind: str
    arguments: str
    of: tuple[str, ...] = ()
    ranks: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**vars(self), "of": list(self.of)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ImportedArm:
        """Rebuild it from :meth:`to_json`."""
        return cls(**{**plain, "of": tuple(plain["of"])})


def arms_of_runs(
    runs: Sequence[tuple[str, LoggedRun]],
) -> tuple[tuple[ImportedArm, LoggedRun], ...]:
    """Say what every run is, and put the untouched one first.

    Parameters
    ----------
    runs : sequence of (str, LoggedRun)
        With the names that the user gave; an empty one is made of the run's arguments.

    Raises
    ------
    InputError
        If not exactly one run is untouched, two have a name in common, there is no other, or runs
        are of different models.
    """
    removing = [_removing(run) for _, run in runs]
    names = [
        name or _label(run, removed) for (name, run), removed in zip(runs, removing, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two runs are called {name!r}; name them: --import NAME=DIR --import OTHER=DIR"
            )
    _check_models([run for _, run in runs], names)
    schedules = [_schedule(removed) for removed in removing]
    arms: list[tuple[ImportedArm, LoggedRun]] = []
    for name, (_, run), removed, schedule in zip(names, runs, removing, schedules, strict=True):
        kind = "truncation"
        of: tuple[str, ...] = ()
        at_random = _ranking(removed) == Random.name
        if name == UNTOUCHED or (run.model == OURS and not removed):
            kind = UNTOUCHED
        elif name == NO_IMAGE or schedule == BLIND:
            kind = NO_IMAGE
        elif name.startswith(RANDOM_OF):
            kind, of = "random", (_named_in(name, names),)
        elif schedule is not None and schedule.ranks and at_random:
            kind = "random"
            of = tuple(
                other
                for other, theirs, chosen in zip(names, schedules, removing, strict=True)
                if theirs == schedule and _ranking(chosen) != Random.name
            )
        _check_name(name, run, removed, schedule)
        ranks = kind == "truncation" and schedule is not None and schedule.ranks
        arms.append((ImportedArm(name, kind, run.arguments, of, ranks), run))
    own = [pair for pair in arms if pair[0].kind == UNTOUCHED]
    if len(own) != 1:
        what = "none of the runs is"
        if own:
            what = f"{_listed([arm.name for arm, _ in own])} are"
        raise InputError(
            f"{what} untouched, but the others are compared with one such run; name it: "
            "--import untouched=DIR"
        )
    if len(arms) < 2:
        raise InputError("there is nothing to compare the untouched run with; --import one more")
    return (*own, *(pair for pair in arms if pair[0].kind != UNTOUCHED))


def _check_name(
    name: str, run: LoggedRun, removed: Mapping[str, str], schedule: Truncation | None
) -> None:
    """Refuse a name that says something else than the arguments of our model do."""
    if run.model != OURS:
        return
    is_so = {
        UNTOUCHED: not removed,
        NO_IMAGE: schedule == BLIND,
        RANDOM_OF: schedule is not None and schedule.ranks and _ranking(removed) == Random.name,
    }
    for begins, holds in is_so.items():
        called_so = name.startswith(begins) if begins == RANDOM_OF else name == begins
        if called_so and not holds:
            raise InputError(
                f"the run called {name!r} was made with --model_args {run.arguments}, which is "
                "something else; give it another name"
            )


def _removing(run: LoggedRun) -> dict[str, str]:
    """Return those arguments of our model that remove image tokens."""
    if run.model != OURS:
        return {}
    return {
        name: value
        for name, value in split_arguments(run.arguments).items()
        if name not in NAMES or name in _REMOVING
    }


def _label(run: LoggedRun, removed: Mapping[str, str]) -> str:
    if run.model != OURS:
        raise InputError(
            f"the run in {str(run.directory)!r} is not one of --model vlmflow, so that nothing "
            f"says what it is; name it: --import NAME={run.directory}"
        )
    return ",".join(f"{name}={value}" for name, value in removed.items()) or UNTOUCHED


def _schedule(removed: Mapping[str, str]) -> Truncation | None:
    """Read a truncation's settings, with random tokens for those that it chooses.

    None where there are none, or they are not settings. What chooses is not looked up: a log must
    not say which module is imported.
    """
    settings = {name: value for name, value in removed.items() if name in SETTINGS}
    if "layer" not in settings:
        return None
    settings["rank_by"] = Random.name
    try:
        return Truncation.parse(",".join(f"{name}={value}" for name, value in settings.items()))
    except InputError:
        return None


def _ranking(removed: Mapping[str, str]) -> str:
    """Return the name of the ranking, without its parameters."""
    return removed.get("rank_by", "").strip("'\"").partition("(")[0].strip()


def _named_in(name: str, names: Sequence[str]) -> str:
    """Return the run that one is called a control of."""
    named = name.removeprefix(RANDOM_OF)
    if named not in names:
        raise InputError(
            f"the run {name!r} is to be a control of {named!r}, but no run is called so; there are "
            f"{_listed(names)}"
        )
    return named


def _check_models(runs: Sequence[LoggedRun], names: Sequence[str]) -> None:
    """Refuse runs of different models: what they differ in would pass for truncation's doing."""
    for argument in _SAME:
        given = {
            name: split_arguments(run.arguments).get(argument, "")
            for name, run in zip(names, runs, strict=True)
            if run.model == OURS
        }
        if len(set(given.values())) > 1:
            said = ", ".join(f"{name}: {value or 'not given'}" for name, value in given.items())
            raise InputError(
                f"the runs differ in {argument} ({said}), which would pass for what truncation "
                "does; import runs of one model"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more
