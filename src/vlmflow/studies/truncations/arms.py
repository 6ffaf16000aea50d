"""What a study compares: truncations, and the controls that every one of them is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmflow.truncation.amounts import Count
from vlmflow.truncation.flops import DecoderShape, tokens_per_layer
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.truncation import Truncation

UNTOUCHED, NO_IMAGE = "untouched", "no image"
CONTROLS = ("random", "down-sampled")
"""What a truncation is held against, beside the untouched model and the one without image."""
KINDS = (UNTOUCHED, NO_IMAGE, "truncation", *CONTROLS)


@dataclass(frozen=True)
class Arm:
    """One way of answering every sample: a truncation, or a control."""

    name: str  # Names the arm within its study
    kind: str  # One of :data:`KINDS`
    # What is removed; None for the untouched model. Down-sampled pictures get as many image tokens
    # as this truncation leaves.
    truncation: Truncation | None = None
    of: str = ""  # Name of the truncation that a control belongs to

    @property
    def is_down_sampled(self) -> bool:
        """Whether the picture is made smaller, and nothing removed by choice."""
        return self.kind == "down-sampled"

    def to_json(self) -> dict[str, Any]:
        """Return what decides about answers, and nothing else."""
        policy = self.truncation
        return {
            "down_sampled": self.is_down_sampled,
            "truncation": None if policy is None else policy.to_json(),
            # An edited ranking gives other answers under the same name.
            "code": policy.ranking.fingerprint() if policy is not None and policy.ranks else None,
        }


def label(policy: Truncation) -> str:
    """Describe a truncation in a few words: ``"layer 2, keep 50 % by last_attention"``."""
    layers = " : ".join(str(stage.layer) for stage in policy.stages)
    keeps = " : ".join(str(stage.keep) for stage in policy.stages)
    text = f"layer {layers}, keep {keeps}"
    if policy.ranks:
        text += f" by {policy.ranking.title}"
    if policy.remainder != "drop":
        text += f", {policy.remainder}"
    if policy.within != "prompt":
        text += f", within each {policy.within}"
    return text if policy.positions == "keep" else f"{text}, {policy.positions}"


def arms_of(
    truncations: Sequence[tuple[str, Truncation]],
    layers: int,
    *,
    seed: int,
    controls: Sequence[str] = CONTROLS,
) -> tuple[Arm, ...]:
    """Put the controls beside the truncations, which come with their names (empty: :func:`label`).

    Every study has the untouched model and the one without any image token. A truncation that
    chooses tokens gets a random choice on the same schedule; every truncation gets pictures
    down-sampled to as many image tokens as it leaves to an average layer. Of these two, those in
    ``controls`` are there. Controls that several truncations share appear once.
    """
    arms: dict[str, Arm] = {}
    names: dict[str, str] = {}  # by what the arm does

    def add(arm: Arm, what: Any = None) -> str:
        """Add an arm under a name of its own, and return that."""
        key = repr(what or arm.to_json())
        if key not in names:
            name, number = arm.name, 1
            while arm.name in arms:
                number += 1
                arm = replace(arm, name=f"{name} ({number})")
            names[key] = arm.name
            arms[arm.name] = arm
        return names[key]

    add(Arm(UNTOUCHED, UNTOUCHED))
    add(Arm(NO_IMAGE, NO_IMAGE, Truncation(0, 0)))
    named = {
        add(Arm(name or label(policy), "truncation", policy)): policy
        for name, policy in truncations
    }
    for name, policy in named.items() if "random" in controls else ():
        if policy.ranks and not isinstance(policy.ranking, Random):
            drawn = replace(policy, rank_by=Random(seed))
            add(Arm(f"random: {label(drawn)}", "random", drawn, of=name))
    for name, policy in named.items() if "down-sampled" in controls else ():
        counted = any(isinstance(stage.keep, Count) and stage.keep for stage in policy.stages)
        share = round(mean_share(policy, layers, 1000), 3)
        if counted or 0 < share < 1:
            control = Arm(f"down-sampled as {name}", "down-sampled", policy, of=name)
            add(control, None if counted else ("down-sampled", share))
    return tuple(arms.values())


def mean_share(policy: Truncation, layers: int, tokens: int) -> float:
    """Return the share of a prompt's ``tokens`` image tokens that an average layer sees."""
    shape = DecoderShape(layers, 1, 1, 1, 1, 1, 1, 3)
    return sum(tokens_per_layer(policy, shape, 0, tokens)) / (layers * tokens)
