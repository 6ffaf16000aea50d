"""The ways of removing image tokens that a user names: settings, a preset, or a policy's file."""

from __future__ import annotations

import os
from collections.abc import Callable

from vlmflow.errors import InputError
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.presets import check_preset, preset
from vlmflow.truncation.truncation import Truncation

Way = Callable[[int], "Truncation | ExitPolicy"]
"""Makes what removes tokens, for a number of decoder layers."""


def one_way(
    settings: str | None,
    preset_name: str | None,
    policy_file: str | os.PathLike[str] | None,
    names: str,
) -> Way | None:
    """Read the one way that is given; None where none is.

    Parameters
    ----------
    settings : str, optional
        As :meth:`Truncation.parse` takes them.
    preset_name : str, optional
        A published method.
    policy_file : path, optional
        What ``vlmflow certify`` wrote.
    names : str
        What the user knows the three by, for the refusal of more than one.

    Raises
    ------
    InputError
        If several are given, or one cannot be read.
    """
    given = [way for way in (settings, preset_name, policy_file) if way is not None]
    if len(given) > 1:
        raise InputError(f"{names} all remove tokens; give one")
    if settings is not None:
        truncation = Truncation.parse(settings)
        return lambda _layers: truncation
    if policy_file is not None:
        policy = ExitPolicy.load(policy_file)
        return lambda _layers: policy
    if preset_name is None:
        return None
    check_preset(preset_name)
    return lambda layers: preset(preset_name, layers)
