"""The front: a model with everything that can be asked of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlmflow.explanation.explain import explain
from vlmflow.lvlm import model as ground_floor
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.loading import open_model
from vlmflow.removal.curve import RemovalCurve, removal_curve
from vlmflow.result.information_flow import InformationFlow


class LVLM(ground_floor.LVLM):
    """A large vision-language model that can answer, be explained and lose its image tokens.

    Parameters
    ----------
    model, processor, name
        As for :class:`vlmflow.lvlm.model.LVLM`, with its errors.
    """

    def explain(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        answer: str | Sequence[int] | None = None,
        **options: Any,
    ) -> InformationFlow:
        """Measure which tokens an answer draws on: :func:`vlmflow.explanation.explain.explain`."""
        return explain(self, images, question, answer, **options)

    def removal_curve(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        answer: str | Sequence[int] | None = None,
        **options: Any,
    ) -> RemovalCurve:
        """Measure what removing image tokens at each layer does to an answer.

        See :func:`vlmflow.removal.curve.removal_curve`.
        """
        return removal_curve(self, images, question, answer, **options)


def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> LVLM:
    """Open an LVLM and its processor.

    A bundled name or a local directory is opened without any network access.

    Parameters
    ----------
    name : str or path
        Name of a bundled model (``"scenes-llava"``), a local directory that ``from_pretrained``
        can open, or a hub id ``"owner/model"``. A bundled name wins over a directory of that name;
        write ``"./name"`` for the directory.
    device : str or torch.device, optional
        Where the model goes; a GPU if there is one, else the CPU.
    dtype : str or torch.dtype, optional
        ``"float32"``, ``torch.bfloat16``, ...; what the weights were saved in where left out.
    revision : str, optional
        Branch, tag or commit of a hub model.
    device_map : str or dict, optional
        ``"auto"`` or a map spreads the model over several devices (needs ``accelerate``); instead
        of ``device``.
    attn_implementation : str, optional
        ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...; transformers' choice where left out.
    trust_remote_code : bool
        Run Python code that the model's author ships with the weights. Only for authors you trust.

    Returns
    -------
    LVLM
        In evaluation mode.

    Raises
    ------
    ModelError
        If there is no such model or directory, it cannot be opened, or it is not an
        image-text-to-text model.
    InputError
        If the device, dtype or their combination cannot be used.
    """
    model, processor = open_model(
        name,
        device=device,
        dtype=dtype,
        revision=revision,
        device_map=device_map,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    return LVLM(model, processor, name=str(name))
