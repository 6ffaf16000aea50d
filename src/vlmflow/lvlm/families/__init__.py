"""Families of LVLM architectures, by ``config.model_type``; ``base`` says how to add one."""

from vlmflow.lvlm.families.base import Family, PromptPictures, UnknownFamily
from vlmflow.lvlm.families.built_in import FAMILIES
from vlmflow.lvlm.families.execution import Execution
from vlmflow.lvlm.families.registry import (
    families_by_type,
    family_of,
    register_family,
    unregister_family,
)

__all__ = [
    "FAMILIES",
    "Execution",
    "Family",
    "PromptPictures",
    "UnknownFamily",
    "families_by_type",
    "family_of",
    "register_family",
    "unregister_family",
]
