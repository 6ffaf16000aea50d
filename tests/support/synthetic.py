"""A made-up InformationFlow of any size that looks like a measured one: no model, no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.text_attention import TextAttention, kept_rows

HOSTILE = "<script>alert('$x_1$')</script>\u202e\x00\x1b[31m</title>\"&'{{7*7}}%\U0001f9ff\ud800\n"
"""Mark-up, mathtext, control characters, a lone surrogate, a template, a bidi override."""

OBJECT = (0.30, 0.45, 0.55, 0.75)
"""Where the asked-for object lies, as shares of the picture's width and height."""


def object_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The asked-for object's box in the original picture's pixels."""
    (width, height), (x0, y0, x1, y1) = size, OBJECT
    return x0 * width, y0 * height, x1 * width, y1 * height


def synthetic_flow(
    *,
    layers: int = 12,
    grid: tuple[int, int] = (12, 12),
    answer_tokens: tuple[str, ...] = ("The", " circle", " is", " red"),
    sizes: tuple[tuple[int, int], ...] = ((320, 240),),
    per_token: bool = True,
    without_attention: tuple[int, ...] = (),
    hostile: bool = False,
    seed: int = 0,
) -> InformationFlow:
    """Build a result with the shape of the paper's findings.

    Image share falls after the first layers, maps gather on one object in shallow layers and
    scatter in deep ones, LLaVA-CAM is empty before and undefined in the last layer.

    Parameters
    ----------
    grid : (rows, cols)
        Image tokens per picture.
    sizes : (width, height) per picture
        The processor is taken to crop the central square, so wide and tall pictures have
        unseen margins.
    without_attention : tuple of int
        Layers that have no attention (as in hybrid models).
    hostile : bool
        Fill every text with :data:`HOSTILE`.
    """
    generator = np.random.default_rng(seed)
    extra = HOSTILE if hostile else ""
    answer_tokens = tuple(token + extra for token in answer_tokens)
    targets = ("answer", *answer_tokens) if per_token else ("answer",)
    layout = _layout(grid, sizes, answer_tokens, extra)
    shape = (layers, len(targets))
    tokens = layout.image_positions.size

    depth = np.linspace(0, 1, layers)[:, None]
    image = 0.03 + 0.5 * np.exp(-6 * depth) + 0.02 * (depth > 0.95)
    answer = 0.08 * depth
    user = 0.15 + 0.2 * depth
    share = np.stack([1 - image - user - answer, image, user, answer], axis=2)
    share = share * generator.uniform(0.8, 1.2, (*shape, 4))
    share /= share.sum(axis=2, keepdims=True)
    if per_token:
        share[:, 0] = share[:, 1:].mean(axis=1)
    saliency = share[:, :, None, :] * generator.uniform(0.2, 1.0, (*shape, 2, 4)) * 1e-3
    saliency[:, :, 0, 3] = 0  # nothing flows from the answer back into the user's text

    near = np.concatenate([_near_object(part, sizes[part.image]) for part in layout.grids])
    gathered = np.exp(-6 * depth)[:, :, None] * near
    noise = generator.gamma(0.3, size=(*shape, tokens)) / tokens
    maps = {
        "attention": image[:, :, None] * (gathered / near.sum() + 0.2 * noise),
        "saliency": 1e-3 * (gathered / near.sum() + 0.1 * noise),
        "llava_cam": np.maximum(1e-2 * (gathered - 0.15 + noise * tokens * 0.1), 0),
    }
    flags = {signal: np.zeros(shape, np.int8) for signal in maps}
    flags["llava_cam"][-1] = 1
    maps["llava_cam"][-1] = 0
    if layers > 2:
        flags["llava_cam"][-2] = 2
        maps["llava_cam"][-2] = 0
    for layer in without_attention:
        share[layer] = saliency[layer] = 0
        for signal in ("attention", "saliency"):
            maps[signal][layer] = 0
            flags[signal][layer] = 3
    maps["flow_map"] = maps["saliency"].sum(axis=0, keepdims=True)
    flags["flow_map"] = np.zeros((1, len(targets)), np.int8)

    question = "What colour is the round thing?" + extra
    return InformationFlow(
        model="scenes-llava" + extra,
        question=question,
        prompt="A chat.\nUSER: " + "<image>" * len(sizes) + f"\n{question} ASSISTANT:",
        answer="".join(answer_tokens).strip(),
        answer_tokens=answer_tokens,
        targets=targets,
        layout=layout,
        pictures=tuple(_picture(size, index) for index, size in enumerate(sizes)),
        attention_share=share,
        saliency_mean=saliency,
        saliency_sum=saliency * tokens,
        maps=maps,
        flags=flags,
        settings={
            "scalar": "logprob",
            "smooth": 0,
            "noise": 0.1,
            "seed": seed,
            "flow_layers": None,
            "command": "vlmflow explain picture.png 'What colour?'" + extra,
        },
        versions={"vlmflow": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        text_attention=_text_attention(layout, layers, without_attention, seed),
    )


def _text_attention(
    layout: TokenLayout, layers: int, without_attention: tuple[int, ...], seed: int
) -> TextAttention:
    """Rows of question and answer: random, causal, and summing to 1."""
    rows = kept_rows(layout, layers)
    values = np.random.default_rng(seed + 1).gamma(0.3, size=(layers, len(rows), len(layout)))
    values *= np.arange(len(layout)) <= rows[:, None]
    values /= values.sum(-1, keepdims=True)
    values[list(without_attention)] = 0
    return TextAttention(rows, values.astype(np.float16))


def _layout(
    grid: tuple[int, int],
    sizes: tuple[tuple[int, int], ...],
    answer_tokens: tuple[str, ...],
    extra: str,
) -> TokenLayout:
    rows, cols = grid
    segments = [Segment.SYSTEM] * 4
    tokens = ["<s>", "A", " chat", ".\nUSER: "]
    grids = []
    for index, (width, height) in enumerate(sizes):
        positions = len(segments) + np.arange(rows * cols).reshape(rows, cols)
        segments += [Segment.IMAGE] * (rows * cols)
        tokens += ["<image>"] * (rows * cols)
        side = min(width, height)
        x = (width - side) / 2 + side * np.arange(cols + 1) / cols
        y = (height - side) / 2 + side * np.arange(rows + 1) / rows
        boxes = np.empty((rows, cols, 4))
        boxes[..., 0], boxes[..., 2] = x[:-1], x[1:]
        boxes[..., 1], boxes[..., 3] = y[:-1, None], y[1:, None]
        grids.append(ImageGrid(index, positions, boxes))
        segments.append(Segment.USER)
        tokens.append("\n")
    question = ["What", " colour", " is", " the", " round", " thing", "?", " ASSISTANT", ":"]
    segments += [Segment.USER] * len(question) + [Segment.ANSWER] * len(answer_tokens)
    tokens += [word + extra for word in question] + list(answer_tokens)
    return TokenLayout(np.array(segments), tuple(tokens), sizes, tuple(grids))


def _near_object(grid: ImageGrid, size: tuple[int, int]) -> np.ndarray:
    x0, y0, x1, y1 = object_box(size)
    centres = (grid.boxes[..., :2] + grid.boxes[..., 2:]) / 2
    away = (centres - [(x0 + x1) / 2, (y0 + y1) / 2]) / [(x1 - x0) / 2, (y1 - y0) / 2]
    return np.exp(-(away**2).sum(axis=-1)).ravel()


def _picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """A display copy: one red circle in the object's box among other shapes."""
    scale = min(1.0, 1024 / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    picture = Image.new("RGB", (width, height), (226, 224, 214))
    draw = ImageDraw.Draw(picture)
    generator = np.random.default_rng(seed)
    for colour in ("royalblue", "seagreen", "goldenrod"):
        x, y = generator.uniform(0.05, 0.8, 2) * (width, height)
        draw.rectangle((x, y, x + width * 0.15, y + height * 0.15), fill=colour)
    draw.ellipse(object_box((width, height)), fill="firebrick")
    return np.asarray(picture)
