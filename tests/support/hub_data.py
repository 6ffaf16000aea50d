"""Small data sets in the form that the hub's have, written as the hub stores them."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
from PIL import Image

PICTURES = 12
"""Pictures per split; some data sets ask several questions about each."""


def colour(split: str, number: int) -> tuple[int, int, int]:
    """Of the picture with a number: no two splits share one."""
    return (20 * number, 100, len(split))


def png(split: str, number: int) -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour(split, number)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _pope(split):
    for kind in ("adversarial", "popular", "random"):
        for number in range(PICTURES):
            for answer in ("yes", "no"):
                yield {
                    "id": f"{kind}{number}{answer}",
                    "question_id": str(number),
                    "question": f"Is there a {answer} thing {number} in the image?",
                    "answer": answer,
                    "image_source": f"COCO_val2014_{number:012}",
                    "image": png(split, number),
                    "category": kind,
                }


def _scienceqa(split):
    for number in range(PICTURES):
        yield {
            "image": png(split, number),
            "question": f"Which one is number {number}?",
            "choices": ["none of them", "the first one", "the second one"],
            "answer": number % 3,
            "hint": "Look at it." if number % 2 else "",
            "subject": "natural science",
        }


def _textvqa(split):
    for number in range(PICTURES):
        for word in ("sign", "label"):
            yield {
                "image_id": f"{split}{number:04}",
                "question_id": number,
                "question": f"what does the {word.upper()} say?",
                "image": png(split, number),
                "answers": [f"Word {number}"] * 7 + ["else"] * 3,
                "ocr_tokens": ["Word"],
            }


def _gqa_instructions(split):
    for number in range(PICTURES):
        for side in ("left", "right"):
            yield {
                "id": f"{number}{side}",
                "imageId": f"n{split}{number}",
                "question": f"What is on the {side}?",
                "answer": f"thing {number}",
                "fullAnswer": "It is a thing.",
            }


def _gqa_images(split):
    # In another order than the questions.
    for number in reversed(range(PICTURES)):
        yield {"id": f"n{split}{number}", "image": png(split, number)}


def _vqav2(split):
    for number in range(PICTURES):
        for word in ("What", "Where"):
            yield {
                "question_type": word.lower(),
                "multiple_choice_answer": "two",
                "answers": [
                    {"answer": "two", "answer_confidence": "yes", "answer_id": i} for i in range(10)
                ],
                "image_id": 1000 + number,
                "answer_type": "number",
                "question_id": number,
                "question": f"{word} is it?",
                "image": png(split, number),
            }


def _aokvqa(split):
    for number in range(PICTURES):
        yield {
            "image": png(split, number),
            "question_id": f"q{number}",
            "question": f"What is used with {number}?",
            "choices": ["racket", "fork", "rope", "oar"],
            "correct_choice_idx": number % 4,
            # A text on the hub, not a list.
            "direct_answers": str(["oar"] * 6 + ["it's a paddle"] * 4),
            "difficult_direct_answer": number == 0,
            "rationales": ["Because."],
        }


def _mmbench(split):
    for number in range(PICTURES):
        for turn in (0, 1_000_000):
            yield {
                "index": number + turn,
                "question": f"What is shown in {number}?",
                "hint": "nan" if number % 2 else "It is small.",
                "answer": "AB"[turn > 0],
                "A": "a cat",
                "B": "a dog",
                "C": "nan" if number % 2 else "a cow",
                "D": "nan",
                "category": "object_localization",
                "image": png(split, number),
                "source": "reddit",
                "L2-category": "perception",
            }


def _mme(split):
    for number in range(PICTURES):
        kind = ("existence", "code_reasoning")[number % 2]
        for answer in ("Yes", "No"):
            yield {
                "question_id": f"{kind}/{number:04}.png",
                "image": png(split, number),
                "question": f"Is it {answer.lower()}? Please answer yes or no.",
                "answer": answer,
                "category": kind,
            }


def _seedbench(split):
    for number in range(PICTURES):
        frames = 1 if number % 2 else 3
        yield {
            "answer": "ABCD"[number % 4],
            "choice_a": "one",
            "choice_b": "two",
            "choice_c": "three",
            "choice_d": "four",
            "data_id": str(number),
            "data_type": "image" if frames == 1 else "video",
            "question": "How many are there?",
            "question_id": str(number),
            "question_type_id": 5,
            "image": [png(split, number)] * frames,
            "segment": [0, 1],
        }


def _coco(split):
    for number in range(PICTURES):
        yield {
            "question_id": f"COCO_val2014_{number:012}.jpg",
            "image": png(split, number),
            "question": "Please carefully observe the image and come up with a caption.",
            "answer": [f"A cat sits on sofa number {number}.", "A kitten on a couch."],
            "id": number,
        }


def _flickr(split):
    for number in range(PICTURES):
        yield {
            "image": png(split, number),
            "caption": [f"Two men in picture {number}.", "Some people."],
            "sentids": ["0", "1"],
            "img_id": str(number),
            "filename": f"{number}.jpg",
        }


def _nocaps(split):
    for number in range(PICTURES):
        yield {
            "image": png(split, number),
            "image_id": number,
            "annotations_captions": [f"A platypus in picture {number}.", "An animal."],
        }


_FORMS = {
    "pope": [(None, "test", _pope)],
    "scienceqa": [("ScienceQA-IMG", split, _scienceqa) for split in ("validation", "test")],
    "textvqa": [(None, split, _textvqa) for split in ("train", "validation")],
    "gqa": [
        (f"{split}_balanced_{part}", split, rows)
        for split in ("testdev", "val")
        for part, rows in (("instructions", _gqa_instructions), ("images", _gqa_images))
    ],
    "vqav2": [(None, "validation", _vqav2)],
    "aokvqa": [(None, split, _aokvqa) for split in ("train", "validation")],
    "mmbench": [("en", "dev", _mmbench), ("cn", "dev", _mmbench)],
    "mme": [(None, "test", _mme)],
    "seedbench": [(None, "test", _seedbench)],
    "coco-caption": [(None, "val", _coco)],
    "flickr30k": [(None, "test", _flickr)],
    "nocaps": [(None, "validation", _nocaps)],
}

FORM = {
    "pope-random": "pope",
    "pope-popular": "pope",
    "pope-adversarial": "pope",
    "aokvqa-direct": "aokvqa",
    "seedbench-image": "seedbench",
    "coco-caption2017": "coco-caption",
}
"""Tasks that read another one's data set, or one in the same form."""


def write(name: str, folder: Path, change=lambda rows: rows) -> Path:
    """Write the data set of a task as Parquet files, with a card where it has configurations."""
    card = []
    for config, split, rows in _FORMS[FORM.get(name, name)]:
        table = change(list(rows(split)))
        features = {
            column: datasets.Image()
            for column, value in table[0].items()
            if isinstance(value, dict) and "bytes" in value
        }
        made = datasets.Dataset.from_list(table)
        if isinstance(table[0].get("image"), list):
            features["image"] = datasets.List(datasets.Image())
        for column, feature in features.items():
            made = made.cast_column(column, feature)
        place = folder / (config or "data")
        place.mkdir(parents=True, exist_ok=True)
        made.to_parquet(place / f"{split}-00000-of-00001.parquet")
        if config:
            card += [
                f"- config_name: {config}",
                "  data_files:",
                f"  - split: {split}",
                f"    path: {config}/{split}-*",
            ]
    if card:
        configs: dict[str, list[str]] = {}
        for at in range(0, len(card), 4):
            configs.setdefault(card[at], card[at + 1 : at + 2]).extend(card[at + 2 : at + 4])
        lines = [line for name, files in configs.items() for line in (name, *files)]
        text = "\n".join(["---", "configs:", *lines, "---", ""])
        (folder / "README.md").write_text(text, "utf-8")
    return folder
