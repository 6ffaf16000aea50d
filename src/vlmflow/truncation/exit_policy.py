"""Exits per input: every prompt drops its image tokens where a signal says that it may."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError
from vlmflow.files import as_path, write_files
from vlmflow.lvlm.as_found import bare_model
from vlmflow.lvlm.identity import weights_digest
from vlmflow.parameters import is_number
from vlmflow.truncation.exit_signals.registry import as_exit_signal
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from typing_extensions import Self

    from vlmflow.truncation.run import TruncatedRun

FORMAT = "vlmflow exit policy 1"
"""What files of policies begin with."""


@dataclass(frozen=True, repr=False)
class ExitPolicy(Policy):
    """Layers at which a prompt may leave, and what decides.

    ``with ExitPolicy(layer=(4, 8), keep=(0, 0), signal="image_attention", thresholds=(-0.1,
    -0.2))(model): model.generate(**inputs)``. At the input of each exit layer the signal of every
    prompt that is still whole is read; where it reaches the layer's threshold, the prompt goes on
    with what ``keep`` leaves of its image tokens, and no later exit concerns it. A prompt that
    reaches no threshold keeps all.

    Parameters
    ----------
    layer, keep, rank_by
        As those of :class:`vlmflow.Truncation`: exit layers, and what stays there.
    signal : str or ExitSignal
        What is read: the name of an exit signal, or an instance of a subclass of
        :class:`vlmflow.ExitSignal`.
    thresholds : sequence of float
        Per exit layer the least value with which a prompt leaves.

    certificate : mapping, optional
        What is promised and for which model, as :meth:`load` reads it: the policy then refuses
        other models, and other decoding than it was tested with.

    Raises
    ------
    InputError
        For a setting that is unknown or impossible.
    """

    signal: str | ExitSignal = ""
    thresholds: tuple[float, ...] = ()
    certificate: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.remainder, self.positions) != ("drop", "keep"):
            raise InputError(
                f"remainder={self.remainder!r} and positions={self.positions!r}, but an exit drops "
                "what it does not keep, at the positions there were"
            )
        object.__setattr__(self, "signal", as_exit_signal(self.signal))
        given = self.thresholds
        listed = tuple(given) if isinstance(given, tuple | list) else (given,)
        if len(listed) != len(self.stages):
            raise InputError(
                f"{len(self.stages)} exit layer(s) and {len(listed)} threshold(s); give one per "
                "layer"
            )
        for value in listed:
            if not is_number(value):
                raise InputError(f"threshold={value!r} is not a number")
        try:
            object.__setattr__(self, "thresholds", tuple(map(float, listed)))
        except OverflowError as error:
            raise InputError("a threshold is an integer too large for a float") from error
        if self.stages[0].layer == 0 and set(self.exit_signal.all_reads) & {"step", "attention"}:
            raise InputError(
                f"signal={self.exit_signal.known_as()!r} reads the layer before, and layer=0 has "
                "none; start at layer 1 or choose another signal"
            )

    @property
    def exit_signal(self) -> ExitSignal:
        """The signal that ``signal`` names: what decides about each prompt."""
        assert isinstance(self.signal, ExitSignal)
        return self.signal

    def threshold(self, layer: int) -> float:
        """Return the least value of the signal with which a prompt leaves at a layer."""
        layers = [stage.layer for stage in self.stages]
        return self.thresholds[layers.index(layer)]

    @property
    def noted_layers(self) -> frozenset[int]:
        """Layers whose input the signal compares with the next one's."""
        if "step" not in self.exit_signal.all_reads:
            return frozenset()
        return frozenset(stage.layer - 1 for stage in self.stages)

    @property
    def first_layer(self) -> int:
        """First layer at which anything is read or removed."""
        return min({self.stages[0].layer, *self.noted_layers})

    @cached_property
    def watched_layers(self) -> frozenset[int]:
        """Layers whose queries, keys and values signal or ranking read."""
        ranked = super().watched_layers
        if "attention" not in self.exit_signal.all_reads:
            return ranked
        return ranked | {stage.layer - 1 for stage in self.stages}

    def to_json(self) -> dict[str, Any]:
        """Return the policy as a dictionary that JSON can hold."""
        plain = super().to_json()
        return plain | {"signal": self.exit_signal.to_json(), "thresholds": list(self.thresholds)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild a policy from :meth:`to_json`."""
        try:
            return cls(**plain)
        except TypeError as error:
            raise InputError(
                f"an exit policy cannot be made of {sorted(plain)}: {error}"
            ) from error

    def __repr__(self) -> str:
        text = super().__repr__()[:-1]
        return f"{text}, signal={self.exit_signal.title!r}, thresholds={self.thresholds!r})"

    def __call__(self, model: Any) -> AbstractContextManager[TruncatedRun]:
        """Let prompts leave early for the length of a ``with`` block; see Truncation.

        The block's :class:`~vlmflow.truncation.run.TruncatedRun` says where each prompt left
        (``exit_layers``) and how many tokens each layer took.

        Raises
        ------
        InputError, ModelError
            As :meth:`vlmflow.Truncation.__call__`.
        """
        from vlmflow.truncation.engine import truncated

        self._check_model(bare_model(model))
        return truncated(model, self)

    def applied(self, exit_layer: int) -> Truncation | None:
        """Return what a prompt that left at a layer went through; None where it never left."""
        for stage in self.stages:
            if stage.layer == exit_layer:
                return Truncation(exit_layer, stage.keep, self.rank_by)
        return None

    def code(self) -> dict[str, str]:
        """Return hashes of what decides and of what chooses: parameters and source code.

        A file holds names alone, and an edited class of the same name is another one.
        """
        parts = {"signal": self.exit_signal.fingerprint()}
        return parts | ({"rank_by": self.ranking.fingerprint()} if self.ranks else {})

    def check_decoding(self, setting: Callable[[str], Any]) -> None:
        """Refuse a ``generate`` that decodes in another way than the promise is about.

        Parameters
        ----------
        setting : callable
            Gives what ``generate`` goes by, by name.
        """
        if self.certificate is None:
            return
        samples, beams = setting("do_sample"), setting("num_beams")
        if samples or (beams or 1) > 1:
            other = f"do_sample={samples!r}" if samples else f"num_beams={beams!r}"
            raise InputError(
                f"{other}, but this policy's promise is about greedy decoding; generate with "
                "do_sample=False and num_beams=1, or without the policy"
            )

    def _check_model(self, model: Any) -> None:
        if self.certificate is None:
            return
        digest = weights_digest(model)
        if digest == self.certificate["weights"]:
            return
        name, dtype = self.certificate["model"]["name"], self.certificate["model"]["dtype"]
        own = str(next(model.parameters()).dtype).removeprefix("torch.")
        differs = f"it runs in {own}" if own != dtype else "its weights are others"
        raise InputError(
            f"this policy was certified for {name} in {dtype} (weights "
            f"{self.certificate['weights'][:12]}), and this {type(model).__name__} is another "
            f"model: {differs}; certify a policy for it with vlmflow certify"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy and its certificate as JSON.

        Raises
        ------
        InputError
            If the file cannot be written, or a threshold is infinite.
        """
        file = as_path(path)
        for stage, value in zip(self.stages, self.thresholds, strict=True):
            if abs(value) == float("inf"):
                raise InputError(
                    f"threshold={value} of layer {stage.layer} cannot be saved; leave out a layer "
                    "at which nobody leaves, and give a finite threshold otherwise"
                )
        plain = {"format": FORMAT, "policy": self.to_json(), "certificate": self.certificate}
        body = json.dumps(plain, indent=2, allow_nan=False) + "\n"
        write_files(file.parent, {file.name: body.encode()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy that :meth:`save` or ``vlmflow certify`` wrote.

        Raises
        ------
        InputError
            If the file cannot be read, is no such policy, or was certified with other code of its
            signal or ranking.
        """
        file = as_path(path)
        try:
            text = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not JSON"
            raise InputError(f"policy file {str(file)!r} cannot be read ({why})") from error
        return cls.read(text, str(file))

    @classmethod
    def read(cls, text: str, name: str) -> Self:
        """Read what :meth:`save` writes into a file, from its text.

        ``name`` is the file's, for refusals; raises as :meth:`load` does.
        """
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"policy file {name!r} cannot be read (it is not JSON)") from error
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise InputError(
                f"{name!r} is not an exit policy of this vlmflow ({FORMAT}); vlmflow certify "
                "writes one"
            )
        policy, certificate = plain.get("policy"), plain.get("certificate")
        model = certificate.get("model") if isinstance(certificate, dict) else None
        whole = isinstance(model, dict) and {"name", "dtype"} <= model.keys()
        if not isinstance(policy, dict) or not (
            certificate is None
            or (
                whole
                and isinstance(certificate.get("weights"), str)
                and isinstance(certificate.get("code", {}), dict)
            )
        ):
            raise InputError(f"policy file {name!r} is damaged; certify again")
        try:
            made = replace(cls.from_json(policy), certificate=certificate)
        except RecursionError as error:
            raise InputError(f"policy file {name!r} is damaged; certify again") from error
        made._check_code()
        return made

    def _check_code(self) -> None:
        """Refuse a signal or ranking that is called as the certified one was, but is another."""
        certified = (self.certificate or {}).get("code")
        if certified is None:
            return
        names = {"signal": self.exit_signal.known_as(), "rank_by": self.ranking.known_as()}
        changed = [names[part] for part, own in self.code().items() if certified.get(part) != own]
        if changed:
            raise InputError(
                f"this policy was certified with other code of {' and '.join(map(repr, changed))}; "
                "define what it was certified with, or certify again"
            )
