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

if TYPE_CHECKING:
    from vlmflow.lvlm.loading import load as load
    from vlmflow.lvlm.model import LVLM as LVLM
    from vlmflow.lvlm.videos import Video as Video
    from vlmflow.removal.cliff import Cliff as Cliff
    from vlmflow.removal.cliff import cliff as cliff
    from vlmflow.removal.curve import RemovalCurve as RemovalCurve
    from vlmflow.reports.write import figures as figures
    from vlmflow.reports.write import report as report
    from vlmflow.result.information_flow import InformationFlow as InformationFlow
    from vlmflow.truncation.policy import Truncation as Truncation
    from vlmflow.truncation.presets import preset as preset

__version__ = "0.1.0"
__all__ = [
    "LVLM",
    "Cliff",
    "InformationFlow",
    "RemovalCurve",
    "Truncation",
    "Video",
    "__version__",
    "cliff",
    "figures",
    "load",
    "preset",
    "report",
]

_HOMES = {
    "Cliff": "vlmflow.removal.cliff",
    "RemovalCurve": "vlmflow.removal.curve",
    "cliff": "vlmflow.removal.cliff",
    "figures": "vlmflow.reports.write",
    "report": "vlmflow.reports.write",
    "InformationFlow": "vlmflow.result.information_flow",
    "LVLM": "vlmflow.lvlm.model",
    "Truncation": "vlmflow.truncation.policy",
    "Video": "vlmflow.lvlm.videos",
    "load": "vlmflow.lvlm.loading",
    "preset": "vlmflow.truncation.presets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
