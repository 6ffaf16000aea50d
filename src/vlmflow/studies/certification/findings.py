"""What certifying found: the policy that was accepted, and what it is held against."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.truncation.exit_policy import ExitPolicy

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Rival:
    """A way to leave image tokens, certified in the same manner, and what it spares."""

    name: str
    what: str  # In words
    runs: bool  # Whether it can be run; others only bound what could be reached
    # On the testing part: how it was accepted. None for an oracle, which promises nothing.
    p_value: float | None
    # On the test split, replayed: share of image-token layers spared, with its 95 % interval, and
    # share of answers that change. All 0 where nothing was accepted.
    saved: float
    low: float
    high: float
    risk: float
    setting: str = ""  # What was accepted, in words; empty: nothing


@dataclass(frozen=True)
class SignalSkill:
    """How well a signal tells who needs no image token from a layer on."""

    signal: str
    layer: int
    # Area under the ROC curve with its bootstrap 95 % interval; None where all or none need them
    area: float | None
    low: float | None
    high: float | None
    within: float | None  # The same within kinds of question, weighted by pairs


@dataclass(frozen=True)
class Tried:
    """A policy of the tested path."""

    chance: float  # Its tolerance: fitted chance of a change with which a sample leaves
    p_value: float
    risk: float  # On the testing part
    saved: float
    accepted: bool


@dataclass(frozen=True)
class Run:
    """A test sample answered by ``generate`` under the accepted policy."""

    key: str
    group: str
    exit_layer: int  # The number of layers: it kept all tokens
    changed: bool
    # Score untouched minus score then; None where the task scores all answers together
    loss: float | None


@dataclass(frozen=True, repr=False)
class Findings:
    """All numbers of a certificate."""

    task: str
    metric: str
    model: dict[str, Any]
    settings: CertifySettings
    layers: tuple[int, ...]  # Exit layers
    fitted: int  # Samples on which policies were fitted
    tested: int  # Samples on which they were tested
    policy: ExitPolicy | None  # None: nothing could be accepted
    p_value: float | None  # Of the accepted policy
    path: tuple[Tried, ...]
    rivals: tuple[Rival, ...]
    skills: tuple[SignalSkill, ...]
    runs: tuple[Run, ...]
    # Of the untouched model on the test split; None as above
    score: float | None
    # Median seconds of a prefill: "untouched", "policy", "constant" where measured
    seconds: dict[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()  # Samples that could not be measured, with the reason
    largest_batch: int = 1  # Samples that the model was given at once at most
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        plain = asdict(self)
        plain["policy"] = None if self.policy is None else self.policy.to_json()
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Rebuild it from :meth:`to_json`."""
        given = dict(plain)
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given["settings"].items()
        }
        given["settings"] = CertifySettings(**settings)
        given["layers"] = tuple(given["layers"])
        given["failures"] = tuple(given["failures"])
        if given["policy"] is not None:
            given["policy"] = ExitPolicy.from_json(given["policy"])
        for name, kind in (
            ("path", Tried),
            ("rivals", Rival),
            ("skills", SignalSkill),
            ("runs", Run),
        ):
            given[name] = tuple(kind(**row) for row in given[name])
        return cls(**given)

    def rival(self, name: str) -> Rival:
        """Return one of the rivals."""
        return next(rival for rival in self.rivals if rival.name == name)

    @property
    def share_of_distance(self) -> float | None:
        """How much of the way from the best constant layer to the oracle the policy goes.

        None where the two are the same.
        """
        start, end = self.rival("constant").saved, self.rival("oracle").saved
        return None if end <= start else (self.rival("policy").saved - start) / (end - start)

    def rival_frame(self) -> pd.DataFrame:
        """Tabulate policy and rivals."""
        return pd.DataFrame([asdict(rival) for rival in self.rivals])

    def skill_frame(self) -> pd.DataFrame:
        """Tabulate what signals tell, by signal and layer."""
        return pd.DataFrame([asdict(skill) for skill in self.skills])

    def path_frame(self) -> pd.DataFrame:
        """Tabulate the policies that were tested."""
        return pd.DataFrame([asdict(tried) for tried in self.path])

    def run_frame(self) -> pd.DataFrame:
        """Tabulate the test samples."""
        return pd.DataFrame([asdict(run) for run in self.runs])
