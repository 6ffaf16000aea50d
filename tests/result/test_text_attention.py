"""What the words of question and answer attend to: measured, bounded, saved, and cut into items."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.synthetic import synthetic_flow
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, Signal
from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.reports.explain import word_data as page_words
from vlmflow.reports.explain.word_items import shares_of_items, word_items
from vlmflow.result import storage
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.text_attention import TextAttention, by_nearness, kept_rows

QUESTION, ANSWER = "What colour is the circle?", "a red circle"


def pictures(count):
    values = np.random.default_rng(0).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in values]


@pytest.mark.parametrize("options", [{}, {"gradients": False}, {"low_memory": True}])
def test_question_words_attend_as_in_an_eager_model(options):
    """Every text row of an explained answer, two pictures, against ``output_attentions``."""
    flow = LVLM(*tiny_llava(kv_heads=2)).explain(pictures(2), QUESTION, ANSWER, **options)
    eager = LVLM(*tiny_llava(kv_heads=2, attn_implementation="eager"))
    prompt = eager.prepare(pictures(2), QUESTION, ANSWER)
    with torch.no_grad():
        layers = eager.model(**prompt.inputs, output_attentions=True).attentions
    tokens = prompt.layout.tokens
    words = [p for p in flow.text_attention.rows if "colour" in tokens[p] or "circle" in tokens[p]]
    assert len(words) >= 2
    for position in flow.text_attention.rows:
        expected = np.stack([matrix[0, :, position].mean(0).numpy() for matrix in layers])
        # Half precision rounds by 1 in 2048.
        np.testing.assert_allclose(flow.text_attention.of(position), expected, 6e-4, 1e-7)
    answer = flow.text_attention.of(int(flow.layout.answer_rows[1]))
    at_image = answer[:, flow.layout.image_positions]
    np.testing.assert_allclose(at_image, flow.maps["attention"][:, 2], 6e-4, 1e-7)


@dataclasses.dataclass(frozen=True)
class MaxAttention(Signal):
    """The strongest look of any text row."""

    reads = "attention"
    rows = "text"

    def of_layer(self, rows):
        return rows.attention.amax(0)


def test_maps_do_not_change_with_the_rows_that_are_kept():
    vlm = LVLM(*tiny_llava(kv_heads=2))
    prompt = vlm.prepare(pictures(1), QUESTION, ANSWER)
    for gradients in (True, False):
        own = ["saliency"] if gradients else []
        options = ExplainOptions(["attention", MaxAttention(), *own], gradients=gradients)
        plain, kept = (
            measure(
                vlm.model, vlm.decoder_layers, prompt.inputs, [prompt.layout], options,
                kept_rows=rows,
            )[0]
            for rows in (None, [prompt.layout.text_rows[1::2]])
        )  # fmt: skip
        assert plain.kept_attention.shape[1] == 0
        assert kept.kept_attention.shape[1] == len(prompt.layout.text_rows[1::2])
        # Fewer or more rows at once: products round otherwise.
        np.testing.assert_allclose(plain.attention_share, kept.attention_share, 1e-5)
        for signal in plain.maps:
            np.testing.assert_allclose(plain.maps[signal], kept.maps[signal], 1e-5, 1e-9)


def test_a_long_prompt_keeps_the_words_next_to_the_answer_within_the_bound():
    flow = synthetic_flow(layers=4, grid=(2, 2))
    layout, limit = flow.layout, 2 * 4 * len(flow.layout) * 5 + 7
    rows = kept_rows(layout, 4, limit)
    first, last = layout.answer_rows, layout.user_rows[-2:]
    assert sorted([*first[:3], *last]) == rows.tolist()
    assert 2 * 4 * len(rows) * len(layout) <= limit
    assert kept_rows(layout, 4, 10).size == 0
    assert sorted(by_nearness(layout)) == layout.text_rows.tolist()


def test_a_result_of_before_opens_without_what_words_read(tmp_path):
    """As vlmflow wrote it before rows of attention were kept: the same files, less two arrays."""
    flow = synthetic_flow(layers=3, grid=(2, 3))
    old = dataclasses.replace(flow, text_attention=None)
    assert InformationFlow.load(old.save(tmp_path / "old")).text_attention is None
    body, arrays = storage.read_pair(flow.save(tmp_path / "new"))
    missing = {name: array for name, array in arrays.items() if name != "text_attention.values"}
    storage.write_pair(tmp_path / "half", body, missing)
    with pytest.raises(InputError, match=r"'text_attention.values' is missing"):
        InformationFlow.load(tmp_path / "half")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, values: (rows[::-1], values), "sorted positions"),
        (lambda rows, values: (rows - rows.min(), values), "sorted positions"),
        (lambda rows, values: (rows, values[:, 1:]), r"must be \(3, .*\) float16"),
        (lambda rows, values: (rows, values.astype(np.float32)), "not .* float32"),
        (lambda rows, values: (rows, -values), "0 or more"),
        (lambda rows, values: (rows, values * np.float16(np.nan)), "0 or more"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change, message):
    flow = synthetic_flow(layers=3, grid=(2, 3))
    rows, values = change(flow.text_attention.rows, flow.text_attention.values)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(flow, text_attention=TextAttention(rows, values))


def test_a_position_that_was_not_kept_is_named():
    flow = synthetic_flow(layers=3, grid=(2, 3))
    with pytest.raises(InputError, match=r"position=2, but attention was kept of positions 10, 11"):
        flow.text_attention.of(2)


# --------------------------------------------------------------------------- on a page


def grid(image, positions):
    boxes = np.zeros((1, len(positions), 4))
    boxes[..., 2:] = 1
    return ImageGrid(image, np.array([positions]), boxes)


def test_a_sequence_is_cut_into_words_and_pieces():
    """Padding, tiles with marks between them, two pictures, words without a row."""
    p, s, i, u, a = Segment.PAD, Segment.SYSTEM, Segment.IMAGE, Segment.USER, Segment.ANSWER
    segments = [p, p, s, s, i, i, u, i, u, u, i, i, u, u, a, a]
    # positions 4, 5, (mark 6), 7: picture 0; 8, 9: words; 10, 11: picture 1; 12, 13: words
    grids = (grid(0, [4, 5]), grid(0, [7]), grid(1, [10, 11]))
    layout = TokenLayout(
        np.array(segments, np.int8), tuple(map(str, range(16))), ((1, 1), (1, 1)), grids
    )
    items = word_items(layout, np.array([9, 12, 13]))
    assert [(item.kind, item.positions.tolist(), item.reader, item.image) for item in items] == [
        ("before", [2, 3], -1, -1),
        ("picture", [4, 5, 7], -1, 0),
        ("marks", [6], -1, 0),
        ("earlier", [8], -1, -1),
        ("word", [9], 9, -1),
        ("picture", [10, 11], -1, 1),
        ("word", [12], 12, -1),
        ("word", [13], 13, -1),
        ("answer", [14], 13, -1),
        ("later", [15], -1, -1),
    ]
    values = np.arange(16, dtype=np.float16)[None, None]
    shares = shares_of_items(items, values)[0, 0]
    assert shares.tolist() == [5, 16, 6, 8, 9, 21, 12, 13, 14, 15]


def test_a_page_has_room_for_the_nearest_words_and_says_how_many_are_left_out(monkeypatch):
    flow = synthetic_flow(layers=4, grid=(8, 8))
    everything = page_words.word_data(flow, 10**7)
    assert everything["unmapped"] == everything["unshown"] == 0
    assert everything["bits"] == 16
    block = len(everything["maps"][0]["bytes"]) + 100
    unmapped = {name: everything[name] for name in ("items", "shares", "unshown")}
    shares = len(json.dumps(unmapped, ensure_ascii=False))
    half = page_words.word_data(flow, shares + 11 * block)
    assert (half["bits"], half["unmapped"]) == (8, 0)
    little = page_words.word_data(flow, shares + 2 * block)
    assert little["bits"] == 4
    assert little["unmapped"] > 0
    mapped = [place for place, block in enumerate(little["maps"]) if block is not None]
    assert len(mapped) == len(little["maps"]) - little["unmapped"]
    nearest = by_nearness(flow.layout)[: len(mapped)]
    assert sorted(nearest) == flow.layout.text_rows[mapped].tolist()
    monkeypatch.setattr(page_words, "MOST_SHARES", 4 * 9**2)
    few = page_words.word_data(flow, 10**7)
    assert len(few["maps"]) == 5
    assert few["unshown"] == flow.layout.text_rows.size - 5
    assert {item["kind"] for item in few["items"]} >= {"earlier", "word", "answer"}
