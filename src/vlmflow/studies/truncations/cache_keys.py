"""Hashes of everything that can change a result, so that nothing else has to be run again."""

from __future__ import annotations

import hashlib

from vlmflow.studies.samples import as_text
from vlmflow.studies.truncations.arms import Arm


def result_id(model: str, sample: str, arm: Arm, max_new_tokens: int) -> str:
    """Hash what a result depends on; the arm's name is not part of it.

    ``model`` is a :func:`~vlmflow.studies.samples.model_identity`, ``sample`` the id of a
    :class:`~vlmflow.studies.samples.StoredSample`.
    """
    plain = {"model": model, "sample": sample, "arm": arm.to_json()}
    text = as_text(plain | {"max_new_tokens": max_new_tokens})
    return hashlib.sha256(text.encode()).hexdigest()
