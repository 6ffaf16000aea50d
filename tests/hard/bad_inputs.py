"""What people and scripts give a command line by mistake: every command times every kind of it."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.tiny import tiny_llava

HUGE = "9" * 30
PICTURE, QUESTION, MODEL, TASK = "@picture.png", "What is it?", "@model", "@questions.jsonl"
SHORT = ("--max-new-tokens", "2")

# How each command is called where all is well; "@" stands for the directory of files.
EXPLAIN = ("explain", PICTURE, QUESTION, "--model", MODEL, *SHORT)
GENERATE = ("generate", PICTURE, QUESTION, "--model", MODEL, *SHORT)
CLIFF = ("cliff", TASK, "--out", "out", "--model", MODEL, "--samples", "2", "--calibration", "1")
STUDY = (
    *("study", "--task", TASK, "--out", "out", "--model", MODEL, "--truncate", "layer=1,keep=0"),
    *("--samples", "2", "--calibration", "1", "--timed", "0"),
)
FAITHFULNESS = (
    *("faithfulness", TASK, "--out", "out", "--model", MODEL, "--signals", "attention"),
    *("--samples", "1", "--calibration", "1", "--steps", "1", "--layer", "1"),
    *("--sanity", "0", "--timed", "0"),
)
CERTIFY = (
    *("certify", TASK, "--out", "out.json", "--model", MODEL, "--risk", "0.9"),
    *("--calibration", "4", "--samples", "1", "--timed", "0", "--signals", "hidden_step"),
    *("--layer", "1", "--keep", "0"),
)
COMPARE = (
    *("compare", "--task", TASK, "--out", "out", "--model", MODEL, "--layer", "1"),
    *("--against", "diversity", "--keep", "0.5", "--samples", "2", "--timed", "0"),
)
BUDGET = (
    *("budget", TASK, "--out", "out", "--model", MODEL, "--tokens", "8", "--risk", "0.9"),
    *("--calibration", "4", "--samples", "1", "--timed", "0", "--layer", "1"),
)
REPRODUCE = (
    *("reproduce", "paper-table-1", "--plan", "--model", MODEL),
    *("--as", "llava-hf/llava-1.5-7b-hf"),
)
EXPORT = ("export-policy", "--model", MODEL, "--truncate", "layer=1,keep=0")
WITH_MODEL = (EXPLAIN, GENERATE, CLIFF, FAITHFULNESS, STUDY, CERTIFY, COMPARE)
COMMANDS = (
    *("explain", "generate", "cliff", "study", "report", "demo"),
    *("models", "tasks", "rankings", "signals", "presets", "sample", "trust", "faithfulness"),
    *("budget", "certify", "compare", "export-policy", "reproduce", "env", "app"),
)


@dataclass(frozen=True)
class BadInput:
    """A command line, and what the line about it has to name."""

    arguments: tuple[str, ...]
    names: str = ""

    def __str__(self) -> str:
        return " ".join(self.arguments).encode("unicode_escape").decode()[:120]


def put(command: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """Give an option of a command another value, or one more option."""
    arguments = list(command)
    if option in arguments:
        arguments[arguments.index(option) + 1] = value
        return tuple(arguments)
    return (*command, option, value)


def bad_inputs() -> list[BadInput]:
    """All of them, always in the same order."""
    kinds = (
        *(pictures, texts, numbers, models, tasks, settings, tables, servers),
        *(yaml_files, outputs, usage),
    )
    return [bad for kind in kinds for bad in kind()]


def pictures() -> Iterator[BadInput]:
    named = [
        *(f"@{name}" for name in PICTURES),
        "missing.png",
        "@",
        "http://a.b/c.png",
        "/dev/null",
    ]
    odd = ["x\x1b[2Jy.png", "a\u202egnp.exe", "n" * 300, "no\nline.png", "half\udcff.png", ""]
    for command, name in itertools.product(("explain", "generate"), (*named, *odd)):
        yield BadInput((command, name, QUESTION), name[1:] if name[:1] == "@" else "")
        yield BadInput((command, PICTURE, QUESTION, "--image", name))


def texts() -> Iterator[BadInput]:
    for text in ("", " \n", "<image>", "a <image> b", "half \udcff", "\ud800", "</s>", "a<pad>"):
        for command in (EXPLAIN, GENERATE):
            yield BadInput((*command[:2], text, *command[3:]), "question")
        yield BadInput(put(EXPLAIN, "--answer", text), "answer")


def numbers() -> Iterator[BadInput]:
    integers = {
        EXPLAIN: ("--max-new-tokens",),
        GENERATE: ("--max-new-tokens",),
        CLIFF: ("--samples", "--calibration", "--batch", "--seed"),
        STUDY: ("--samples", "--calibration", "--timed", "--seed", "--batch"),
        FAITHFULNESS: ("--samples", "--steps", "--layer", "--sanity", "--batch"),
        CERTIFY: ("--calibration", "--samples", "--timed", "--seed", "--layer", "--batch"),
        BUDGET: ("--calibration", "--samples", "--timed", "--seed", "--layer"),
        EXPORT: ("--image-tokens", "--text-tokens", "--answer-tokens", "--samples"),
        COMPARE: ("--samples", "--timed", "--layer"),
        REPRODUCE: ("--samples", "--seed"),
    }
    for command, options in integers.items():
        for option, value in itertools.product(
            options, ("x", "", "-1", "1.5", "0x10", "\u202e3", HUGE, f"-{HUGE}")
        ):
            name = option[2:]
            yield BadInput(put(command, option, value), name if command != STUDY else name[:4])
    for command, option in ((CLIFF, "--changed"), (CLIFF, "--tolerance"), (STUDY, "--max-loss")):
        for value in ("x", "", "nan", "-1", "inf"):
            yield BadInput(put(command, option, value), option[2:5])
    for value in ("x", "", "nan", "-1", "inf", "0"):
        yield BadInput(put(EXPORT, "--memory", value), "memory")
        yield BadInput(put(REPRODUCE, "--memory", value), "memory")
    for value in ("x", "", "0", "-1", "1.5", "0x10", "\u202e3", HUGE):
        yield BadInput(("explain", TASK, "--batch", value), "batch")
    yield BadInput((*EXPLAIN, "--batch", "2"), "--batch is for a task")
    for option in ("--risk", "--loss", "--confidence", "--keep"):
        for value in ("x", "", "nan", "-1", "inf", "1"):
            yield BadInput(put(CERTIFY, option, value), option[2:])
            if option != "--keep":
                yield BadInput(put(BUDGET, option, value), option[2:])


def models() -> Iterator[BadInput]:
    for command in WITH_MODEL:
        for device in ("meta", "cpu:5", "warp", "cuda:99", "cpu:x", "hpu", ""):
            yield BadInput(put(command, "--device", device), f"device='{device}'")
        for dtype in ("int8", "float99", ""):
            yield BadInput(put(command, "--dtype", dtype), "--dtype")
        yield BadInput(put(command, "--revision", "main"), "revision='main'")
        for name in ("no-such-model", "", "@", PICTURE, "half\udcff", "nobody/nothing"):
            yield BadInput(put(command, "--model", name), "nobody" if "/" in name else "")
    for name, (_, _, opens) in MODELS.items():
        # Studies keep going where single samples fail, and keep what they measured.
        for command in WITH_MODEL if not opens else (EXPLAIN, GENERATE):
            yield BadInput(put(command, "--model", f"@{name}"), name if not opens else "")


def tasks() -> Iterator[BadInput]:
    names = [
        *(f"@{name}" for name in TASKS),
        "scenes-readng",
        "missing.jsonl",
        "x.txt",
        "",
        "pope@",
    ]
    for name in (*names, "half\udcff.jsonl", "half\ud800.csv"):
        yield BadInput((CLIFF[0], name, *CLIFF[2:]))
        yield BadInput((FAITHFULNESS[0], name, *FAITHFULNESS[2:]))
        yield BadInput((CERTIFY[0], name, *CERTIFY[2:]))
        yield BadInput((BUDGET[0], name, *BUDGET[2:]))
        yield BadInput(put(STUDY, "--task", name))
        yield BadInput(put(COMPARE, "--task", name))


def settings() -> Iterator[BadInput]:
    for setting in (
        *("layer=1", "keep=0", "=", "", "layer=x,keep=1", "layer=-1,keep=0", "layer=1,layer=2"),
        *("layer=1:2,keep=3", "layer=99,keep=0", f"layer={HUGE},keep=0", "layer=1,keep=nan"),
        *("layer=1,keep=2,rank_by=best", "layer=1,keep=2,remainder=x", "layer=1,keep=2,rank_by=("),
        *(f"layer=1,keep=2,rank_by=random(seed={HUGE})", "layer=1,keep=2\udcff", "preset=vtw"),
    ):
        yield BadInput(put(GENERATE, "--truncate", setting))
        yield BadInput(put(EXPLAIN, "--truncate", setting))
        yield BadInput(put(STUDY, "--truncate", setting))
    for name in ("fastw", "", "vtw\u202e"):
        yield BadInput(put(GENERATE, "--preset", name), "preset")
        yield BadInput((*STUDY, "--preset", name), "preset")
    smooth = "llava_cam_smooth"
    for signal in (
        *("atention", " ,", "", "flow_map(3)", "flow_map(", "flow_map(layers=99)", "a\x1b[2J"),
        *(f"{smooth}(copies=0)", f"{smooth}(copies={HUGE})", f"{smooth}(seed={HUGE})"),
        *(f"integrated_gradients(steps={HUGE})", "integrated_gradients(baseline=black)"),
        *("tam(window=2)", f"tam(window={HUGE})", "region_removal(regions=1)"),
        *(f"region_removal(regions={HUGE})", "region_removal(forwards=8)", "rollout(heads=2)"),
        *(f"{smooth}(deviation=inf)", f"{smooth}(copies=2.5)", "saliency(layers=3)"),
    ):
        yield BadInput(put(EXPLAIN, "--signals", signal))
    yield BadInput((*GENERATE, "--compare"), "--compare")
    yield BadInput((*STUDY, "--workers", "slurm"), "workers='slurm'")
    for run in ("", "=", "a=", "=@", "missing", "a=missing", "@", PICTURE, TASK, "half\udcff"):
        yield BadInput(("study", "--import", run, "--out", "out"))
    yield BadInput((*STUDY, "--import", "untouched=@"), "leave out --model")
    yield BadInput((*STUDY, "--metric", "accuracy"), "--metric")
    for option, value in (("--protocol", "owl"), ("--replacement", "pink"), ("--layer", "99")):
        yield BadInput(put(FAITHFULNESS, option, value), value)
    yield BadInput(put(FAITHFULNESS, "--protocol", "eagle"), "protocol='eagle' has 64")
    for signals in ("", ",", "nothing", "attention(x=1)", "flow_map(layers=99)"):
        yield BadInput(put(FAITHFULNESS, "--signals", signals))
        yield BadInput(put(CERTIFY, "--signals", signals))
    for names in ("nothing", "", "a:b:c", "json:dumps", "no_module:X", "random", "none"):
        yield BadInput(put(COMPARE, "--against", names))
    for keep in ("", "0", "1.0", "x", "0.5,0.5", "99", "-1", "nan", HUGE, "0.5;0.1"):
        yield BadInput(put(COMPARE, "--keep", keep), "keep")
    yield BadInput(put(COMPARE, "--layer", "99"), "layer=99")
    yield BadInput(EXPORT[:3], "nothing is removed")
    for setting in ("layer=99,keep=0", "layer=1,keep=9999", "", "layer=x"):
        yield BadInput(put(EXPORT, "--truncate", setting))
    for value in ("no-such-model", "", "@", PICTURE):
        yield BadInput(put(EXPORT, "--model", value))
    for name in ("scenes-readng", "missing.jsonl", ""):
        yield BadInput(put(EXPORT, "--task", name))
    yield BadInput(put(CERTIFY, "--layer", "99"), "layer=99")
    yield BadInput(put(BUDGET, "--layer", "99"), "layer=99")
    yield BadInput(put(BUDGET, "--rank-by", "best"), "best")
    yield BadInput(BUDGET, "8 image tokens")  # of a model that shows every picture at one size
    for tokens in ("", ",", "x", "0", "-4", "8;4", "1.5", HUGE, "8\u202e"):
        yield BadInput(put(BUDGET, "--tokens", tokens))
    yield BadInput(put(CERTIFY, "--rank-by", "best"), "best")
    yield BadInput(put(CERTIFY, "--calibration", "1"), "calibration=1")
    for file in ("@questions.jsonl", "@picture.png", "missing.json", "@", ""):
        yield BadInput(put(GENERATE, "--policy", file))
    yield BadInput((*put(GENERATE, "--policy", "p.json"), "--preset", "vtw"), "--policy")


def tables() -> Iterator[BadInput]:
    yield BadInput(REPRODUCE, "layer=12, but")  # the model has four
    yield BadInput(("reproduce", "paper-table-1"), "--out")
    yield BadInput(("reproduce", "--model", MODEL), "--model belongs to a table")
    for name in ("table-1", "", "../paper-table-1", "a\x1b[2J", "half\udcff"):
        yield BadInput((REPRODUCE[0], name, *REPRODUCE[2:]), "there is no table")
        yield BadInput(("reproduce", name, "--out", "out"))
    for name in ("someone/else", "Qwen-VL", "x\u202e"):
        yield BadInput(put(REPRODUCE, "--as", name))
    yield BadInput(
        put(REPRODUCE, "--as", "Salesforce/instructblip-vicuna-7b"), "is of type 'llava'"
    )
    for name in ("no-such-model", "", "@", PICTURE, "half\udcff"):
        yield BadInput(put(REPRODUCE, "--model", name))
    for names in ("", "mmmu", "pope,pope", "pope,", "gqa", "pope\x07"):
        yield BadInput(put(REPRODUCE, "--only", names), "--only")
    for source in ("", "pope", "pope=", "=x", "mmmu=x", "half\udcff=x"):
        yield BadInput(put(REPRODUCE, "--data", source), "--data")
    yield BadInput((*REPRODUCE, "--data", "pope=a", "--data", "pope=b"), "twice")
    run = (*REPRODUCE[:2], *REPRODUCE[3:], "--out", "out", "--only", "pope")
    yield BadInput((*run, "--data", "pope=no-directory"), "no-directory")
    yield BadInput((*run, "--data", f"pope={HUGE}"), HUGE)


def servers() -> Iterator[BadInput]:
    for host in (
        "",
        "nowhere",
        "127.0.0.1:80",
        "1.2.3",
        "[::1]",
        "256.0.0.1",
        "a\u202e",
        "half\udcff",
    ):
        yield BadInput(("app", "--host", host), "--host")
    # Documentation's address (RFC 5737), which no machine has.
    yield BadInput(("app", "--host", "192.0.2.1", "--port", "0"), "192.0.2.1")
    for port in ("x", "", "-1", "1.5", "65536", HUGE):
        yield BadInput(("app", "--port", port), "--port")
    for name in ("no-such-model", "", "@", PICTURE, "half\udcff", "./x"):
        yield BadInput(("app", "--port", "0", "--model", name))
    yield BadInput(("app", "--dtype", "int8"), "--dtype")


def yaml_files() -> Iterator[BadInput]:
    for name in (*YAML, "missing.yaml", "", "half\ud800.yaml"):
        file = f"@{name}" if name in YAML else name
        yield BadInput(("study", file, "--out", "out"), name[:4] if name == file else "")


def outputs() -> Iterator[BadInput]:
    ways = ("", PICTURE, f"{PICTURE}/x", "/proc/x/y", "/dev/null/x", "n" * 300, "half\ud800")
    for way in ways:
        for command in (EXPLAIN, CLIFF, FAITHFULNESS, STUDY, COMPARE):
            yield BadInput(put(command, "--out", way))
        yield BadInput(("demo", "--out", way))
        yield BadInput(put(CERTIFY, "--out", way))
        yield BadInput(put(BUDGET, "--out", way))
        yield BadInput(put(CERTIFY, "--out", f"{way}.json"))
    yield BadInput(put(EXPLAIN, "--out", "@in-the-way"), "report.html")
    for name in ("missing", "@", PICTURE, "@no-study", "", "half\ud800"):
        yield BadInput(("report", name))
        yield BadInput(("report", "@", name, "--out", "out"))


def usage() -> Iterator[BadInput]:
    yield BadInput(("explian", "a.png", "b"), "explian")
    yield BadInput(("a\x1b[2J\u202e",), "\\x1b[2J\\u202e")
    for command in COMMANDS:
        yield BadInput((command, "--nope\u202e"), "\\u202e")
        yield BadInput((command, *["one-too-many\x07"] * 3))
    for arguments in (
        *(("--nope",), ("explain",), ("explain", "a"), ("generate",), ("cliff",), ("report",)),
        *(("cliff", "a"), ("demo", "--out"), ("study", "--samples"), ("study",)),
    ):
        yield BadInput(arguments)
    yield BadInput(put(EXPLAIN, "--target", "x\x07"), "x\\x07")


def _file(make: Callable[[Image.Image], Image.Image], form: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    target = io.BytesIO()
    make(Image.fromarray(pixels)).save(target, form, **options)
    return target.getvalue()


def _broken_tiff() -> bytes:
    """About which libtiff has a lot to say."""
    content = bytearray(_file(lambda image: image, "TIFF", compression="tiff_lzw"))
    with Image.open(io.BytesIO(content)) as image:
        strips = zip(image.tag_v2[273], image.tag_v2[279], strict=True)  # type: ignore[attr-defined]
    for start, length in strips:
        for place in range(start + length // 3, start + length, 11):
            content[place] ^= 0x5A
    return bytes(content)


PICTURES = {
    "empty.png": b"",
    "text.png": b"not a picture",
    "text.mp4": b"not a video",
    "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "cut.png": _file(lambda image: image, "PNG")[:2000],
    "cut.jpg": _file(lambda image: image, "JPEG")[:200],
    "dot.png": _file(lambda image: image.resize((1, 1)), "PNG"),
    "line.png": _file(lambda image: image.resize((1200, 3)), "PNG"),
    "float.tiff": _file(lambda image: image.convert("F"), "TIFF"),
    "broken.tiff": _broken_tiff(),
}

QUESTIONS = [
    {"image": "picture.png", "question": f"What {number}?", "answer": "red", "split": split}
    for number in range(3)
    for split in ("test", "calibration")
]

TASKS = {
    "empty.jsonl": b"",
    "broken.jsonl": b'{"image": ',
    "list.jsonl": b"[1]",
    "field.jsonl": b'{"image": "picture.png", "question": "q", "answer": "a", "colour": 1}',
    "no-answer.jsonl": b'{"image": "picture.png", "question": "q"}',
    "surrogate.jsonl": b'{"image": "picture.png", "question": "\\ud800", "answer": "a"}',
    "latin.csv": b"image,question,answer\npicture.png,Stra\xdfe?,a",
    "cells.csv": b"image,question,answer\npicture.png,q",
    "twice.csv": b"image,image,answer\na,b,c",
}

_PLAN = "task: scenes-reading\ntruncations: ['layer=1,keep=0']\n"
YAML = {
    f"{name}.yaml": content if isinstance(content, bytes) else content.encode()
    for name, content in {
        "not-utf-8": b"\xff\xfe\xff",
        "nothing": "",
        "number": "5",
        "open": "task: [",
        "tag": "task: !!python/object:os.system x",
        "deep": "task: " + "[" * 5000,
        "digits": f"{_PLAN}samples: {'9' * 5000}",
        "int": f"{_PLAN}samples: !!int x",
        "timestamp": f"{_PLAN}revision: !!timestamp x",
        "circle": "task: scenes-reading\ntruncations: &a [*a]",
        "date-as-task": "task: 2024-01-01\ntruncations: ['layer=1,keep=0']",
        "no-date": "task: 2024-13-77\ntruncations: ['layer=1,keep=0']",
        "date-as-truncation": "task: scenes-reading\ntruncations: [2024-01-01]",
        "date-as-layer": "task: scenes-reading\ntruncations: [{layer: 2024-01-01, keep: 0}]",
        "date-as-keep": "task: scenes-reading\ntruncations: [{layer: 1, keep: 2024-01-01}]",
        "date-as-seed": f"{_PLAN}seed: 2024-01-01",
        "date-as-option": f"{_PLAN}2024-01-01: 3",
        "date-to-sweep": "task: scenes-reading\nsweep: {layer: [2024-01-01], keep: [0]}",
        "option": f"{_PLAN}layers: 3",
        "none": "task: scenes-reading",
        "huge-seed": f"{_PLAN}seed: {HUGE}",
        "nan": f"{_PLAN}max_loss: .nan",
        "no-text": f"{_PLAN}model: [1]",
        "meta": f"{_PLAN}device_map: meta",
    }.items()
}


def _processor(**changes: Any) -> tuple[str, Any, bool]:
    return ("processor_config.json", lambda plain: plain.update(changes), True)


def _pixels(**changes: Any) -> tuple[str, Any, bool]:
    return ("processor_config.json", lambda plain: plain["image_processor"].update(changes), True)


def _config(opens: bool, **changes: Any) -> tuple[str, Any, bool]:
    return ("config.json", lambda plain: plain.update(changes), opens)


def _template(text: str) -> tuple[str, Any, bool]:
    return ("chat_template.jinja", text.encode(), True)


# File that is broken, how, and whether the model can be opened all the same
MODELS: dict[str, tuple[str, Any, bool]] = {
    "patch-none": _processor(patch_size=None),
    "patch-text": _processor(patch_size="14"),
    "patch-zero": _processor(patch_size=0),
    "patch-seven": _processor(patch_size=7),
    "strategy-full": _processor(vision_feature_select_strategy="full"),
    "additional-none": _processor(num_additional_image_tokens=None),
    "additional-zero": _processor(num_additional_image_tokens=0),
    "image-token": _processor(image_token="<pic>"),
    "templates": _processor(chat_template={"rag": "x", "tool": "y"}),
    "mean": _pixels(image_mean=[0.5]),
    "rescale": _pixels(rescale_factor="x"),
    "resample": _pixels(resample=77),
    "crop": _pixels(crop_size={"height": 28, "width": 28}),
    "strategy-of-model": _config(True, vision_feature_select_strategy="full"),
    "layer-99": _config(True, vision_feature_layer=99),
    "no-strategy": _config(False, vision_feature_select_strategy="odd"),
    "no-config": ("config.json", b"{", False),
    "no-type": ("config.json", b'{"model_type": "none"}', False),
    "no-weights": ("model.safetensors", b"abc", False),
    "no-tokenizer": ("tokenizer.json", b"{}", False),
    "no-heads": ("config.json", lambda c: c["text_config"].update(num_attention_heads=0), False),
    "wide": ("config.json", lambda plain: plain["text_config"].update(hidden_size=64), False),
    "binary-template": ("chat_template.jinja", b"\xff\xfe", False),
    "syntax": _template("{% for"),
    "undefined": _template("{{ nothing.at.all }}"),
    "zero": _template("{{ 1 / 0 }}"),
    "refuses": _template("{{ raise_exception('only\nnever') }}"),
    "no-picture": _template("{{ messages[0]['role'] }}"),
    "two-pictures": _template("<image><image>"),
}


def write_files(root: Path) -> None:
    """Write all that bad inputs name: a good model, picture and task, and everything broken."""
    Image.effect_noise((90, 60), 80).convert("RGB").save(root / "picture.png")
    lines = "\n".join(map(json.dumps, QUESTIONS))
    (root / "questions.jsonl").write_text(lines)
    for name, content in {**PICTURES, **TASKS, **YAML}.items():
        (root / name).write_bytes(content)
    (root / "in-the-way" / "report.html").mkdir(parents=True)
    (root / "no-study").mkdir()
    (root / "no-study" / "study.sqlite").write_bytes(b"not a database")
    for part in tiny_llava():
        part.save_pretrained(root / "model")
    for name, (file, change, _) in MODELS.items():
        shutil.copytree(root / "model", root / name, copy_function=os.link)
        path = root / name / file
        content = path.read_bytes()
        path.unlink()  # a link to the good model's
        if callable(change):
            plain = json.loads(content)
            change(plain)
            content = json.dumps(plain).encode()
        else:
            content = change
        path.write_bytes(content)
