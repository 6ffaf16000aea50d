"""What a study is to do: read from YAML or given in code, and checked before anything runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from vlmflow.errors import InputError, reason
from vlmflow.files import as_path
from vlmflow.lvlm.batch_size import Batch, check_batch
from vlmflow.parameters import check_integer
from vlmflow.studies.truncations.arms import CONTROLS, Arm, arms_of
from vlmflow.truncation.presets import check_preset, preset
from vlmflow.truncation.truncation import Truncation

_SWEEPABLE = ("layer", "keep", "rank_by", "remainder", "positions")


@dataclass(frozen=True)
class Plan:
    """A study: model x task x truncations.

    Raises
    ------
    InputError
        For options that are unknown or impossible.
    """

    task: str  # As :func:`vlmflow.tasks.registry.find_task` takes it
    model: str = "scenes-llava"  # As :func:`vlmflow.load` takes it
    # Each a text (``"layer=6,keep=0"``), a :class:`~vlmflow.truncation.truncation.Truncation`, a
    # mapping of its fields with an optional ``name``, or ``{"preset": NAME}``
    truncations: tuple[Any, ...] = ()
    # Lists of layers, keeps and rankings: every combination is one more truncation
    sweep: Mapping[str, Any] | None = None
    # Samples of the test split, and of the calibration split, on which a truncation is chosen
    samples: int = 200
    calibration: int = 200
    max_loss: float = 0.03  # Largest loss of the task's score that a recommendation may cost
    timed: int = 4  # Calibration samples whose prefill is timed under every arm; 0: none
    seed: int = 0  # Seed of random choices and bootstraps
    controls: tuple[str, ...] = CONTROLS  # What truncations are held against; each costs runs
    max_new_tokens: int | None = None  # Longest answer; the task's own where left out
    batch: Batch = "auto"  # Samples at once
    # Arguments of :func:`vlmflow.load`
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if not self.truncations and not self.sweep:
            raise InputError(
                "a study compares truncations, and there is none; give truncations, a sweep or "
                "presets"
            )
        named = self._named(None)
        counts = Counter(name for name, _ in named)
        for name, policy in named:
            if name and counts[name] > 1:
                raise InputError(f"two truncations are called {name!r}; names must differ")
            # The results are read with what is saved here, when everything has been answered.
            if Truncation.from_json(policy.to_json()) != policy:
                raise InputError(
                    f"{policy!r} is not the same after saving and reading: ranking "
                    f"{policy.ranking.known_as()!r} has been defined again since; make it anew"
                )

    def arms(self, layers: int) -> tuple[Arm, ...]:
        """Return truncations and controls for a model of so many decoder layers.

        Raises
        ------
        InputError
            If a truncation does not fit the model.
        """
        named = self._named(layers)
        for _, policy in named:
            policy.check_layers(layers, self.model)
        return arms_of(named, layers, seed=self.seed, controls=self.controls)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["truncations"] = [_plain(truncation) for truncation in self.truncations]
        plain["controls"] = list(self.controls)
        plain["sweep"] = None if self.sweep is None else dict(self.sweep)
        return plain

    @classmethod
    def from_mapping(cls, plain: Mapping[str, Any]) -> Plan:
        """Make a plan of what a YAML file says.

        Raises
        ------
        InputError
            For unknown or missing keys, and whatever the plan itself refuses.
        """
        options = [field.name for field in fields(cls)]
        for key in plain:
            if key not in options:
                raise InputError(f"a study has no option {key!r}; there are {', '.join(options)}")
        if not plain.get("task"):
            raise InputError("a study needs a task; 'vlmflow tasks' lists them")
        values = dict(plain)
        for name in ("truncations", "controls"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    def _named(self, layers: int | None) -> list[tuple[str, Truncation]]:
        """Return names and policies; without layers, presets are checked by name only."""
        listed = [_truncation(truncation, layers) for truncation in self.truncations]
        swept = [("", policy) for policy in _swept(self.sweep or {})]
        return [named for named in listed if named is not None] + swept


class _DatesAsText(yaml.SafeLoader):
    """YAML without dates: a branch, a task or a name may look like one, and nothing here is one."""


_DatesAsText.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_plan(path: Path) -> dict[str, Any]:
    """Read a study's YAML file.

    Raises
    ------
    InputError
        If it cannot be read or is not a mapping.
    """
    try:
        text = as_path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"study file {str(path)!r} cannot be read ({why})") from error
    try:
        content = yaml.load(text, _DatesAsText)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = "" if where is None else f" in line {where.line + 1}"
        raise InputError(f"study file {str(path)!r} is not YAML{line}") from error
    # Nesting without end, and what reading a value under a wrong tag raises.
    except Exception as error:
        raise InputError(f"study file {str(path)!r} is not YAML ({reason(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"study file {str(path)!r} is not a list of 'option: value' lines")
    return content


def _truncation(entry: Any, layers: int | None) -> tuple[str, Truncation] | None:
    if isinstance(entry, Truncation):
        return "", entry
    if isinstance(entry, str):
        return "", Truncation.parse(entry)
    if not isinstance(entry, Mapping):
        raise InputError(
            f"truncation {entry!r} is neither a text such as 'layer=6,keep=0' nor a mapping"
        )
    plain = dict(entry)
    name = plain.pop("name", "")
    if not isinstance(name, str):
        raise InputError(f"name {name!r} of a truncation is not text")
    if "preset" not in plain:
        return name, Truncation.from_json(plain)
    chosen = plain.pop("preset")
    if plain:
        raise InputError(f"preset {chosen!r} takes no further option {next(iter(plain))!r}")
    if not isinstance(chosen, str):
        raise InputError(f"preset {chosen!r} is not a name")
    check_preset(chosen)
    return None if layers is None else (name or chosen, preset(chosen, layers))


def _swept(sweep: Mapping[str, Any]) -> list[Truncation]:
    for key, values in sweep.items():
        if key not in _SWEEPABLE:
            raise InputError(f"sweep has no {key!r}; there are {', '.join(_SWEEPABLE)}")
        if not isinstance(values, list) or not values:
            raise InputError(f"sweep: {key} takes a list of values, not {values!r}")
    if not sweep:
        return []
    for key in ("layer", "keep"):
        if key not in sweep:
            raise InputError(f"sweep needs a list of {key} values")
    policies: dict[Truncation, None] = {}
    for values in itertools.product(*sweep.values()):
        plain = dict(zip(sweep, values, strict=True))
        if plain["keep"] == 0:
            plain.pop("rank_by", None)  # keeping none takes no choice
        policies[Truncation.from_json(plain)] = None
    return list(policies)


def _plain(entry: Any) -> Any:
    if isinstance(entry, Truncation):
        return entry.to_json()
    return dict(entry) if isinstance(entry, Mapping) else entry


def _check_types(plan: Plan) -> None:
    for name in ("samples", "calibration", "timed", "seed"):
        check_integer(name, getattr(plan, name), 1 if name in ("samples", "calibration") else 0)
    if plan.max_new_tokens is not None:
        check_integer("max_new_tokens", plan.max_new_tokens, 1)
    check_batch(plan.batch)
    if isinstance(plan.max_loss, bool) or not isinstance(plan.max_loss, int | float) \
            or not 0 <= plan.max_loss <= 1:  # fmt: skip
        raise InputError(f"max_loss={plan.max_loss!r}; give a share between 0 and 1")
    for name in ("task", "model", "revision", "device", "dtype", "device_map"):
        value = getattr(plan, name)
        if not isinstance(value, str) and (value is not None or name in ("task", "model")):
            raise InputError(f"{name}={value!r} is not text")
    if not isinstance(plan.controls, tuple) or any(c not in CONTROLS for c in plan.controls):
        raise InputError(f"controls={plan.controls!r}; there are {' and '.join(CONTROLS)}")
    if not isinstance(plan.truncations, tuple):
        raise InputError(f"truncations={plan.truncations!r} is not a list")
    if plan.sweep is not None and not isinstance(plan.sweep, Mapping):
        raise InputError(f"sweep={plan.sweep!r} is not a mapping of lists")
