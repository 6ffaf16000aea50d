"""What a truncated run really did, read off its cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.cache import TruncatedLayer
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.static_cache import TruncatedStaticLayer


class TruncatedRun:
    """What a truncation block gives: ``with Truncation(...)(model) as run``."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        # Of the last prompt, for every layer: positions that it holds, (B, n), -1 where empty.
        self._positions: list[Tensor] = []
        self._valid: Tensor | None = None
        self._end = 0  # Position after the prompt
        self._left: list[int] = []  # Of its rows: the first stage that cut them, else the layers

    @property
    def tokens_per_layer(self) -> npt.NDArray[np.int64]:
        """Tokens that each layer took of the last prompt with pictures: (B, L) int64.

        Measured, not planned: counted in the keys of the cache after the prompt, padding left out
        (the prompt being the whole conversation so far), or without a cache in the hidden states
        that the layers were given.

        Raises
        ------
        InputError
            If no prompt with pictures has run in the block.
        """
        counts = [real.sum(1).cpu().numpy() for _, real in self._real_positions()]
        return np.stack(np.broadcast_arrays(*counts), axis=1).astype(np.int64)

    def positions_per_layer(self, row: int = 0) -> tuple[npt.NDArray[np.int64], ...]:
        """Say which positions each layer took of the last prompt with pictures.

        Measured as :attr:`tokens_per_layer` is. Of tokens that were merged it is the position of
        the one that stays.

        Parameters
        ----------
        row : int
            Which prompt of the batch. Its padding counts as positions, which no layer takes.

        Returns
        -------
        tuple of L (n,) int64
            Sorted.

        Raises
        ------
        InputError
            If no prompt with pictures has run in the block, or the batch has no such row.
        """
        layers = self._real_positions()
        rows = max(len(positions) for positions, _ in layers)
        if type(row) is not int or not 0 <= row < rows:
            raise InputError(f"row={row!r}, but the batch has {rows} prompt(s), counted from 0")
        taken = []
        for positions, real in layers:
            own = positions.expand(rows, -1)[row][real.expand(rows, -1)[row]]
            taken.append(own.sort().values.cpu().numpy().astype(np.int64))
        return tuple(taken)

    def _real_positions(self) -> list[tuple[Tensor, Tensor]]:
        """Give each layer's positions of the last prompt, and which of these are none of padding.

        Both are (B or 1, n).
        """
        self._require()
        layers = []
        for positions in self._positions:
            real = (positions >= 0) & (positions < self._end)
            if self._valid is not None:
                valid = self._valid.to(positions.device)
                real = real & valid.gather(1, positions.clamp_min(0).expand(len(valid), -1))
            layers.append((positions, real))
        return layers

    @property
    def exit_layers(self) -> npt.NDArray[np.int64]:
        """Layer from which each row of the last prompt lacks image tokens: (B,) int64.

        The number of layers for a row that kept all of them.

        Raises
        ------
        InputError
            If no prompt with pictures has run in the block.
        """
        self._require()
        return np.array(self._left, dtype=np.int64)

    def _require(self) -> None:
        if not self._positions:
            raise InputError(
                "no prompt with pictures has run in this truncation block yet; generate an answer "
                "inside it first"
            )

    def record(self, call: ForwardCall, cache: Any) -> None:
        """Note what a call has left in every layer, once the last one has run."""
        self._valid, self._end = call.valid, call.past + call.prompt
        self._left = [call.left.get(row, self._layers) for row in range(len(call.ids))]
        layers = getattr(cache, "layers", [])
        self._positions = [
            _held(layers[index] if index < len(layers) else None, call, index)
            for index in range(self._layers)
        ]


def _held(layer: Any, call: ForwardCall, index: int) -> Tensor:
    """Positions that a layer took: (B, n) int64, -1 where empty."""
    if isinstance(layer, TruncatedLayer | TruncatedStaticLayer):
        positions = layer.all_positions
        if positions is not None:
            return positions
    keys = getattr(layer, "keys", None)
    if isinstance(keys, Tensor) and keys.ndim == 4:
        return torch.arange(int(layer.get_seq_length()), device=keys.device).expand(len(keys), -1)
    # Without keys (no cache, or a state of fixed size) what the layer was given says it.
    return call.given.get(index, call.positions(None))
