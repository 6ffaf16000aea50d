"""Which tokens the answer of a large vision-language model draws on, layer by layer.

>>> import vlmflow
>>> vlm = vlmflow.load("scenes-llava")
>>> flow = vlm.explain("picture.png", "What colour is the circle?")
>>> flow.segment_frame()

Importing this package does not import torch: the names below are fetched when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vlmflow.version import __version__ as __version__

if TYPE_CHECKING:
    from vlmflow.api import cliff_study as cliff_study
    from vlmflow.api import faithfulness as faithfulness
    from vlmflow.api import load as load
    from vlmflow.api import sample as sample
    from vlmflow.api import study as study
    from vlmflow.certification import certify as certify
    from vlmflow.comparison import compare as compare
    from vlmflow.explained_tasks import explain_task as explain_task
    from vlmflow.flow.options import ExplainOptions as ExplainOptions
    from vlmflow.flow.signals.signal import Signal as Signal
    from vlmflow.imported_runs import import_runs as import_runs
    from vlmflow.lvlm.families.base import Family as Family
    from vlmflow.lvlm.families.registry import register_family as register_family
    from vlmflow.lvlm.video_files import VideoFile as VideoFile
    from vlmflow.lvlm.videos import Video as Video
    from vlmflow.model_api import LVLM as LVLM
    from vlmflow.removal.cliff import Cliff as Cliff
    from vlmflow.removal.cliff import cliff as cliff
    from vlmflow.removal.curve import RemovalCurve as RemovalCurve
    from vlmflow.reports.write import figures as figures
    from vlmflow.reports.write import report as report
    from vlmflow.result.information_flow import InformationFlow as InformationFlow
    from vlmflow.studies.budget.settings import BudgetSettings as BudgetSettings
    from vlmflow.studies.certification.settings import CertifySettings as CertifySettings
    from vlmflow.tasks.base import Task as Task
    from vlmflow.tasks.base import TaskSample as TaskSample
    from vlmflow.token_budget import budget as budget
    from vlmflow.truncation.exit_policy import ExitPolicy as ExitPolicy
    from vlmflow.truncation.exit_signals.signal import ExitSignal as ExitSignal
    from vlmflow.truncation.presets import preset as preset
    from vlmflow.truncation.rankings.ranking import Ranking as Ranking
    from vlmflow.truncation.truncation import Truncation as Truncation

_PUBLIC = {
    "vlmflow.model_api": ("LVLM",),
    "vlmflow.api": ("cliff_study", "faithfulness", "load", "sample", "study"),
    "vlmflow.certification": ("certify",),
    "vlmflow.comparison": ("compare",),
    "vlmflow.explained_tasks": ("explain_task",),
    "vlmflow.flow.options": ("ExplainOptions",),
    "vlmflow.flow.signals.signal": ("Signal",),
    "vlmflow.imported_runs": ("import_runs",),
    "vlmflow.lvlm.families.base": ("Family",),
    "vlmflow.lvlm.families.registry": ("register_family",),
    "vlmflow.lvlm.video_files": ("VideoFile",),
    "vlmflow.lvlm.videos": ("Video",),
    "vlmflow.removal.cliff": ("Cliff", "cliff"),
    "vlmflow.removal.curve": ("RemovalCurve",),
    "vlmflow.reports.write": ("figures", "report"),
    "vlmflow.result.information_flow": ("InformationFlow",),
    "vlmflow.studies.certification.settings": ("CertifySettings",),
    "vlmflow.studies.budget.settings": ("BudgetSettings",),
    "vlmflow.token_budget": ("budget",),
    "vlmflow.tasks.base": ("Task", "TaskSample"),
    "vlmflow.truncation.exit_policy": ("ExitPolicy",),
    "vlmflow.truncation.exit_signals.signal": ("ExitSignal",),
    "vlmflow.truncation.presets": ("preset",),
    "vlmflow.truncation.rankings.ranking": ("Ranking",),
    "vlmflow.truncation.truncation": ("Truncation",),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
