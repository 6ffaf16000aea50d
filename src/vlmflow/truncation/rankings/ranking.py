"""The seam for rankings: which image tokens of one prompt stay.

A ranking is a subclass of :class:`Ranking`, in a notebook cell, in another package or in a file of
this folder; an instance of it is what ``Truncation(rank_by=...)`` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlmflow.errors import InputError
from vlmflow.extensions import Extension
from vlmflow.flow.signals.registry import as_signals

if TYPE_CHECKING:
    from torch import Tensor

    from vlmflow.flow.signals.signal import Signal
    from vlmflow.truncation.rankings.candidates import Candidates

READS = ("hidden", "keys", "attention", "places", "answer")
"""What a ranking can read, see :attr:`Ranking.reads`."""

ROWS = ("last", "text", "all")
"""Which rows of attention it can read, see :attr:`Ranking.rows`."""


@dataclass(frozen=True)
class RankingSize:
    """Sizes that the cost of a ranking depends on."""

    image: int  # Image tokens at the stage
    text: int  # All other tokens of the prompt
    user: int  # Those of them after the picture
    width: int  # Width of the hidden states
    inner: int  # Query heads times their width


@dataclass(frozen=True)
class Ranking(Extension):
    """Chooses which image tokens of a prompt stay.

    Subclass it as a frozen dataclass whose fields are its parameters, and override :meth:`scores`
    (the highest stay) or :meth:`select` (any choice):

    >>> @dataclass(frozen=True)
    ... class Contrast(vlmflow.Ranking):
    ...     '''Keeps tokens that differ from their picture's mean state.'''
    ...     power: float = 1.0
    ...     reads = "hidden"
    ...
    ...     def scores(self, seen):
    ...         states = seen.hidden[seen.image].float()
    ...         return (states - states.mean(0)).norm(dim=-1) ** self.power

    From then on, the command line and saved policies find a subclass by its name.
    """

    reads: ClassVar[str | tuple[str, ...]] = "hidden"
    """What it reads, beside the hidden states that every ranking is given.

    ``"keys"``: queries, keys and values of the layer before. ``"attention"``: that layer's
    attention to the image tokens (:attr:`rows` says of which rows). ``"places"``: rows and columns
    of the image tokens. ``"answer"``: a map of the model's own first answer token (:attr:`signal`
    says which), which takes a whole forward and backward pass and makes it an oracle: an upper
    bound, not a method. Several go in a tuple.
    """

    rows: ClassVar[str] = "last"
    """For ``"attention"``: which rows. ``"last"``: the last token of the prompt. ``"text"``: all
    text after the first image token. ``"all"``: image tokens, too."""

    signal: ClassVar[str | Signal] = ""
    """For ``"answer"``: the map, as :meth:`vlmflow.LVLM.explain` takes it."""

    def scores(self, seen: Candidates) -> Tensor:
        """Give every image token a score; the highest stay, of equal ones the earlier.

        Parameters
        ----------
        seen : Candidates
            What it may read.

        Returns
        -------
        (P,)
            In any order of magnitude, without NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither scores nor select")

    def select(self, seen: Candidates, keep: int) -> Tensor:
        """Choose ``keep`` of the P image tokens, ``1 <= keep <= P``.

        Returns
        -------
        (keep,) int64
            Indices into ``seen.image``, increasing.
        """
        scores = self.scores_of_each(seen)
        if bool(scores.isnan().any()):
            raise InputError(self.no_number)
        return highest(scores, keep)

    def scores_of_each(self, seen: Candidates) -> Tensor:
        """Return :meth:`scores`, NaN among them; InputError where they are not (P,)."""
        scores = self.scores(seen)
        if not hasattr(scores, "isnan"):
            raise InputError(
                f"ranking {self.title} gave scores as a {type(scores).__name__}: return a tensor "
                f"of {len(seen.image)} scores, one for each image token"
            )
        if scores.shape != seen.image.shape:
            raise InputError(
                f"ranking {self.title} gave scores of shape {tuple(scores.shape)}, but there are "
                f"{len(seen.image)} image tokens: return one score for each"
            )
        return scores

    @property
    def no_number(self) -> str:
        """What is wrong where a score is NaN."""
        return f"ranking {self.title} gave a score that is not a number (NaN)"

    def flops(self, size: RankingSize) -> int:
        """Count the operations of its matrix products at one stage.

        By default those of the attention rows that it reads. Override it to add more.
        """
        if "attention" not in self.all_reads:
            return 0
        rows = {"last": 1, "text": size.user, "all": size.image + size.user}[self.rows]
        return 2 * rows * (size.image + size.text) * size.inner

    @property
    def all_reads(self) -> tuple[str, ...]:
        """:attr:`reads` as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else tuple(self.reads)

    def check_declared(self) -> None:
        """Raise InputError for a class that declares what does not exist."""
        self.check_parameters()
        for source in self.all_reads:
            if source not in READS:
                raise InputError(
                    f"ranking {self.known_as()} declares reads={self.reads!r}, but "
                    f"{source!r} is none of {', '.join(READS)}"
                )
        if self.rows not in ROWS:
            raise InputError(
                f"ranking {self.known_as()} declares rows={self.rows!r}, which is none of "
                f"{', '.join(ROWS)}"
            )
        if self.is_oracle and not self.signal:
            raise InputError(
                f"ranking {self.known_as()} reads the answer but declares no signal; write for "
                "example signal = 'saliency'"
            )
        if self.is_oracle and not self._signal.in_one_pass:
            raise InputError(
                f"ranking {self.known_as()} declares signal={self._signal.title!r}, which takes "
                "passes of its own (a mean over noisy pictures, a path or a search); choose a "
                "signal of one pass"
            )

    @property
    def _signal(self) -> Signal:
        return as_signals((self.signal,))[0]

    def _sources(self) -> Iterator[str]:
        yield from super()._sources()
        if self.is_oracle:  # an edited signal chooses other tokens
            yield self._signal.fingerprint()

    @property
    def needs_layer_before(self) -> bool:
        """Whether it reads queries, keys, values or attention of the layer before."""
        return bool({"keys", "attention"} & set(self.all_reads))

    @property
    def is_oracle(self) -> bool:
        """Whether it looks at the answer."""
        return "answer" in self.all_reads


def highest(scores: Tensor, keep: int) -> Tensor:
    """Return the indices, increasing, of the ``keep`` highest scores, of equal ones the earlier."""
    return scores.sort(descending=True, stable=True).indices[:keep].sort().values
