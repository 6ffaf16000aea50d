"""Answering the samples of a study, those of similar length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmflow.lvlm.batch_size import Batch
from vlmflow.studies.batching.ahead import Prepared, Preparer
from vlmflow.studies.batching.batches import Batches, windows
from vlmflow.studies.truncations.answering import Piece, answer_samples, failed_results
from vlmflow.studies.truncations.arms import Arm
from vlmflow.studies.truncations.store import StoredResult

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


@dataclass(frozen=True)
class AnsweredBatch:
    """Pieces that were given to the model together, with their results."""

    results: list[tuple[Piece, list[StoredResult]]]
    at_once: int  # How many it took at once; fewer where memory ran out, or one of them failed


class Answering:
    """Answers pieces with one model; how much memory one takes is seen once.

    Parameters
    ----------
    vlm : LVLM
        The model.
    batch : int or "auto"
        Samples at once.
    max_new_tokens : int
        Longest answer.
    """

    def __init__(self, vlm: LVLM, batch: Batch, max_new_tokens: int) -> None:
        self.vlm, self.batch, self.length = vlm, batch, max_new_tokens
        self.batches = Batches(batch, vlm.device)
        self.preparer = Preparer(vlm)

    def __call__(self, pieces: Iterator[Piece]) -> Iterator[AnsweredBatch]:
        """Give every piece's results, batch by batch, in any order."""

        def prepare(window: list[Piece]) -> list[Prepared]:
            return [self.preparer.prepare(piece.sample) for piece in window]

        for window, prepared in self.preparer.ahead(prepare, windows(pieces, self.batch)):
            of_arms: dict[
                tuple[Arm, ...], list[int]
            ] = {}  # a study that goes on lacks different ones
            for place, piece in enumerate(window):
                of_arms.setdefault(tuple(item.arm for item in piece.items), []).append(place)
            for places in of_arms.values():
                own = [window[place] for place in places]
                yield from self._answered(own, [prepared[place] for place in places])

    def _answered(
        self, pieces: Sequence[Piece], prepared: Sequence[Prepared]
    ) -> Iterator[AnsweredBatch]:
        """Answer pieces that lack the same arms."""
        piece_of = {id(item): piece for item, piece in zip(prepared, pieces, strict=True)}
        sizes: list[int] = []

        def work(batch: Sequence[Prepared]) -> list[list[StoredResult]]:
            items = [piece_of[id(item)].items for item in batch]
            results = answer_samples(self.vlm, batch, items, self.length)
            sizes.append(len(batch))
            return results

        for places in self.batches.plan(prepared, work):
            sizes.clear()
            outcomes = self.batches.run(work, [prepared[place] for place in places])
            results = [
                (
                    pieces[place],
                    failed_results(pieces[place].items, outcome)
                    if isinstance(outcome, Exception)
                    else outcome,
                )
                for place, outcome in zip(places, outcomes, strict=True)
            ]
            yield AnsweredBatch(results, max(sizes, default=1))
