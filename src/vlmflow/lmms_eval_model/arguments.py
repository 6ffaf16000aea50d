"""What a user writes after ``--model_args``, read and checked before a model is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError
from vlmflow.lvlm.loading import open_model
from vlmflow.lvlm.model import LVLM
from vlmflow.parameters import split_outside_brackets
from vlmflow.truncation.policy import SETTINGS, Policy
from vlmflow.truncation.ways import Way, one_way

if TYPE_CHECKING:
    from vlmflow.truncation.exit_policy import ExitPolicy
    from vlmflow.truncation.truncation import Truncation

OPENING = ("device", "dtype", "revision", "device_map", "attn_implementation")
"""Arguments of :func:`vlmflow.load` that are texts."""

NAMES = ("pretrained", *OPENING, "trust_remote_code", "batch_size", "preset", "policy")
"""All arguments but the settings of a truncation."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of the model ``vlmflow`` in lmms-eval.

    Parameters
    ----------
    pretrained : str
        As :func:`vlmflow.load` takes it.
    opening : mapping
        Of :data:`OPENING` those that are given.
    trust_remote_code : bool
        As :func:`vlmflow.load` takes it.
    batch_size : int
        Questions at once.
    way : callable, optional
        Makes what removes image tokens, for a number of decoder layers; None: nothing does.
    """

    pretrained: str
    opening: Mapping[str, str]
    trust_remote_code: bool
    batch_size: int
    way: Way | None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Arguments:
        """Read arguments as lmms-eval passes them: texts, or the numbers that it takes them for.

        Raises
        ------
        InputError
            For an argument that is missing, unknown or impossible, or two that contradict each
            other.
        """
        plain = {name: _unquoted(str(value)) for name, value in given.items()}
        settings = {name: value for name, value in plain.items() if name not in NAMES}
        if settings and not set(settings) & {"layer", "keep"}:
            name = next(iter(settings))
            raise InputError(
                f"{name}={settings[name]!r} is not an argument of the model vlmflow without layer "
                f"and keep; there are {', '.join(NAMES)}, and a truncation's {', '.join(SETTINGS)} "
                "and parameters of its ranking"
            )
        if not plain.get("pretrained"):
            raise InputError(
                "the model vlmflow needs pretrained=MODEL in --model_args: a bundled model, a "
                "directory, or a name on the hub"
            )
        return cls(
            pretrained=plain["pretrained"],
            opening={name: plain[name] for name in OPENING if name in plain},
            trust_remote_code=_truth("trust_remote_code", plain.get("trust_remote_code", "false")),
            batch_size=_count("batch_size", plain.get("batch_size", "1")),
            way=one_way(
                ",".join(f"{name}={value}" for name, value in settings.items()) or None,
                plain.get("preset"),
                plain.get("policy"),
                "a truncation's settings (layer, keep, ...), preset and policy",
            ),
        )

    def open(self) -> tuple[LVLM, Truncation | ExitPolicy | None]:
        """Open the model, and make what removes its image tokens.

        Raises
        ------
        InputError, ModelError
            If the model cannot be opened, or what removes tokens does not fit it.
        """
        opening: dict[str, Any] = {**self.opening, "trust_remote_code": self.trust_remote_code}
        model, processor = open_model(self.pretrained, **opening)
        vlm = LVLM(model, processor, name=self.pretrained)
        policy = None if self.way is None else self.way(vlm.num_layers)
        if policy is not None:
            assert isinstance(policy, Policy)
            policy.check_layers(vlm.num_layers, vlm.name)
        return vlm, policy


def split_arguments(text: str) -> dict[str, str]:
    """Split what stands after ``--model_args``, as lmms-eval does.

    Raises
    ------
    InputError
        For a part without ``=``.
    """
    plain = {}
    for part in split_outside_brackets(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {text!r} is not an argument; write name=value")
        plain[name.strip()] = value.strip()
    return plain


def _unquoted(text: str) -> str:
    """Take off the quotes that keep lmms-eval from splitting a value at its commas."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"{name}={text!r} is neither True nor False")
    return text.lower() == "true"


def _count(name: str, text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 9 and int(text)):
        raise InputError(f"{name}={text!r} is not a number of questions; give for example 8")
    return int(text)
