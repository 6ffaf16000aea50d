"""The policy of a truncation: a small frozen dataclass, in and out of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from vlmflow.errors import InputError
from vlmflow.truncation.names import ATTENTION_RANKINGS, ORACLE_RANKINGS, RANKINGS

REMAINDERS = ("drop", "merge", "average")
POSITIONS = ("keep", "repack")


@dataclass(frozen=True)
class Truncation:
    """Remove image tokens from the decoder's sequence, from a layer on.

    ``with Truncation(layer=16, keep=0)(model): model.generate(**inputs)`` runs on any transformers
    LVLM. Layers ``layer .. L-1`` do not see the removed tokens; layers before it do. With several
    stages, ``layer`` and ``keep`` are tuples of the same length.

    Parameters
    ----------
    layer : int or tuple of int
        First decoder layer, counted from 0, that does not see the removed tokens. 0: none does.
    keep : int, float or tuple of these
        Image tokens of a prompt (of all its pictures together) that stay: a count (int), or a
        fraction (float) of those the prompt has before any stage, rounded half up.
    rank_by : str
        Which tokens stay: one of :data:`vlmflow.truncation.names.RANKINGS`.
    remainder : str
        ``"drop"``; ``"merge"``: each removed token is averaged into the most similar kept one,
        weighted by how many tokens each stands for (Bolya et al. 2023, ToMe); ``"average"``: all
        removed tokens become one more token, at the place of the last of them.
    positions : str
        ``"keep"`` the original positions, or ``"repack"`` them to 0, 1, 2, ... without gaps.
    seed : int
        Of the ranking ``"random"``.

    Raises
    ------
    InputError
        For a setting that is unknown or impossible.
    """

    layer: int | tuple[int, ...]
    keep: int | float | tuple[int | float, ...]
    rank_by: str = "last_attention"
    remainder: str = "drop"
    positions: str = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("layer", "keep"):
            value = getattr(self, field)
            if isinstance(value, list):
                object.__setattr__(self, field, tuple(value))
        self._check_stages()
        for what, value, known in (
            ("rank_by", self.rank_by, tuple(RANKINGS)),
            ("remainder", self.remainder, REMAINDERS),
            ("positions", self.positions, POSITIONS),
        ):
            if value not in known:
                raise InputError(f"{what}={value!r} is unknown; there are {', '.join(known)}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed={self.seed!r} is no seed; give an integer from 0 on")
        if self.remainder == "merge" and any(keep == 0 for _, keep in self.stages):
            raise InputError(
                "remainder='merge' with keep=0 leaves no image token to merge into; keep at least "
                "1, or use remainder='average'"
            )
        if self.stages[0][0] == 0 and self.ranks and self.rank_by in ATTENTION_RANKINGS:
            raise InputError(
                f"rank_by={self.rank_by!r} needs the attention of the layer before, and layer=0 "
                "has none; start at layer 1 or choose a ranking without attention"
            )

    @property
    def stages(self) -> tuple[tuple[int, int | float], ...]:
        """``(layer, keep)`` of every stage, in order."""
        layers = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        return tuple(zip(layers, keeps, strict=True))

    @property
    def ranks(self) -> bool:
        """Whether any stage has to choose (keeping none takes no choice)."""
        return any(keep != 0 for _, keep in self.stages)

    @property
    def is_oracle(self) -> bool:
        """Whether the ranking looks at the answer: an upper bound, not a method."""
        return self.rank_by in ORACLE_RANKINGS and self.ranks

    def __call__(self, model: Any) -> AbstractContextManager[Any]:
        """Truncate a transformers model for the length of a ``with`` block.

        Raises
        ------
        InputError
            If a layer is out of the model's range, or the model is truncated already.
        ModelError
            If the model has no image tokens in its sequence.
        """
        from vlmflow.truncation.engine import truncated

        return truncated(model, self)

    def kept(self, stage: int, tokens: int) -> int:
        """Count the image tokens that a stage keeps of a prompt that came with ``tokens``.

        Raises
        ------
        InputError
            If it asks for more than there are.
        """
        keep = self.stages[stage][1]
        if isinstance(keep, float):
            return int(keep * tokens + 0.5)
        if keep > tokens:
            raise InputError(
                f"keep={keep}, but the prompt has {tokens} image tokens; keep at most {tokens}, "
                "or give a fraction such as keep=0.5"
            )
        return keep

    def check_layers(self, layers: int, model: str) -> None:
        """Refuse stages that a model of ``layers`` decoder layers does not have."""
        for layer, _ in self.stages:
            if layer >= layers:
                raise InputError(
                    f"layer={layer}, but {model} has {layers} decoder layers (0..{layers - 1})"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the policy as a dictionary that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Truncation:
        """Rebuild a policy from :meth:`to_json`."""
        known = tuple(cls.__dataclass_fields__)
        for name in plain:
            if name not in known:
                raise InputError(
                    f"a truncation has no setting {name!r}; there are {', '.join(known)}"
                )
        missing = [name for name in ("layer", "keep") if name not in plain]
        if missing:
            raise InputError(f"a truncation needs {' and '.join(missing)}")
        return cls(**plain)

    @classmethod
    def parse(cls, text: str) -> Truncation:
        """Read a policy as the command line takes it: ``"layer=2:8,keep=0.5:16,rank_by=random"``.

        Stages are separated by colons; a keep with a point is a fraction, without one a count.
        """
        plain: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                raise InputError(f"{part!r} in {text!r} is no setting; write for example layer=6")
            if name in plain:
                raise InputError(f"{name!r} stands twice in {text!r}")
            plain[name] = value
        for name in ("layer", "keep", "seed"):
            if name in plain:
                numbers = tuple(_number(name, one) for one in plain[name].split(":"))
                plain[name] = numbers[0] if len(numbers) == 1 else numbers
        return cls.from_json(plain)

    def _check_stages(self) -> None:
        layers = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if not layers or len(layers) != len(keeps):
            raise InputError(
                f"{len(layers)} layer(s) and {len(keeps)} keep value(s); give one keep per layer"
            )
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise InputError(f"layer={layer!r} is no layer; they are counted from 0")
        for keep in keeps:
            if isinstance(keep, bool) or not isinstance(keep, int | float) or not keep >= 0:
                raise InputError(f"keep={keep!r}; give a count (int) or a fraction (float)")
            if isinstance(keep, float) and keep > 1:
                raise InputError(
                    f"keep={keep}; a fraction lies between 0.0 and 1.0, a count is an integer"
                )
        for before, after in pairwise(layers):
            if after <= before:
                raise InputError(f"layers {layers} must increase from stage to stage")
        for first, second in pairwise(keeps):
            if isinstance(first, float) == isinstance(second, float) and second > first:
                raise InputError(f"keep {keeps} must not grow: a removed token does not come back")


def _number(name: str, text: str) -> int | float:
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        raise InputError(f"{name}={text!r} is no number") from error
