"""A transformers LVLM and its processor, untouched, as the rest of the package sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlmflow.errors import InputError
from vlmflow.lvlm.as_found import as_found, bare_model
from vlmflow.lvlm.batch import collate, in_groups, pad_id
from vlmflow.lvlm.build_layout import build_layout
from vlmflow.lvlm.chat import Visual, VisualSource, conversation, render, texts
from vlmflow.lvlm.encoding import encode, in_prompt_order, read_videos
from vlmflow.lvlm.families import Family, family_of
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model_parts import (
    decoder_layers,
    image_token_id,
    image_token_ids,
    input_device,
    max_positions,
)
from vlmflow.lvlm.prompt import Prompt, extended
from vlmflow.lvlm.tokens import (
    answer_ids_of,
    answer_text,
    end_ids,
    refuse_special_text,
    token_texts,
    until_end,
)
from vlmflow.lvlm.videos import Frames, Video, frame_groups
from vlmflow.parameters import check_integer


class Truncating(Protocol):
    """What removes image tokens: :class:`vlmflow.truncation.truncation.Truncation`."""

    def __call__(self, model: Any) -> AbstractContextManager[Any]:
        """Truncate a model for the length of a block."""


class LVLM:
    """A large vision-language model: vision encoder, projector and decoder.

    This class prepares prompts and answers them; :class:`vlmflow.LVLM` explains answers as well.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An image-text-to-text model, bare or wrapped by PEFT or ``torch.compile``. Nothing about it
        is changed, now or later.
    processor : transformers.ProcessorMixin
        Its processor, with image processor and tokenizer.
    name : str, optional
        What reports call the model; its own name where left out.

    Raises
    ------
    InputError
        If the processor lacks a tokenizer or an image processor.
    ModelError
        If the model has no image tokens or no decoder layers that can be found.
    """

    def __init__(self, model: Any, processor: Any, *, name: str | None = None) -> None:
        for part in ("tokenizer", "image_processor"):
            if getattr(processor, part, None) is None:
                raise InputError(
                    f"processor={type(processor).__name__} has no {part}: pass the model's whole "
                    "processor, as AutoProcessor.from_pretrained returns it"
                )
        self.model = model = bare_model(model)
        self.processor = processor
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self.image_token_id = image_token_id(model)
        self.image_token_ids = image_token_ids(model)
        self.image_token = str(
            getattr(processor, "image_token", None)
            or processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        )
        self.placeholders = {"image": self.image_token}
        if getattr(processor, "video_token", None):
            self.placeholders["video"] = str(processor.video_token)
        self.decoder_layers: nn.ModuleList = decoder_layers(model)
        self.family: Family = family_of(model.config.model_type)

    def __repr__(self) -> str:
        return f"LVLM({self.name!r}, {type(self.model).__name__}, {self.num_layers} layers)"

    @property
    def num_layers(self) -> int:
        """``L``, the number of decoder layers."""
        return len(self.decoder_layers)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device on which the token embeddings run."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the model's weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def config_summary(self) -> dict[str, Any]:
        """Return what a report says about the model; everything in it fits JSON."""
        config = self.model.config
        text = config.get_text_config()
        vision = getattr(config, "vision_config", None)
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "model_type": config.model_type,
            "family": type(self.family).__name__,
            "layers": self.num_layers,
            "heads": getattr(text, "num_attention_heads", None),
            "key_value_heads": getattr(text, "num_key_value_heads", None),
            "width": getattr(text, "hidden_size", None),
            "image_size": getattr(vision, "image_size", None),
            "patch_size": getattr(vision, "patch_size", None),
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": getattr(text, "_attn_implementation", None),
        }

    def prepare(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        answer: str | Sequence[int] | None = None,
    ) -> Prompt:
        """Make model inputs and layout of a question about pictures, and optionally of its answer.

        Parameters
        ----------
        images : picture or video, or sequence of them, optional
            Paths, PIL pictures, :class:`vlmflow.Video` or :class:`vlmflow.VideoFile`. With a
            conversation: those of its bare image and video parts, in order.
        question : str or sequence of messages
            A question, or chat messages in transformers' own format that end with the user's turn.
        answer : str or sequence of int, optional
            An answer to append, as text or as the very ids the model generated
            (:meth:`generate_ids`). A text is tokenised as the chat template would place it.

        Raises
        ------
        InputError
            For an empty question, special tokens in a text, no picture, a wrong number of pictures,
            a video that the model does not take, an answer that tokenises to nothing, or a prompt
            longer than the model takes.
        """
        messages, shown = conversation(images, question)
        for written in texts(messages):
            refuse_special_text(self.processor.tokenizer, written, "question", self.placeholders)
        visuals = read_videos(shown, self.family, self.model.config.model_type, self.processor)
        text, lead = render(
            self.processor, messages, self.placeholders, bare_lead=self.family.bare_lead
        )
        visuals = in_prompt_order(text, visuals, self.placeholders, self.name)
        if not self.family.pictures_in_prompt:
            text = self._without_placeholder(text, len(visuals))
        inputs = encode(text, visuals, self.processor, self.device, self.dtype, self.name)
        pictures, frames = self._pictures(visuals)
        layout = build_layout(
            inputs,
            tuple(picture.size for picture in pictures),
            frames,
            image_token_ids=self.image_token_ids,
            family=self.family,
            config=self.model.config,
            processor=self.processor,
            name=self.name,
        )
        prompt = Prompt(inputs, layout, pictures, text, lead=lead, visuals=visuals)
        self._require_room(len(layout))
        return prompt if answer is None else self.with_answer(prompt, answer)

    def with_answer(self, prompt: Prompt, answer: str | Sequence[int]) -> Prompt:
        """Append an answer to a prompt; see :meth:`prepare`.

        End and padding tokens at the end of given ids are dropped: they answer nothing.
        """
        tokenizer = self.processor.tokenizer
        if prompt.answer is not None:
            raise InputError("the prompt already carries an answer: start from one without")
        if isinstance(answer, str):
            refuse_special_text(tokenizer, answer, "answer", self.placeholders)
            ids = answer_ids_of(tokenizer, prompt.text, prompt.lead, answer)
            text = answer.strip()
        else:
            ids = self._checked_ids(answer)
            text = answer_text(tokenizer, ids)
        inputs = {
            name: extended(name, tensor, ids, prompt.inputs["input_ids"], self.family.answer_inputs)
            for name, tensor in prompt.inputs.items()
        }
        before = prompt.layout
        layout = replace(
            before,
            segments=np.append(before.segments, [Segment.ANSWER] * len(ids)),
            tokens=before.tokens + token_texts(tokenizer, ids),
        )
        self._require_room(len(layout))
        return replace(prompt, inputs=inputs, layout=layout, answer=text)

    def generate_ids(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        truncation: Truncating | None = None,
    ) -> tuple[int, ...]:
        """Let the model answer a prompt greedily, as token ids.

        Parameters
        ----------
        prompt : Prompt
            A prompt without an answer.
        max_new_tokens : int
            Longest answer, in tokens; never more than the model has positions for.
        truncation : Truncation, optional
            Remove image tokens while answering.

        Returns
        -------
        tuple of int
            Without the end token. Empty if the model ends at once.
        """
        return self.generate_with(prompt, max_new_tokens=max_new_tokens, truncation=truncation)[0]

    def generate_with(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        truncation: Truncating | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[int, ...], Any]:
        """Answer as :meth:`generate_ids` does, with options and output of transformers' own.

        Parameters
        ----------
        prompt, max_new_tokens, truncation
            As for :meth:`generate_ids`.
        options : mapping, optional
            More of what ``model.generate`` takes.

        Returns
        -------
        ids : tuple of int
            The answer without the end token.
        output
            What ``model.generate`` returned with ``return_dict_in_generate=True``.
        """
        ends = end_ids(self.model, self.processor.tokenizer)
        block = nullcontext() if truncation is None else truncation(self.model)
        with as_found(self.model), torch.no_grad(), block:
            output = self.model.generate(
                **prompt.inputs,
                max_new_tokens=self.room_for_answer(prompt, max_new_tokens),
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                **(options or {}),
            )
        return until_end(output.sequences[0, len(prompt.layout) :].tolist(), ends), output

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        truncation: Truncating | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[tuple[int, ...]]:
        """Let the model answer several prompts in one left-padded batch, greedily by default.

        Parameters
        ----------
        prompts : sequence of Prompt
            Prompts without answers.
        max_new_tokens, truncation, options
            As for :meth:`generate_with`.

        Returns
        -------
        list of tuple of int
            Each answer without its end token; empty where the model ends at once.
        """
        rooms = [self.room_for_answer(prompt, max_new_tokens) for prompt in prompts]
        if len(set(rooms)) > 1:  # those near the model's last position are answered apart
            return in_groups(prompts, rooms, lambda group, room: self.generate_batch(
                group, max_new_tokens=room, truncation=truncation, options=options
            ))  # fmt: skip
        tokenizer = self.processor.tokenizer
        inputs, _ = collate(prompts, pad_id(tokenizer))
        settings = {"max_new_tokens": rooms[0], "do_sample": False, "num_beams": 1}
        settings |= {**(options or {}), "return_dict_in_generate": False}
        block = nullcontext() if truncation is None else truncation(self.model)
        with as_found(self.model), torch.no_grad(), block:
            sequences = self.model.generate(**inputs, **settings)
        ends, start = end_ids(self.model, tokenizer), inputs["input_ids"].shape[1]
        return [until_end(ids, ends) for ids in sequences[:, start:].tolist()]

    def room_for_answer(self, prompt: Prompt, max_new_tokens: int) -> int:
        """Return how many tokens an answer may have: never more than the model has positions for.

        Raises
        ------
        InputError
            If none are asked for, or the prompt carries an answer already.
        """
        check_integer("max_new_tokens", max_new_tokens, least=1)
        if prompt.answer is not None:
            raise InputError("the prompt already carries an answer: start from one without")
        limit = max_positions(self.model) or len(prompt.layout) + max_new_tokens
        return max(1, min(max_new_tokens, limit - len(prompt.layout)))

    def generate(
        self,
        images: VisualSource | Sequence[VisualSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int = 64,
        truncation: Truncating | None = None,
        policy: Truncating | None = None,
    ) -> str:
        """Let the model answer greedily, as text.

        Parameters
        ----------
        images, question
            As for :meth:`prepare`.
        max_new_tokens, truncation
            As for :meth:`generate_ids`.
        policy : ExitPolicy or Certificate, optional
            Let the prompt drop its image tokens where a policy allows it.
        """
        if truncation is not None and policy is not None:
            raise InputError("truncation and policy both remove image tokens; give one of them")
        prompt, removing = self.prepare(images, question), truncation or policy
        ids = self.generate_ids(prompt, max_new_tokens=max_new_tokens, truncation=removing)
        return answer_text(self.processor.tokenizer, ids)

    def _without_placeholder(self, text: str, pictures: int) -> str:
        """Take the placeholder out of a prompt before which the processor puts image tokens."""
        if pictures != 1:
            raise InputError(f"{self.name} takes one picture, but the question shows {pictures}")
        return text.replace(self.image_token, "")

    def _pictures(
        self, visuals: Sequence[Visual]
    ) -> tuple[tuple[Image.Image, ...], tuple[Frames | None, ...]]:
        """Return the pictures of a layout, and which of them stand for frames of a video."""
        if not any(isinstance(visual, Video) for visual in visuals):
            return tuple(visual for visual in visuals if not isinstance(visual, Video)), ()
        together = self.family.frames_together(self.processor)
        pictures: list[tuple[Image.Image, Frames | None]] = []
        videos = 0
        for visual in visuals:
            if isinstance(visual, Video):
                pictures += frame_groups(visual, videos, together)
                videos += 1
            else:
                pictures.append((visual, None))
        return tuple(picture for picture, _ in pictures), tuple(frames for _, frames in pictures)

    def _checked_ids(self, answer: Sequence[int]) -> list[int]:
        """Check answer ids given by the caller, and drop what ends them."""
        ids = [int(token) for token in answer]
        ends = end_ids(self.model, self.processor.tokenizer)
        while ids and ids[-1] in ends:
            ids.pop()
        if not ids:
            raise InputError("the answer has no tokens: give at least one id before the end token")
        size = int(self.model.get_input_embeddings().weight.shape[0])
        for token in ids:
            if not 0 <= token < size or token in self.image_token_ids:
                raise InputError(
                    f"the answer holds id {token}, which is not a text token (0..{size - 1})"
                )
        return ids

    def _require_room(self, length: int) -> None:
        limit = max_positions(self.model)
        if limit is not None and length > limit:
            raise InputError(
                f"the prompt has {length} tokens, but {self.name} takes at most {limit}: shorten "
                "the question or pass fewer pictures"
            )
