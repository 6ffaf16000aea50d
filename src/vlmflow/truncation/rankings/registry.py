"""Rankings by name: those of this folder, those of other packages, those defined anywhere."""

from __future__ import annotations

from vlmflow.errors import InputError
from vlmflow.extensions import Registry
from vlmflow.truncation.rankings.ranking import Ranking

DEFAULT = "last_attention"

RANKINGS = Registry(
    Ranking, noun="ranking", package="vlmflow.truncation.rankings", group="vlmflow.rankings"
)


def as_ranking(given: object) -> Ranking:
    """Return the ranking that a user names or hands over.

    Raises
    ------
    InputError
        If it cannot be found, chooses nothing, or declares to read what does not exist.
    """
    ranking = RANKINGS.read(given)
    cls = type(ranking)
    if cls.scores is Ranking.scores and cls.select is Ranking.select:
        raise InputError(
            f"ranking {ranking.known_as()!r} chooses nothing: define scores(self, seen) or "
            "select(self, seen, keep) in its class"
        )
    ranking.check_declared()
    return ranking
