"""The policy of a truncation: a small frozen dataclass, in and out of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError
from vlmflow.parameters import literal, split_outside_brackets
from vlmflow.truncation.amounts import Amount, amount
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

if TYPE_CHECKING:
    from typing_extensions import Self

REMAINDERS = ("drop", "merge", "average")
POSITIONS = ("keep", "repack")
WITHIN = ("prompt", "picture")
SETTINGS = ("layer", "keep", "rank_by", "remainder", "positions", "within")


@dataclass(frozen=True)
class Stage:
    """One step of a truncation: from this layer on, so many of the prompt's image tokens stay."""

    layer: int
    keep: Amount


@dataclass(frozen=True, repr=False)
class Policy:
    """What a :class:`vlmflow.Truncation` removes; its parameters are explained there.

    Held as read: ``keep`` as :class:`~vlmflow.truncation.amounts.Amount`, ``rank_by`` as the
    ranking itself.
    """

    layer: int | tuple[int, ...]
    keep: int | float | Amount | tuple[int | float | Amount, ...]
    rank_by: str | Ranking = DEFAULT
    remainder: str = "drop"
    positions: str = "keep"
    within: str = field(default="prompt", kw_only=True)

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("remainder", self.remainder, REMAINDERS),
            ("positions", self.positions, POSITIONS),
            ("within", self.within, WITHIN),
        ):
            if value not in choices:
                raise InputError(f"{what}={value!r} is unknown; there are {', '.join(choices)}")
        layers, keeps = zip(*((stage.layer, stage.keep) for stage in self.stages), strict=True)
        # A single stage is the same thing whether it was written as a number or as a tuple of one.
        object.__setattr__(self, "layer", layers if len(layers) > 1 else layers[0])
        object.__setattr__(self, "keep", keeps if len(keeps) > 1 else keeps[0])
        object.__setattr__(self, "rank_by", as_ranking(self.rank_by))
        if self.remainder == "merge" and not all(keeps):
            raise InputError(
                "remainder='merge' with keep=0 leaves no image token to merge into; keep at least "
                "1, or use remainder='average'"
            )
        if self.remainder == "average" and self.within == "picture":
            raise InputError(
                "remainder='average' makes one token of all pictures, but within='picture' keeps "
                "them apart; use remainder='merge' or 'drop'"
            )
        if layers[0] == 0 and keeps[0] and self.ranking.needs_layer_before:
            raise InputError(
                f"rank_by={self.ranking.known_as()!r} needs the attention of the layer before, and "
                "layer=0 has none; start at layer 1 or choose a ranking without attention"
            )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Layer and amount of every stage, in order."""
        return _stages(self.layer, self.keep)

    @property
    def ranking(self) -> Ranking:
        """The ranking that ``rank_by`` names."""
        assert isinstance(self.rank_by, Ranking)
        return self.rank_by

    def __repr__(self) -> str:
        parts = [f"layer={self.layer!r}", f"keep={self.keep!r}"]
        if self.ranks:  # by its name where its parameters are at their defaults
            is_default = self.ranking.title == self.ranking.known_as()
            parts.append(f"rank_by={(self.ranking.title if is_default else self.ranking)!r}")
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in (
                ("remainder", "drop"),
                ("positions", "keep"),
                ("within", "prompt"),
            )
            if getattr(self, name) != default
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def first_layer(self) -> int:
        """Layer of the first stage."""
        return self.stages[0].layer

    @property
    def exit_signal(self) -> ExitSignal | None:
        """What decides about each prompt; None: every stage concerns every prompt."""
        return None

    @property
    def noted_layers(self) -> frozenset[int]:
        """Layers whose input the exit signal compares with the next one's."""
        return frozenset()

    def threshold(self, layer: int) -> float:
        """Return the least value of the exit signal with which a prompt leaves at a stage."""
        raise InputError(f"{self!r} has no threshold at layer {layer}: it has no exit signal")

    def check_decoding(self, setting: Callable[[str], Any]) -> None:
        """Refuse a ``generate`` that decodes as this policy must not, given its settings."""

    @property
    def ranks(self) -> bool:
        """Whether any stage has to choose (keeping none takes no choice)."""
        return any(stage.keep for stage in self.stages)

    @property
    def is_oracle(self) -> bool:
        """Whether the ranking looks at the answer: an upper bound, not a method."""
        return self.ranks and self.ranking.is_oracle

    @cached_property
    def watched_layers(self) -> frozenset[int]:
        """Layers whose queries, keys and values the ranking reads."""
        if not self.ranking.needs_layer_before:
            return frozenset()
        return frozenset(stage.layer - 1 for stage in self.stages if stage.keep)

    def check_layers(self, layers: int, model: str) -> None:
        """Refuse stages that a model of ``layers`` decoder layers does not have."""
        for stage in self.stages:
            if stage.layer >= layers:
                raise InputError(
                    f"layer={stage.layer}, but {model} has {layers} decoder layers "
                    f"(0..{layers - 1})"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the policy as a dictionary that JSON can hold."""
        layers = [stage.layer for stage in self.stages]
        keeps = [stage.keep.plain for stage in self.stages]
        return {
            "layer": layers if len(layers) > 1 else layers[0],
            "keep": keeps if len(keeps) > 1 else keeps[0],
            "rank_by": self.ranking.to_json(),
            "remainder": self.remainder,
            "positions": self.positions,
            # Left out at its default: results that were stored without it keep their names.
            **({"within": self.within} if self.within != "prompt" else {}),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild a policy from :meth:`to_json`, or from settings as users write them.

        What is not a setting of a truncation is a parameter of its ranking.
        """
        settings = {name: value for name, value in plain.items() if name in SETTINGS}
        parameters = {name: value for name, value in plain.items() if name not in SETTINGS}
        if parameters:
            ranking = as_ranking(settings.get("rank_by", DEFAULT))
            names = sorted(field.name for field in fields(ranking))
            unknown = next((name for name in parameters if name not in names), None)
            if unknown is not None:
                raise InputError(
                    f"a truncation by {ranking.known_as()!r} has no setting {unknown!r}; there "
                    f"are {', '.join((*SETTINGS, *names))}"
                )
            settings["rank_by"] = as_ranking({**ranking.to_json(), **parameters})
        missing = [name for name in ("layer", "keep") if name not in settings]
        if missing:
            raise InputError(f"a truncation needs {' and '.join(missing)}")
        return cls(**settings)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a policy as the command line takes it: ``"layer=2:8,keep=0.5:16,rank_by=random"``.

        Stages are separated by colons; a keep with a point is a fraction, without one a count.
        Parameters of the ranking stand in brackets, ``rank_by=random(seed=3)``, or as settings of
        their own, ``rank_by=random,seed=3``.
        """
        plain: dict[str, Any] = {}
        for part in split_outside_brackets(text) or [text]:
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                raise InputError(
                    f"{part!r} in {text!r} is not a setting; write for example layer=6"
                )
            if name in plain:
                raise InputError(f"{name!r} stands twice in {text!r}")
            plain[name] = value
        for name, value in plain.items():
            if name in ("layer", "keep"):
                plain[name] = [_number(name, piece) for piece in value.split(":")]
            elif name not in SETTINGS:
                plain[name] = literal(value)
        return cls.from_json(plain)


def _stages(layer: object, keep: object) -> tuple[Stage, ...]:
    layers = tuple(layer) if isinstance(layer, tuple | list) else (layer,)
    keeps = tuple(keep) if isinstance(keep, tuple | list) else (keep,)
    if not layers or len(layers) != len(keeps):
        raise InputError(
            f"{len(layers)} layer(s) and {len(keeps)} keep value(s); give one keep per layer"
        )
    for index in layers:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise InputError(f"layer={index!r} is not a layer; they are counted from 0")
    amounts = tuple(map(amount, keeps))
    if any(after <= before for before, after in pairwise(layers)):
        raise InputError(f"layers {layers} must increase from stage to stage")
    for before, after in pairwise(amounts):
        # A count and a share compare only on a prompt.
        if type(before) is type(after) and after.plain > before.plain:
            raise InputError(f"keep {keeps} must not grow: a removed token does not come back")
    return tuple(Stage(*pair) for pair in zip(layers, amounts, strict=True))


def _number(name: str, text: str) -> int | float:
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        raise InputError(f"{name}={text!r} is not a number") from error
