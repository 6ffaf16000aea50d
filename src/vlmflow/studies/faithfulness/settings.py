"""What is asked of a study of faithfulness: checked once, and kept with its result."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.errors import InputError
from vlmflow.lvlm.batch_size import Batch, check_batch
from vlmflow.parameters import check_integer
from vlmflow.trust.replacement import REPLACEMENTS as PICTURE_REPLACEMENTS

TOKENS = "tokens"
"""Instead of painting over the picture: removing its image tokens before the first layer."""

REPLACEMENTS = (*PICTURE_REPLACEMENTS, TOKENS)

LAYERS_TRIED, LAYERS_SPREAD = 12, 8
"""Every layer is tried of a model with at most so many; of a deeper one so many, evenly spaced."""

CALIBRATION_STEPS = 8
"""Steps of the curves by which layers are chosen, where the reported ones have more."""


@dataclass(frozen=True)
class Protocol:
    """How pictures appear and vanish."""

    replacements: tuple[str, ...]
    steps: int
    regions: int = 0  # Rectangles along each side that come and go as wholes; 0: pixels


PROTOCOLS = {
    "vlmflow": Protocol(("black", TOKENS), 16),
    # arXiv 2509.22496: black, 64 regions of about equal area, one per step
    "eagle": Protocol(("black",), 64, 8),
}


@dataclass(frozen=True)
class FaithfulnessSettings:
    """How maps are compared.

    Raises
    ------
    InputError
        For a setting that is unknown or impossible.
    """

    samples: int = 100  # Of the test split
    calibration: int = 20  # Of the calibration split, on which each signal's layer is chosen
    combine: bool = False  # Also try combinations of maps there, and report the best one
    protocol: str = "vlmflow"  # One of PROTOCOLS
    # Of REPLACEMENTS, the first chooses the layers; and steps of a curve. None: the protocol's
    replacements: tuple[str, ...] | None = None
    steps: int | None = None
    layers: tuple[int, ...] | None = None  # Layers that are tried; None: see LAYERS_TRIED
    # Test samples whose maps are compared with those of drawn weights, and calibration samples on
    # which each signal's cost is measured
    sanity: int = 4
    timed: int = 2
    batch: Batch = "auto"  # Pictures, or subsets of tokens, to a forward pass
    low_memory: bool = False  # Recompute layers in backward passes instead of keeping activations
    # Draws and seed of the bootstraps
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            *(("samples", 1), ("calibration", 0), ("sanity", 0), ("timed", 0)),
            *(("draws", 1), ("seed", 0)),
        ):
            check_integer(name, getattr(self, name), least=least)
        check_batch(self.batch)
        if self.protocol not in PROTOCOLS:
            raise InputError(f"protocol={self.protocol!r} is none of {', '.join(PROTOCOLS)}")
        own = PROTOCOLS[self.protocol]
        for name in ("replacements", "steps"):
            given = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, getattr(own, name))
            elif own.regions and given != getattr(own, name):
                raise InputError(
                    f"{name}={given!r}, but protocol={self.protocol!r} has {getattr(own, name)!r}; "
                    "leave one of the two out"
                )
        check_integer("steps", self.steps, least=1)
        for name in ("replacements", "layers"):
            given = getattr(self, name)
            if given is None:
                continue
            if not given:
                raise InputError(f"{name}={given!r} is empty; give one or more")
            object.__setattr__(self, name, tuple(dict.fromkeys(given)))
        for replacement in self.shown:
            if replacement not in REPLACEMENTS:
                raise InputError(
                    f"replacement={replacement!r} is none of {', '.join(REPLACEMENTS)}"
                )
        for layer in self.layers or ():
            check_integer("layer", layer)

        if type(self.combine) is not bool:
            raise InputError(f"combine={self.combine!r} is neither True nor False")
        if self.combine and not self.calibration:
            raise InputError(
                "calibration=0, but combinations are chosen on calibration samples; give some, or "
                "leave combine out"
            )

    @property
    def shown(self) -> tuple[str, ...]:
        """The replacements."""
        return self.replacements or ()

    @property
    def count(self) -> int:
        """Steps of a reported curve."""
        return self.steps or 0

    @property
    def regions(self) -> int:
        """Rectangles along each side of a picture that come and go as wholes; 0: pixels."""
        return PROTOCOLS[self.protocol].regions

    def layers_of(self, layers: int) -> tuple[int, ...]:
        """Return the layers that are tried of a model with so many.

        Raises
        ------
        InputError
            If the model lacks one that was asked for.
        """
        if self.layers is not None:
            for layer in self.layers:
                if layer >= layers:
                    raise InputError(
                        f"layer={layer}, but the model has {layers} decoder layers "
                        f"(0..{layers - 1})"
                    )
            return self.layers
        if layers <= LAYERS_TRIED:
            return tuple(range(layers))
        last = LAYERS_SPREAD - 1
        return tuple(round(place * (layers - 1) / last) for place in range(LAYERS_SPREAD))
