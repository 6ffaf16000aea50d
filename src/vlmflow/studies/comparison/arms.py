"""What a comparison of rankings puts to a model: every ranking at every number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmflow.errors import InputError
from vlmflow.truncation.amounts import amount
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.rankings.registry import RANKINGS, as_ranking
from vlmflow.truncation.rankings.uniform import Uniform
from vlmflow.truncation.truncation import Truncation

ALL = "all"
"""In a list of rankings: every one that comes with the package."""


DRAWS = 3
"""Random choices of tokens, whose scores are averaged."""


def compared_rankings(given: Sequence[object], seed: int) -> tuple[Ranking, ...]:
    """Return what is compared: :data:`DRAWS` random choices first, then uniform and the given.

    Parameters
    ----------
    given
        Rankings and names of rankings; :data:`ALL` stands for every bundled one.
    seed
        Of the first random choice.

    Raises
    ------
    InputError
        If a ranking cannot be found, or none is given.
    """
    listed: list[object] = []
    for item in given:
        listed += list(RANKINGS.bundled()) if item == ALL else [item]
    controls: list[Ranking] = [*(Random(seed + place) for place in range(DRAWS)), Uniform()]
    rankings = [ranking for ranking in map(as_ranking, listed) if not isinstance(ranking, Random)]
    if not rankings:
        raise InputError(
            "no ranking to compare with random tokens is given; name one ('vlmflow rankings' "
            "lists them), pass your own, or give 'all'"
        )
    return tuple(dict.fromkeys([*controls, *rankings]))


def compared_truncations(
    rankings: Sequence[Ranking], layer: int, keeps: Sequence[int | float]
) -> tuple[Truncation, ...]:
    """Put every ranking on every number of tokens.

    Raises
    ------
    InputError
        If a number is not one, keeps nothing or everything, or stands there twice.
    """
    amounts = [amount(keep) for keep in keeps]
    if not amounts:
        raise InputError("keep is empty; give the numbers of tokens to compare at, as 0.5,0.25")
    if len(set(amounts)) < len(amounts):
        raise InputError(f"keep={list(keeps)} names a number of tokens twice; name each once")
    for keep in amounts:
        if not keep or keep.plain == 1.0:
            what = "no token, which leaves" if not keep else "every token, which leaves"
            raise InputError(f"keep={keep.plain!r} keeps {what} nothing to rank; give another")
    return tuple(
        Truncation(layer, keep.plain, rank_by=ranking) for keep in amounts for ranking in rankings
    )


def is_comparison(truncations: Sequence[object]) -> bool:
    """Whether a study's truncations are a comparison's: one layer, and random tokens among them.

    They are given as a study keeps them: as truncations or as what they are saved as.
    """
    try:
        policies = [
            item if isinstance(item, Truncation) else Truncation.from_json(_mapping(item))
            for item in truncations
        ]
    except InputError:
        return False
    return (
        bool(policies)
        and all(len(policy.stages) == 1 and policy.ranks for policy in policies)
        and len({policy.stages[0].layer for policy in policies}) == 1
        and any(isinstance(policy.ranking, Random) for policy in policies)
        and any(isinstance(policy.ranking, Uniform) for policy in policies)
    )


def is_uniform(ranking: Ranking) -> bool:
    """Whether a ranking is the even spread, a control that looks at nothing."""
    return isinstance(ranking, Uniform)


def is_control(ranking: Ranking) -> bool:
    """Whether a ranking stands in every comparison: random tokens, or the even spread."""
    return isinstance(ranking, Random | Uniform)


def _mapping(item: object) -> Mapping[str, object]:
    if not isinstance(item, Mapping) or "preset" in item:
        raise InputError(f"{item!r} is not a truncation")
    return {key: value for key, value in item.items() if key != "name"}
