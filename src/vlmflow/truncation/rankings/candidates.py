"""What a ranking may read: one prompt at the input of the layer that truncates."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall, mean_attention
from vlmflow.truncation.forward_call import ForwardCall


@dataclass(frozen=True, eq=False)
class Candidates:
    """The image tokens of one prompt, and what a ranking may read about them.

    ``n`` tokens at the stage, padding included; ``P`` of them image tokens, ``U`` text after the
    first of these. What a ranking does not declare to read is refused.

    Parameters
    ----------
    name, reads, rows : str, tuple of str, str
        The ranking that looks, and what it declares to read.
    layer : int
        The layer that truncates, counted from 0.
    hidden : (n, width)
        Hidden states at its input.
    image, text : (P,), (U,) int64
        Image tokens that are left, and text after the first of them: indices into ``hidden``, in
        order.
    """

    name: str
    reads: tuple[str, ...]
    rows: str
    layer: int
    hidden: Tensor
    image: Tensor
    text: Tensor
    _call: ForwardCall
    _row: int  # Which prompt of the batch
    _image_slots: Tensor  # (P,) int64
    _attention: AttentionCall | None  # Of the layer before
    # Where one picture's tokens are chosen from apart: those of all pictures, and which it is
    _every_image: Tensor | None = None
    _picture: int | None = None
    # Attention of the declared rows to all keys, once something has read it
    _rows: list[Tensor] = field(default_factory=list)

    @property
    def queries(self) -> Tensor:
        """Queries of the layer before: (heads, n, head_dim), after rotary embedding."""
        return self._attention_call("queries").query[self._row]

    @property
    def keys(self) -> Tensor:
        """Keys of the image tokens at the layer before: (key heads, P, head_dim)."""
        call = self._attention_call("keys")
        return call.key[self._row][:, self._image_keys(call)]

    @property
    def values(self) -> Tensor:
        """Values of the image tokens at the layer before: (key heads, P, head_dim)."""
        call = self._attention_call("values")
        return call.value[self._row][:, self._image_keys(call)]

    @property
    def attention(self) -> Tensor:
        """Attention of the declared rows to the image tokens, mean over the heads: (rows, P).

        Of the layer before. Without any text after the picture, ``"text"`` means its last token.
        """
        if self.rows == "all":
            return self.attention_of(torch.cat([self.image, self.text]).sort().values)
        # The same rows for every picture: their attention to all keys is made once.
        call = self._attention_call("attention")
        if not self._rows:
            self._rows.append(mean_attention(call, self._row, self._last_or_text()))
        return self._rows[0][:, self._image_keys(call)]

    def _last_or_text(self) -> Tensor:
        image = self.image if self._every_image is None else self._every_image
        if self.rows == "last":
            return torch.cat([image, self.text]).amax()[None]
        return self.text if len(self.text) else image[-1:]

    def attention_of(self, rows: Tensor) -> Tensor:
        """Attention of any rows to the image tokens, mean over the heads.

        Parameters
        ----------
        rows : (R,) int64
            Indices into ``hidden``.

        Returns
        -------
        (R, P) float32
        """
        call = self._attention_call("attention")
        return mean_attention(call, self._row, rows)[:, self._image_keys(call)]

    @property
    def places(self) -> Tensor:
        """Picture, row and column of each image token, in patches: (P, 3) float64, on the CPU.

        Raises
        ------
        InputError
            If they are not known.
        """
        self._require(("places",), "places")
        places = self.places_if_known
        if places is None:
            raise InputError(
                f"rank_by={self.name!r} needs rows and columns of image tokens, "
                "which are not known for this model; choose another ranking"
            )
        return places

    @property
    def places_if_known(self) -> Tensor | None:
        """:attr:`places`, or None where they are not known."""
        self._require(("places",), "places_if_known")
        return self._call.places(self._row, self._image_slots)

    @property
    def maps(self) -> Tensor:
        """The declared signal's map of every layer, for the first answer token: (L, P).

        (1, P) for a signal that sums over layers.

        Raises
        ------
        InputError
            If the prompt was not measured as a whole.
        """
        self._require(("answer",), "maps")
        if self._call.maps is None:
            raise InputError(
                "an oracle ranking needs the whole prompt in one call; start a new conversation "
                "instead of continuing one"
            )
        maps = self._call.maps[self._row]
        return maps[:, self._image_slots.cpu()].to(self.hidden.device)

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a random generator of its own for this prompt, layer, seed and picture.

        It does not depend on the batch that the prompt is in.
        """
        drawn: tuple[object, ...] = (seed, self.layer, self._call.text_ids[self._row])
        if self._picture is not None:
            drawn = (*drawn, self._picture)
        return torch.Generator().manual_seed(zlib.crc32(repr(drawn).encode()))

    def _image_keys(self, call: AttentionCall) -> Tensor:
        """Where the image tokens are among the keys: a cache may hold keys before them."""
        return self.image + (call.key.shape[2] - call.query.shape[2])

    def _attention_call(self, attribute: str) -> AttentionCall:
        self._require(("keys", "attention"), attribute)
        if self._attention is None:
            raise InputError(
                f"layer {self.layer - 1} has no attention to rank by; choose another layer, or a "
                "ranking that reads hidden states (diversity, question_similarity) or nothing "
                "(random, uniform)"
            )
        return self._attention

    def _require(self, reads: tuple[str, ...], attribute: str) -> None:
        if not set(reads) & set(self.reads):
            raise InputError(
                f"ranking {self.name!r} looks at seen.{attribute} but declares "
                f"reads={self.reads!r}; add {' or '.join(map(repr, reads))} to it"
            )


def of_picture(seen: Candidates, tokens: Tensor, picture: int) -> Candidates:
    """Leave the tokens of one picture to choose from.

    What looks at them is the same text everywhere; other pictures' tokens are not there.

    Parameters
    ----------
    seen : Candidates
        Of all pictures.
    tokens : (p,) int64
        Indices into ``seen.image``, increasing.
    picture : int
        Its number, so that random choices differ between pictures.
    """
    return replace(
        seen,
        image=seen.image[tokens],
        _image_slots=seen._image_slots[tokens],
        _every_image=seen.image,
        _picture=picture,
    )
