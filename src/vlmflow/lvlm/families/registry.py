"""Which family a model belongs to: one that was registered, installed, or built in."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import metadata
from typing import Any

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.families.base import Family, UnknownFamily
from vlmflow.lvlm.families.built_in import FAMILIES

GROUP = "vlmflow.families"
"""Entry points of other packages: the name is a model type, the value a family or its class."""

_registered: dict[str, Family] = {}


def register_family(model_type: str, family: Family | type[Family]) -> None:
    """Use a family for models of a type that are wrapped from now on.

    It wins over families of other packages, and these over built-in ones. A second family for the
    same type takes the place of the first.

    Parameters
    ----------
    model_type : str
        ``model.config.model_type``.
    family : Family or subclass of it
        A class is called without arguments.

    Raises
    ------
    InputError
        If the type is not a name, or the family is not a :class:`Family`.

    Examples
    --------
    >>> vlmflow.register_family("my_model_type", MyFamily)
    """
    if not isinstance(model_type, str) or not model_type:
        raise InputError(
            f"model_type={model_type!r} is not the name of a model type: give "
            "model.config.model_type"
        )
    _registered[model_type] = _checked(family, model_type)


def unregister_family(model_type: str) -> None:
    """Undo :func:`register_family`; models that are wrapped already keep their family.

    Raises
    ------
    InputError
        If none is registered for the type.
    """
    if model_type not in _registered:
        names = ", ".join(sorted(_registered)) or "none"
        raise InputError(
            f"no family is registered for models of type {model_type!r}; registered: {names}"
        )
    del _registered[model_type]


def family_of(model_type: str) -> Family:
    """Return the family of a model type; :class:`UnknownFamily` where none claims it.

    Raises
    ------
    InputError
        If an installed package gives something that is not a family.
    ModelError
        If its family cannot be loaded, or several packages give one.
    """
    family = _registered.get(model_type) or _installed(model_type)
    return family or families_by_type().get(model_type) or UnknownFamily()


def families_by_type() -> dict[str, Family]:
    """Return the built-in and the registered families, by model type."""
    built_in = {name: family for family in FAMILIES for name in family.model_types}
    return {**built_in, **_registered}


@cache  # reading the metadata of all installed packages takes milliseconds
def _installed(model_type: str) -> Family | None:
    """Load the family that an installed package gives for a model type."""
    points = metadata.entry_points(group=GROUP, name=model_type)
    if not points:
        return None
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise ModelError(
            f"several installed packages give a family for models of type {model_type!r} "
            f"({', '.join(values)}): choose one with vlmflow.register_family"
        )
    (value,) = values
    try:
        family = next(iter(points)).load()
    except Exception as error:  # code of another package may raise anything
        raise ModelError(
            f"the family {value} for models of type {model_type!r} cannot be loaded "
            f"({type(error).__name__}: {error}): repair or uninstall its package"
        ) from error
    return _checked(family, model_type)


def _checked(family: Any, model_type: str) -> Family:
    """Return a family, or make one of its class."""
    if isinstance(family, type) and issubclass(family, Family):
        if inspect.isabstract(family):
            missing = ", ".join(sorted(family.__abstractmethods__))
            raise InputError(
                f"the family {family.__name__} for models of type {model_type!r} does not define "
                f"{missing}, which every family has to"
            )
        try:
            return family()
        except TypeError as error:
            raise InputError(
                f"the family {family.__name__} for models of type {model_type!r} cannot be made "
                f"without arguments ({error}): give an object of it"
            ) from error
    if isinstance(family, Family):
        return family
    raise InputError(
        f"the family for models of type {model_type!r} must be a vlmflow.Family or a subclass of "
        f"it, not {family!r}"
    )
