"""What a signal may look at: one decoder layer, for one target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.signals.readings import ATTENTION, FEATURES, SALIENCY


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer and one target: the whole answer, or one of its tokens.

    ``R`` rows are positions that attend, ``P`` image tokens are attended to, ``C`` is the number
    of channels of the features.

    Parameters
    ----------
    name, reads : str, tuple of str
        The signal that reads, and what it declares to read: it is given nothing else.
    layer : int
        Counted from 0.
    is_answer : (R,) bool
        Which of the rows predict tokens of the answer; the others belong to the question. Without
        rows (features) it is empty.
    """

    name: str
    reads: tuple[str, ...]
    layer: int
    is_answer: Tensor
    _attention: Tensor | None = None
    _signed: Tensor | None = None
    _features: Tensor | None = None
    _gradient: Tensor | None = None
    _difference: Tensor | None = None

    @property
    def attention(self) -> Tensor:
        """``mean_h A[h, i, j]`` of the rows to the image tokens: (R, P)."""
        return self._given("attention", ATTENTION, self._attention)

    @property
    def signed_saliency(self) -> Tensor:
        """``sum_h A[h, i, j] * d target / d A[h, i, j]`` of all text rows: (R, P)."""
        return self._given("signed_saliency", SALIENCY, self._signed)

    @property
    def saliency(self) -> Tensor:
        """``I_l(i, j)``, the absolute value of :attr:`signed_saliency`: (R, P).

        Wang et al., "Label Words are Anchors", EMNLP 2023, section 2.1 (the transpose in its first
        arXiv version is a typo): the sum over the heads is taken before the absolute value.
        """
        return self._given("saliency", SALIENCY, self._signed).abs()

    @property
    def features(self) -> Tensor:
        """Features at the image tokens: (P, C), at least float32."""
        return self._given("features", FEATURES, self._features)

    @property
    def gradient(self) -> Tensor:
        """What :meth:`Signal.pool` leaves of the gradient at the image tokens: (P, C) or less."""
        return self._given("gradient", FEATURES, self._gradient)

    @property
    def difference(self) -> Tensor:
        """``x - x'``, how far the image embeddings are from a path's baseline: (P, C).

        At the first layer's input (hook point ``"layer_input"``) of a signal with a
        :attr:`Signal.path`.
        """
        if self._difference is None:
            raise InputError(
                f"signal {self.name!r} looks at seen.difference, which there is at the "
                '"layer_input" of layer 0 alone, and on a path: define path and hook_point'
            )
        return self._difference

    def _given(self, what: str, declared: str, value: Tensor | None) -> Tensor:
        if value is None:
            raise InputError(
                f"signal {self.name!r} looks at seen.{what} but declares reads={self.reads!r}; "
                f"add {declared!r} to it"
            )
        return value
