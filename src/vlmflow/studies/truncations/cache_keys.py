"""Hashes of everything that can change a result, so that nothing else has to be run again."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
import transformers

from vlmflow.lvlm.images import open_image
from vlmflow.studies.truncations.arms import Arm
from vlmflow.studies.truncations.store import StoredSample
from vlmflow.tasks.base import TaskSample
from vlmflow.version import __version__

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

_PROBED = 64
"""Values read of every weight."""


def model_identity(vlm: LVLM) -> str:
    """Hash a model: configuration, values of every weight, processor, versions, kind of device."""
    digest = hashlib.sha256()
    summary = vlm.config_summary() | {
        "config": vlm.model.config.to_json_string(use_diff=False),
        "generation": str(vlm.model.generation_config),
        "template": str(getattr(vlm.processor, "chat_template", None)),
        "images": str(vlm.processor.image_processor),
        "words": len(vlm.processor.tokenizer),
        "device": vlm.device.type,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    summary.pop("name")  # the same model from another directory
    digest.update(_text(summary).replace(str(vlm.model.config.name_or_path), "").encode())
    for name, weight in vlm.model.named_parameters():
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // _PROBED)
        values = flat[::step][:_PROBED].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + values)
    return digest.hexdigest()


def stored_sample(task: str, split: str, sample: TaskSample) -> StoredSample:
    """Hash a sample, its pictures included, and take along what scoring needs.

    A picture that cannot be read is hashed by its name.
    """
    texts = [task, split, sample.key, sample.question, sample.references, sample.choices]
    digest = hashlib.sha256(_text(texts).encode())
    for picture in sample.pictures:
        try:
            image = open_image(picture)
            digest.update(f"{image.size}".encode() + image.tobytes())
        except Exception:  # what is wrong with it becomes the reason of its failures
            digest.update(f"unreadable {picture}".encode())
    return StoredSample(
        id=digest.hexdigest(),
        split=split,
        key=sample.key,
        question=sample.question,
        refs=json.dumps(list(sample.references)),
        choices=json.dumps(list(sample.choices)),
        part=sample.group,
        cluster=sample.cluster,
    )


def task_sample(stored: StoredSample) -> TaskSample:
    """Make a stored sample what a task can score; without pictures."""
    return TaskSample(
        key=stored.key,
        pictures=(),
        question=stored.question,
        references=tuple(json.loads(stored.refs)),
        choices=tuple(json.loads(stored.choices)),
        group=stored.part,
        cluster=stored.cluster,
    )


def result_id(model: str, sample: str, arm: Arm, max_new_tokens: int) -> str:
    """Hash what a result depends on; the arm's name is not part of it.

    ``model`` is a :func:`model_identity`, ``sample`` the id of a :func:`stored_sample`.
    """
    plain = {"model": model, "sample": sample, "arm": arm.to_json()}
    text = _text(plain | {"max_new_tokens": max_new_tokens})
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
