"""Samples as stores keep them, and hashes of everything else that can change a result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from vlmflow.lvlm.identity import probed
from vlmflow.lvlm.visual_bytes import visual_bytes
from vlmflow.tasks.base import TaskSample
from vlmflow.version import __version__

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


@dataclass(frozen=True)
class StoredSample:
    """A sample without its pictures."""

    id: str  # Hash of its content, pictures included
    # As in :class:`vlmflow.tasks.base.TaskSample`; ``refs`` and ``choices`` as JSON lists
    split: str
    key: str
    question: str
    refs: str
    choices: str
    part: str
    cluster: str


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
    digest.update(as_text(summary).replace(str(vlm.model.config.name_or_path), "").encode())
    for name, weight in vlm.model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + probed(weight))
    return digest.hexdigest()


def stored_sample(task: str, split: str, sample: TaskSample) -> StoredSample:
    """Hash a sample, its pictures included, and take along what scoring needs.

    A picture that cannot be read is hashed by its name.
    """
    texts = [task, split, sample.key, sample.question, sample.references, sample.choices]
    digest = hashlib.sha256(as_text(texts).encode())
    for picture in sample.pictures:
        try:
            digest.update(visual_bytes(picture))
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


def failure_reason(error: Exception) -> str:
    """Say in one line why a sample failed."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:500]


def as_text(value: Any) -> str:
    """Write a value as JSON with its keys in order, to be hashed."""
    return json.dumps(value, sort_keys=True, default=str)
