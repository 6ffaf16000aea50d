"""The data sets: where they are, which column is what, and how answers are scored."""

from __future__ import annotations

from dataclasses import replace

from vlmflow.tasks.hub.reading import Captions, Options, Short
from vlmflow.tasks.hub.spec import HubData, Part
from vlmflow.tasks.metrics.choices import ChosenOption
from vlmflow.tasks.metrics.cider import Cider, CocoCaptions
from vlmflow.tasks.metrics.direct_answer import DirectAnswer
from vlmflow.tasks.metrics.exact import ExactMatch
from vlmflow.tasks.metrics.mme import Mme
from vlmflow.tasks.metrics.pope import YesNo
from vlmflow.tasks.metrics.vqa import VqaAccuracy


def _moved(name: str) -> tuple[str, ...]:
    """Where lmms-eval's copies are since July 2026, and where they were before."""
    return (f"lmms-lab-encoder/{name}", f"lmms-lab/{name}")


_POPE = HubData(
    "yes/no: is an object in the picture (9,000 questions, 500 COCO pictures)",
    _moved("POPE"),
    Short(),
    YesNo,
    Part("test"),
    cluster="image_source",
    group="category",
)
_AOKVQA = HubData(
    "multiple choice that needs knowledge about the world (1,145 questions)",
    ("HuggingFaceM4/A-OKVQA",),
    Options(("choices",), answer="correct_choice_idx"),
    ChosenOption,
    Part("validation"),
    calibration=Part("train"),
)
_SEEDBENCH = HubData(
    "multiple choice on pictures and video frames (17,990 questions)",
    _moved("SEED-Bench"),
    Options(("choice_a", "choice_b", "choice_c", "choice_d")),
    ChosenOption,
    Part("test"),
    cluster="data_id",
    group="data_type",
)
_COCO = HubData(
    "one-sentence captions of COCO 2014's validation pictures (40,504)",
    _moved("COCO-Caption"),
    Captions("answer"),
    CocoCaptions,
    Part("val"),
    cluster="question_id",
    max_new_tokens=64,
)

CATALOGUE: dict[str, HubData] = {
    "scienceqa": HubData(
        "multiple choice from school science (2,017 questions with pictures)",
        _moved("ScienceQA"),
        Options(("choices",), hint="hint", label="Context: "),
        ChosenOption,
        Part("test", "ScienceQA-IMG"),
        calibration=Part("validation", "ScienceQA-IMG"),
        group="subject",
    ),
    "pope": _POPE,
    **{
        f"pope-{kind}": replace(
            _POPE, description=f"POPE's questions about {absent} (3,000)", only=("category", kind)
        )
        for kind, absent in {
            "random": "any absent objects",
            "popular": "absent objects that are frequent",
            "adversarial": "absent objects that come along with those present",
        }.items()
    },
    "textvqa": HubData(
        "reading text in pictures (5,000 questions)",
        _moved("textvqa"),
        Short("answers", several=True, capital=True),
        VqaAccuracy,
        Part("validation"),
        calibration=Part("train"),
        cluster="image_id",
    ),
    "gqa": HubData(
        "compositional questions with one-word answers (12,578)",
        _moved("GQA"),
        Short(),
        ExactMatch,
        Part("testdev", "testdev_balanced_instructions", "testdev_balanced_images"),
        calibration=Part("val", "val_balanced_instructions", "val_balanced_images"),
        picture="imageId",
        cluster="imageId",
    ),
    "vqav2": HubData(
        "open questions about COCO pictures (214,354)",
        _moved("VQAv2"),
        Short("answers", several=True),
        VqaAccuracy,
        Part("validation"),
        cluster="image_id",
        group="answer_type",
    ),
    "aokvqa": _AOKVQA,
    "aokvqa-direct": replace(
        _AOKVQA,
        description="A-OKVQA without options, ten annotators' answers",
        reading=Short("direct_answers", several=True),
        metric=DirectAnswer,
        only=("difficult_direct_answer", "False"),
    ),
    "mmbench": HubData(
        "multiple choice on twenty abilities (English dev split, each question once)",
        _moved("MMBench"),
        Options(("A", "B", "C", "D"), hint="hint"),
        ChosenOption,
        Part("dev", "en"),
        group="category",
        # The circular evaluation's copies of a question have its index plus millions.
        below=("index", 1_000_000),
    ),
    "mme": HubData(
        "yes/no pairs in fourteen categories of perception and cognition (2,374 questions)",
        _moved("MME"),
        Short(without=" Please answer yes or no."),
        Mme,
        Part("test"),
        cluster="question_id",
        group="category",
        together=True,
    ),
    "seedbench": _SEEDBENCH,
    "seedbench-image": replace(
        _SEEDBENCH,
        description="SEED-Bench's questions about single pictures (14,233)",
        only=("data_type", "image"),
    ),
    "coco-caption": _COCO,
    "coco-caption2017": replace(
        _COCO,
        description="one-sentence captions of COCO 2017's validation pictures (5,000)",
        hub=_moved("COCO-Caption2017"),
    ),
    "flickr30k": HubData(
        "one-sentence captions of Flickr pictures (31,783)",
        _moved("flickr30k"),
        Captions("caption"),
        Cider,
        Part("test"),
        cluster="img_id",
        max_new_tokens=64,
    ),
    "nocaps": HubData(
        "one-sentence captions of pictures with uncommon objects (4,500)",
        _moved("NoCaps"),
        Captions("annotations_captions"),
        Cider,
        Part("validation"),
        cluster="image_id",
        max_new_tokens=64,
    ),
}
"""Data sets by the name of their task."""
