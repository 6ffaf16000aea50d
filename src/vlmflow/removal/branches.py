"""One forward pass with a branch per layer: "image tokens removed from this layer on".

The model runs as always. After each decoder layer, a hook runs the same layer once more for all
branches that have begun by then, batched. A branch holds the kept image tokens and the text after
the first one. Tokens before the picture never see it, so their keys and values are those of the
untouched run and are read from its cache. After the last layer, only the rows that predict the
answer go on, those of the branches after the untouched ones: norm and head are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from vlmflow.errors import ModelError
from vlmflow.flow.attention_rows import AttentionCall
from vlmflow.flow.watch_attention import watch_attention
from vlmflow.truncation.amounts import Amount
from vlmflow.truncation.forward_call import ForwardCall
from vlmflow.truncation.layer_inputs import LayerInputs
from vlmflow.truncation.masks import pad_rows, take
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.selection import choose
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


class _Prefix(Cache):
    """Keys and values of the untouched run that every branch starts from; stores no new ones."""

    def __init__(self, key: Tensor, value: Tensor, branches: int) -> None:
        super().__init__(layers=[])
        self.key = key.repeat(branches, 1, 1, 1)
        self.value = value.repeat(branches, 1, 1, 1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the prefix before the keys and values of a layer."""
        return (
            torch.cat([self.key.to(key_states.device), key_states], dim=2),
            torch.cat([self.value.to(value_states.device), value_states], dim=2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many keys it holds."""
        del layer_idx
        return int(self.key.shape[2])


class Branches:
    """A forward pass of a batch and all of its branches.

    Parameters
    ----------
    vlm : LVLM
        The model.
    inputs : mapping
        What its forward takes: ``input_ids`` (B, N) with answers at the end.
    is_image, is_answer : (B, N) bool
        Image tokens, and tokens that a ranking must not see.
    rows : (B, T) int64
        Positions whose logits are wanted.
    keep : Count or Share
        Image tokens that stay.
    ranking : Ranking
        Which ones.

    Raises
    ------
    ModelError
        If a wanted row is an image token.
    """

    def __init__(
        self,
        vlm: LVLM,
        inputs: Mapping[str, Any],
        is_image: Tensor,
        is_answer: Tensor,
        rows: Tensor,
        keep: Amount,
        ranking: Ranking,
    ) -> None:
        if bool(torch.gather(is_image, 1, rows).any()):
            raise ModelError(
                "the last token before the answer is an image token, so removing it leaves "
                "nothing that predicts the answer"
            )
        self.model, self.layers, self.rows = vlm.model, vlm.decoder_layers, rows
        self.keep, self.ranking = keep, ranking
        # Layer of the first branch: layer 0 has none before it to rank by.
        self.first = 1 if keep and ranking.needs_layer_before else 0
        self.inputs = [
            LayerInputs(self.model, self.layers, index, repack=False)
            for index in range(len(self.layers))
        ]
        self.recurrent = any(inputs.recurrent for inputs in self.inputs)
        mask = inputs.get("attention_mask")
        # (B, N) bool: slots that hold a token, padding left out.
        self.tokens = torch.ones_like(is_image) if mask is None else mask.to(is_image.device) != 0
        self.prompt = ForwardCall(
            arguments=_with_positions(self.model, inputs),
            ids=inputs["input_ids"],
            past=0,
            prompt=inputs["input_ids"].shape[1],
            valid=self.tokens & ~is_answer,
            is_image=is_image,
            images=is_image.sum(1).tolist(),
            family=vlm.family,
            config=self.model.config,
        )
        self.late = vlm.family.execution(self.model.config).late_features
        self.before_late: Tensor | None = None
        # (B, m) int64: positions before the picture, whose keys all branches read off the cache.
        self.prefix: Tensor | None = None
        # (B, N) bool: the slots that branches compute themselves.
        self.computed = self.tokens
        # Branch after branch along the batch axis: (branches * B, n, width), n the same for all.
        self.hidden: Tensor | None = None
        self.calls: list[ForwardCall] = []
        self.branching = False

    def logits(self) -> Tensor:
        """Run the pass: (B, 1 + L - first, T, vocabulary).

        The untouched model's logits come first, then those of the branch of every layer.
        """
        with ExitStack() as stack:
            if self.first:
                before = range(len(self.layers) - 1)
                stack.enter_context(watch_attention(self.layers, self.on_attention, only=before))
            for index in range(self.first, len(self.layers)):
                hook = partial(self._after, index)
                handle = self.layers[index].register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            # Without a configuration no layer of the cache forgets what left its window.
            cache = None if self.recurrent else DynamicCache()
            inputs = self.prompt.arguments
            output = self.model(**inputs, past_key_values=cache, use_cache=cache is not None)
        logits: Tensor = output.logits
        return logits.reshape(len(logits), -1, self.rows.shape[1], logits.shape[-1])

    def on_attention(self, layer: int, attention: AttentionCall, _output: Tensor) -> None:
        """Keep what a ranking will read at the next layer."""
        if not self.branching:
            self.prompt.attention[layer] = attention

    def _after(self, index: int, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Run a layer for the branches, after it ran for the untouched prompt."""
        main = args[0] if args else kwargs["hidden_states"]
        main_after = output[0] if isinstance(output, tuple) else output
        if self.hidden is None:
            self._share_prefix(kwargs.get("attention_mask"))
        self._add_late(main)
        hidden = self._begin(index, main)
        self.branching = True
        try:
            # Not through __call__: hooks and checkpointing are the untouched run's.
            branched = module.forward(hidden, *args[1:], **self._arguments(index, kwargs))
        finally:
            self.branching = False
        self.hidden = branched[0] if isinstance(branched, tuple) else branched
        if index < self.late:
            self.before_late = main_after
        if index + 1 < len(self.layers):
            return None
        joined = self._answer_rows(main_after, self.hidden)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    def _add_late(self, main: Tensor) -> None:
        """Add to the branches what the model added to image tokens after the layer before."""
        if self.hidden is None or self.before_late is None:
            return
        added = main - self.before_late.to(main.device)
        parts = [take(added, call.cuts[0].slots, -2) for call in self.calls]
        self.hidden = self.hidden + torch.cat(parts).to(self.hidden.device)
        self.before_late = None

    def _share_prefix(self, mask: Any) -> None:
        """Leave out of the branches the tokens before the pictures that cannot see them."""
        if self.recurrent:
            return  # a recurrent state cannot be read at one position
        before = self.tokens & (self.prompt.is_image.cumsum(1) == 0)
        if bool(before.any()) and not sees(mask, before, self.prompt.is_image):
            self.prefix, _ = pad_rows([row.nonzero()[:, 0] for row in before])
            self.computed = self.tokens & ~before

    def _begin(self, layer: int, main: Tensor) -> Tensor:
        """Start the branch of a layer with the tokens that stay; return all branches' states."""
        if not self.keep and self.calls:
            call = self.calls[0]  # without any image token all branches keep the same
        else:
            policy = Truncation(layer=layer, keep=self.keep, rank_by=self.ranking)
            call = replace(self.prompt, cuts=[], _made={})
            attention = call.attention.pop(layer - 1, None)
            cut = choose(policy, call, layer, main, attention, [True] * len(main))
            # Only the slots that a branch computes.
            slots = torch.where(take(self.computed, cut.slots, -1), cut.slots, -1)
            cut.slots, cut.ragged = pad_rows([row[row >= 0] for row in slots])
            call.cuts.append(cut)
        self.calls.append(call)
        new = take(main, call.cuts[0].slots, -2)
        return new if self.hidden is None else torch.cat([self.hidden.to(new.device), new], dim=0)

    def _arguments(self, index: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the layer is called with for all branches, one after the other."""
        mask = given.get("attention_mask")
        if mask is not None and not isinstance(mask, Tensor):
            raise ModelError(
                f"a mask of type {type(mask).__name__} cannot be cut for a removal curve; load the "
                "model with attn_implementation='sdpa'"
            )
        parts = [
            self.inputs[index].arguments(
                call,
                call.cuts[0],
                given,
                earlier=self.prefix,
                # With keys before its own tokens, "causal" has to be spelled out.
                ragged=call.cuts[0].ragged or self.prefix is not None,
                shared=True,
            )
            for call in self.calls
        ]
        batch = len(self.rows)
        joined = {
            name: _join([part[name] for part in parts], self._batch_axis(name, value), batch)
            for name, value in given.items()
            if name not in ("hidden_states", "past_key_values")
        }
        return {**joined, "past_key_values": self._prefix_at(index, given.get("past_key_values"))}

    def _batch_axis(self, name: str, value: Any) -> int | None:
        """Return the axis along which branches follow each other; None: all share the argument."""
        if name == "position_ids":
            return -2
        if name.startswith("position_embeddings"):
            return -3
        per_token = isinstance(value, Tensor) and value.shape[:2] == self.prompt.ids.shape
        return 0 if per_token or name == "attention_mask" else None

    def _prefix_at(self, index: int, cache: Any) -> _Prefix | None:
        """Read what the untouched run holds of the tokens before the pictures."""
        if self.prefix is None:
            return None
        layers = [] if cache is None else cache.layers
        layer: Any = layers[index] if index < len(layers) else None
        if getattr(layer, "keys", None) is None:
            raise ModelError(
                f"layer {index} of {type(self.model).__name__} does not keep keys and values of "
                "earlier tokens in a cache, so a removal curve cannot branch there"
            )
        tokens = self.prefix[:, None, :].expand(-1, layer.keys.shape[1], -1).flatten(0, 1)
        key, value = (
            take(states.flatten(0, 1), tokens, 1).reshape(*states.shape[:2], -1, states.shape[-1])
            for states in (layer.keys, layer.values)
        )
        return _Prefix(key, value, len(self.calls))

    def _answer_rows(self, main: Tensor, hidden: Tensor) -> Tensor:
        """(B, N, width) and the branches -> (B, (1 + branches) * T, width)."""
        wanted = [take(main, self.rows, -2)]
        for call, own in zip(self.calls, torch.split(hidden, len(main)), strict=True):
            # From slots, which rows wants, to the rows that are left: text always is.
            local = (call.cuts[0].slots[:, None, :] == self.rows[:, :, None]).int().argmax(-1)
            wanted.append(take(own.to(main.device), local, -2))
        return torch.cat(wanted, dim=1)


def _with_positions(model: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Count the positions of padded rows as ``generate`` does; some rankings read rotated keys."""
    mask = inputs.get("attention_mask")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if mask is None or bool(mask.all()) or "position_ids" in inputs or "mrope_section" in rope:
        return inputs  # the model itself counts positions on several axes
    return {**inputs, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def sees(mask: Any, rows: Tensor, columns: Tensor) -> bool:
    """Whether any of the rows, (B, N) bool, may look at any of the columns."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return False  # causal
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    rows, columns = rows[:, None, :, None].to(mask.device), columns[:, None, None, :]
    return bool((visible & rows & columns.to(mask.device)).any())


def _join(parts: list[Any], axis: int | None, batch: int) -> Any:
    """Put the arguments of all branches one after the other along the axis of the batch."""
    first = parts[0]
    if axis is None:
        return first
    if isinstance(first, Tensor):
        if first.shape[axis] == 1 and all(part is first for part in parts):
            return first  # the same for all branches
        shape = list(first.shape)
        shape[axis] = batch
        return torch.cat([part.expand(shape) for part in parts], dim=axis)
    if isinstance(first, (tuple, list)):
        return type(first)(
            _join([part[number] for part in parts], axis, batch) for number in range(len(first))
        )
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts], axis, batch) for key in first}
    return first
