"""The front of a model: what a user calls on one that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlmflow.errors import InputError
from vlmflow.explanation.explain import explain
from vlmflow.explanation.truncated import check_truncation, with_truncation
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm import model as lvlm_model
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.batch_size import Batch
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.prompt import Prompt
from vlmflow.removal.answer_curve import answered
from vlmflow.removal.curve import RemovalCurve, removal_curve, removal_curves
from vlmflow.removal.knockout import Knockout, knockouts
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_trust import Trust
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.truncation import Truncation
from vlmflow.trust.curves import STEPS
from vlmflow.trust.of_explanation import shown_with, with_trust
from vlmflow.trust.trust import trust


class LVLM(lvlm_model.LVLM):
    """A large vision-language model that can answer, be explained and drop its image tokens.

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
        *,
        target: str | int | range | None = None,
        of: str = "answer",
        signals: Iterable[str | Signal] | None = None,
        scalar: str = "logprob",
        per_token: bool = True,
        max_new_tokens: int = 64,
        low_memory: bool = False,
        gradients: bool = True,
        trust: bool = False,
        truncation: Truncation | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> InformationFlow:
        """Measure which tokens an answer draws on, in every decoder layer.

        One forward pass, and one backward pass per answer token (one in all without
        ``per_token``). The model is left exactly as found, also when something raises.

        Parameters
        ----------
        images, question, answer
            As for :meth:`prepare`. Without an answer the model gives its own (greedy), and the very
            tokens it gave are explained.
        target : str, int or range, optional
            Words that are explained in place of the whole answer, by their text (``"red circle"``:
            the tokens that spell it), the number of a token counted from 1, or a range of such
            numbers. The result's answer is then these words, as the model predicts them, token by
            token, from the picture and all text before them; attention rows are those of the
            positions that predict them, one before each, as for every answer.
        of : str
            The text that these words belong to: ``"answer"``; ``"question"``, the last one asked
            (all of it without a target); or ``"prompt"``, all text after the last picture.
        signals : iterable of str or Signal, optional
            Maps that are wanted: what ``vlmflow signals`` lists, with parameters in brackets where
            they are not the defaults (``"flow_map(layers=8)"``, ``"llava_cam_smooth(copies=8)"``),
            or instances of subclasses of :class:`vlmflow.Signal`. Left out: attention, saliency,
            sensitivity, flow map and LLaVA-CAM, without gradients attention alone. The result is
            shown with the first that has one map for all layers (sensitivity where left out). Some
            run passes beside those that all share (``signal.passes()``).
        scalar : str
            What is explained of each token: ``"logprob"``, ``"logit"`` (the paper's) or
            ``"margin"``, see :func:`vlmflow.flow.targets.target_values`.
        per_token : bool
            Explain each answer token beside the whole answer.
        max_new_tokens : int
            Longest answer to generate.
        low_memory : bool
            Recompute layers in the backward pass instead of keeping their activations.
        gradients : bool
            False: no backward pass: attention, or the signals named that need none; for models
            through which no gradient passes (quantised activations), and where time is short.
        trust : bool
            Also test the map that the result is shown with, as :meth:`trust` does, in 8 steps: 144
            short forward passes, as many at once as memory holds (4 with ``low_memory``). It is
            kept in the result's ``trust``, and the report has a panel of it.
        truncation : Truncation, optional
            Also let the model answer under it, and keep which image tokens each layer saw then
            (``truncated``). What is explained is the untouched model's answer.
        progress : callable, optional
            Called with ``(passes done, passes in all)`` after each pass, and anew with pictures for
            ``trust``.

        Raises
        ------
        InputError
            For a signal, picture, question or answer that cannot be used, an empty answer, or words
            that are not there, there several times, or before a picture.
        ModelError
            If the model cannot be followed, or its logits or gradients are not finite.
        """
        options = ExplainOptions(
            signals=signals,
            target=target,
            of=of,
            scalar=scalar,
            per_token=per_token,
            max_new_tokens=max_new_tokens,
            low_memory=low_memory,
            gradients=gradients,
        )
        if truncation is not None:
            check_truncation(self, truncation)
        flow = explain(self, images, question, answer, options, progress=progress)
        if trust:
            visuals = self.prepare(images, question).visuals
            flow = with_trust(self, flow, visuals, low_memory=low_memory, progress=progress)
        if truncation is not None:
            prompt = self.prepare(images, question)
            flow = with_truncation(self, flow, prompt, truncation, max_new_tokens=max_new_tokens)
        return flow

    def trust(
        self,
        flow: InformationFlow,
        signal: str | None = None,
        layer: int | None = None,
        target: int | str = 0,
        *,
        images: Sequence[VisualSource] | None = None,
        image: int = 0,
        replacement: str = "black",
        steps: int = STEPS,
        batch: Batch = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Trust:
        """Test whether the answer depends on what a map points at, by insertion and deletion.

        The picture appears, and vanishes, in steps of equal area, the map's strongest pixels first;
        the answer is fixed, and its score is the mean probability of its tokens (EAGLE's protocol
        with black and 64 steps, arXiv 2509.22496). Beside it the same for eight maps drawn at
        random. Takes ``2 * steps * 9`` short forward passes.

        Parameters
        ----------
        flow : InformationFlow
            What :meth:`explain` gave for this model.
        signal, layer, target
            The map, as for :meth:`InformationFlow.map`; the target's token is what is scored. Or a
            control in its place: ``"random"``, ``"centre"``, ``"uniform"``, ``"edges"``. Without a
            signal, the map that the result is shown with (sensitivity, where ``explain`` chose).
        images : sequence of pictures and videos, optional
            All that was asked about, where pictures are larger than the copies in ``flow``, or one
            is a video.
        image : int
            Which picture of the result appears and vanishes; of a video's groups of frames all do,
            a pixel in all frames of its group at once.
        replacement : str
            ``"black"``, ``"blur"`` or ``"mean"`` colour, of each frame its own, before the
            processor.
        steps : int
            Steps of a curve.
        batch : int or "auto"
            Pictures to a forward pass; "auto": as many as memory holds, which is estimated from a
            first pass (16 at most). Where memory runs out, it is halved. Scores depend on it in
            their last digits.
        progress : callable, optional
            Called with ``(pictures done, pictures in all)``.

        Raises
        ------
        InputError
            For a map that ranks nothing, pictures that are not the result's, or a setting that is
            impossible.
        """
        check_untruncated(self.model, "insertion and deletion")
        if signal is None:
            if layer is not None:
                raise InputError(f"layer={layer!r} of which signal? Name it, as signal='saliency'")
            signal, layer = shown_with(flow, target)
        return trust(
            self, flow, (signal, layer, target), images=images, image=image,
            replacement=replacement, steps=steps, batch=batch, progress=progress,
        )  # fmt: skip

    def removal_curve(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        answer: str | Sequence[int] | None = None,
        *,
        keep: int | float = 0,
        rank_by: str | Ranking | None = None,
        max_new_tokens: int = 64,
    ) -> RemovalCurve:
        """Measure what removing image tokens from each layer on does to an answer, in one pass.

        Parameters
        ----------
        images, question, answer
            As for :meth:`prepare`. Without an answer the model gives its own.
        keep : int or float
            Image tokens that stay: a count, or a fraction.
        rank_by : str or Ranking, optional
            Which ones, by name or as an object; not an oracle. They are chosen at each layer anew.
        max_new_tokens : int
            Longest answer to generate.

        Raises
        ------
        InputError
            For settings that are impossible, or a model that gives no answer.
        """
        return removal_curve(
            self,
            images,
            question,
            answer,
            keep=keep,
            rank_by=rank_by,
            max_new_tokens=max_new_tokens,
        )

    def attention_knockout(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        answer: str | Sequence[int] | None = None,
        *,
        max_new_tokens: int = 64,
    ) -> Knockout:
        """Cut the answer's rows off from image tokens, at each layer and from it on, in one pass.

        No token is removed: the prompt goes on reading the picture (Geva et al. 2023, arXiv
        2304.14767). What the answer loses passes from the picture to it directly, not by way of
        the question's words, for which :meth:`removal_curve` stands.

        Parameters
        ----------
        images, question, answer
            As for :meth:`prepare`. Without an answer the model gives its own.
        max_new_tokens : int
            Longest answer to generate.

        Raises
        ------
        InputError
            If the model gives no answer.
        ModelError
            For a model with recurrent layers, or whose prompt looks at the answer.
        """
        prompt = answered(self, images, question, answer, max_new_tokens)
        return knockouts(self, [prompt])[0]

    def removal_curves(
        self,
        prompts: Sequence[Prompt],
        *,
        keep: int | float = 0,
        rank_by: str | Ranking | None = None,
    ) -> list[RemovalCurve]:
        """Measure the removal curves of a batch of prompts with answers in one forward pass.

        Parameters
        ----------
        prompts : sequence of Prompt
            Prompts with answers (:meth:`prepare`).
        keep, rank_by
            As for :meth:`removal_curve`.

        Returns
        -------
        list of RemovalCurve
            In the order of the prompts.
        """
        return removal_curves(self, prompts, keep=keep, rank_by=rank_by)
