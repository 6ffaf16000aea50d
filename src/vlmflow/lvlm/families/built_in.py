"""The families that ship with the package."""

from __future__ import annotations

from vlmflow.lvlm.families.aya_vision import AyaVision
from vlmflow.lvlm.families.base import Family
from vlmflow.lvlm.families.blip2 import Blip2
from vlmflow.lvlm.families.cohere2_vision import Cohere2Vision
from vlmflow.lvlm.families.deepseek_vl import DeepseekVL
from vlmflow.lvlm.families.gemma3 import Gemma3
from vlmflow.lvlm.families.glm4v import Glm4v
from vlmflow.lvlm.families.idefics3 import Idefics3
from vlmflow.lvlm.families.internvl import InternVL
from vlmflow.lvlm.families.lfm2_vl import Lfm2Vl
from vlmflow.lvlm.families.llava import Llava
from vlmflow.lvlm.families.llava_next import LlavaNext
from vlmflow.lvlm.families.llava_onevision import LlavaOnevision
from vlmflow.lvlm.families.paligemma import PaliGemma
from vlmflow.lvlm.families.perception_lm import PerceptionLM
from vlmflow.lvlm.families.pixtral import Pixtral
from vlmflow.lvlm.families.qwen_vl import QwenVL

FAMILIES: tuple[Family, ...] = (
    Llava(),
    LlavaNext(),
    LlavaOnevision(),
    QwenVL(),
    Glm4v(),
    Idefics3(),
    InternVL(),
    AyaVision(),
    Cohere2Vision(),
    Gemma3(),
    PaliGemma(),
    Pixtral(),
    DeepseekVL(),
    Lfm2Vl(),
    PerceptionLM(),
    Blip2(),
)
