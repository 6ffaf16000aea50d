"""What a user gets from ``explain``, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import InputError
from vlmflow.explanation import smoothing
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.llava_cam_smooth import LlavaCamSmooth
from vlmflow.lvlm.tokens import token_texts
from vlmflow.result.information_flow import InformationFlow

QUESTION = "What is it?"
ANSWER = "a red circle"


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    return LVLM(*tiny_llava(kv_heads=2))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def flow(vlm, picture) -> InformationFlow:
    return vlm.explain(picture, QUESTION, ANSWER)


def test_result_holds_every_signal_for_every_layer_and_target(flow):
    tokens = len(flow.answer_tokens)
    assert tokens > 1
    assert "".join(flow.answer_tokens).strip() == flow.answer == ANSWER
    assert flow.targets == ("answer", *flow.answer_tokens)
    assert flow.signals == ("attention", "saliency", "sensitivity", "flow_map", "llava_cam")
    for signal in flow.signals:
        layers = 1 if signal in ("sensitivity", "flow_map") else 4
        assert flow.maps[signal].shape == (layers, 1 + tokens, 16)
    assert flow.attention_share.shape == (4, 1 + tokens, 4)
    np.testing.assert_allclose(flow.attention_share.sum(-1), 1, rtol=1e-5)
    assert flow.flag("llava_cam", layer=3) == "undefined"
    assert flow.pixel_map("sensitivity").shape == (60, 80)
    assert flow.question == QUESTION
    assert flow.settings["scalar"] == "logprob"
    assert len(flow.settings["target_values"]) == tokens


def test_the_very_tokens_that_were_generated_are_explained(vlm, picture):
    prompt = vlm.prepare(picture, QUESTION)
    ids = vlm.generate_ids(prompt, max_new_tokens=5)
    flow = vlm.explain(picture, QUESTION, max_new_tokens=5)
    expected = vlm.with_answer(prompt, ids).layout
    assert flow.layout.tokens == expected.tokens
    assert len(flow.answer_tokens) == len(ids) == 5
    again = vlm.explain(picture, QUESTION, ids)
    np.testing.assert_array_equal(again.maps["saliency"], flow.maps["saliency"])
    assert flow.settings["answer_generated"]
    assert not again.settings["answer_generated"]


def test_greedy_tokens_are_the_most_likely_ones(vlm, picture):
    """The margin over the best other token is positive exactly if the right logits are read."""
    flow = vlm.explain(picture, QUESTION, max_new_tokens=6, scalar="margin")
    assert min(flow.settings["target_values"]) > 0


def test_target_values_are_those_of_a_plain_forward(vlm, picture, flow):
    prompt = vlm.prepare(picture, QUESTION, ANSWER)
    with torch.no_grad():
        scores = vlm.model(**prompt.inputs).logits[0].log_softmax(-1)
    positions, ids = prompt.layout.answer_positions, prompt.answer_ids
    expected = [float(scores[p - 1, token]) for p, token in zip(positions, ids, strict=True)]
    np.testing.assert_allclose(flow.settings["target_values"], expected, rtol=1e-4)


def test_whole_answer_only(vlm, picture, flow):
    alone = vlm.explain(picture, QUESTION, ANSWER, per_token=False)
    assert alone.targets == ("answer",)
    np.testing.assert_allclose(
        alone.maps["flow_map"][:, 0], flow.maps["flow_map"][:, 0], rtol=1e-4, atol=1e-6
    )


def test_flow_layers(vlm, picture, flow):
    chosen = vlm.explain(picture, QUESTION, ANSWER, signals=["flow_map(layers=2)"])
    assert chosen.signals == ("flow_map",)
    assert chosen.about["flow_map"].summed == (0, 1)
    expected = flow.maps["saliency"][:2].sum(0)[None]
    np.testing.assert_allclose(chosen.maps["flow_map"], expected, rtol=1e-5, atol=1e-9)


def test_low_memory_changes_no_number(vlm, picture, flow):
    again = vlm.explain(picture, QUESTION, ANSWER, low_memory=True)
    for signal in flow.signals:
        np.testing.assert_array_equal(again.maps[signal], flow.maps[signal])


def test_a_result_without_gradients_is_shown_saved_and_has_no_saliency(
    vlm, picture, flow, tmp_path
):
    plain = vlm.explain(picture, QUESTION, ANSWER, gradients=False)
    np.testing.assert_allclose(plain.maps["attention"], flow.maps["attention"], rtol=1e-4)
    np.testing.assert_allclose(plain.attention_share, flow.attention_share, rtol=1e-4)
    assert plain.targets == flow.targets
    np.testing.assert_allclose(
        plain.settings["target_values"], flow.settings["target_values"], rtol=1e-4
    )
    assert plain.saliency_mean is plain.saliency_sum is None
    with pytest.raises(InputError, match="measured without gradients"):
        plain.saliency_frame()
    again = InformationFlow.load(plain.save(tmp_path))
    assert again.saliency_sum is None
    assert again.segment_frame().equals(plain.segment_frame())
    assert "<svg" in plain._repr_html_() or "<img" in plain._repr_html_()


def test_the_effect_of_the_picture_is_that_of_hiding_its_tokens(vlm, picture, flow, tmp_path):
    prompt = vlm.prepare(picture, QUESTION, ANSWER)
    layout, ids = prompt.layout, prompt.inputs["input_ids"]
    with torch.no_grad():
        own = vlm.model(**prompt.inputs).logits[0].softmax(-1)
        hidden = torch.ones(1, 1, *ids.shape[1:] * 2, dtype=torch.bool).tril()
        hidden[..., layout.image_positions] = False
        hidden[..., range(len(layout)), range(len(layout))] = True
        blind = vlm.model(**{**prompt.inputs, "attention_mask": hidden}).logits[0].softmax(-1)
    rows, tokens = layout.answer_rows, ids[0, layout.answer_positions]
    effect = flow.picture_effect
    np.testing.assert_allclose(effect.with_picture, own[rows, tokens], rtol=1e-4)
    np.testing.assert_allclose(effect.without_picture, blind[rows, tokens], rtol=1e-4)
    likeliest = blind[rows].argmax(-1).tolist()
    assert effect.likeliest == token_texts(vlm.processor.tokenizer, likeliest)
    assert effect.whole()[1] == pytest.approx(float(blind[rows, tokens].prod()), rel=1e-4)
    again = InformationFlow.load(flow.save(tmp_path)).picture_effect
    np.testing.assert_array_equal(again.without_picture, effect.without_picture)
    assert again.likeliest == effect.likeliest


def test_several_pictures(vlm, picture):
    flow = vlm.explain([picture, picture.rotate(90, expand=True)], QUESTION, ANSWER)
    assert flow.maps["llava_cam"].shape[-1] == 32
    assert flow.grid("saliency", layer=0, image=1).shape == (4, 4)
    assert [copy.shape for copy in flow.pictures] == [(60, 80, 3), (80, 60, 3)]


def test_conversation(vlm, picture, flow):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    ]
    conversation = vlm.explain(picture, messages, ANSWER)
    assert conversation.question == QUESTION
    np.testing.assert_array_equal(conversation.maps["saliency"], flow.maps["saliency"])


def test_bfloat16_model(picture, flow):
    rough = LVLM(*tiny_llava(kv_heads=2, dtype=torch.bfloat16)).explain(picture, QUESTION, ANSWER)
    # bf16 weights and activations: 3 significant digits each, some tens of roundings deep.
    largest = flow.attention_share.max()
    assert np.abs(rough.attention_share - flow.attention_share).max() < 0.05 * largest


class TestSmoothing:
    def test_is_the_mean_of_llava_cam_over_the_seeded_noisy_pictures(self, vlm, picture):
        signal = LlavaCamSmooth(copies=5, deviation=0.3, seed=7)
        flow = vlm.explain(picture, QUESTION, ANSWER, signals=["llava_cam", signal])
        prompt = vlm.prepare(picture, QUESTION, ANSWER)
        generator = torch.Generator().manual_seed(7)
        heats = []
        for _ in range(5):
            pixels = prompt.inputs["pixel_values"]
            noise = 0.3 * torch.randn(pixels.shape, generator=generator)
            inputs = {**prompt.inputs, "pixel_values": pixels + noise}
            layouts = [prompt.layout]
            options = ExplainOptions(["llava_cam"])
            measured = measure(vlm.model, vlm.decoder_layers, inputs, layouts, options)[0]
            heats.append(measured.maps["llava_cam"])
        expected = np.mean(heats, axis=0)
        # Batched products round otherwise than single ones; the terms of a heat cancel.
        atol = 1e-4 * expected.max()
        np.testing.assert_allclose(flow.maps["llava_cam_smooth"], expected, rtol=1e-3, atol=atol)
        assert flow.flag("llava_cam_smooth", layer=3) == "undefined"
        assert flow.flag("llava_cam_smooth", layer=0) == "ok"

    def test_is_repeatable_whatever_the_batches(self, vlm, picture, monkeypatch):
        def smooth(seed: int) -> np.ndarray:
            signal = LlavaCamSmooth(copies=3, deviation=0.3, seed=seed)
            result = vlm.explain(picture, QUESTION, ANSWER, signals=[signal])
            assert result.signals == ("llava_cam_smooth",)
            return result.maps["llava_cam_smooth"]

        first = smooth(0)
        np.testing.assert_array_equal(smooth(0), first)
        assert not np.allclose(smooth(1), first, rtol=1e-2)
        monkeypatch.setattr("vlmflow.explanation.explain.COPIES_AT_ONCE", 2)
        np.testing.assert_allclose(smooth(0), first, rtol=1e-3, atol=1e-4 * first.max())

    def test_without_noise_is_llava_cam(self, vlm, picture, flow):
        signal = LlavaCamSmooth(copies=2, deviation=0.0)
        still = vlm.explain(picture, QUESTION, ANSWER, signals=[signal])
        expected = flow.maps["llava_cam"]
        np.testing.assert_allclose(
            still.maps["llava_cam_smooth"], expected, rtol=1e-3, atol=1e-4 * expected.max()
        )


@pytest.mark.parametrize(
    "options", [{}, {"per_token": False}, {"signals": [LlavaCamSmooth(copies=5)]}]
)
def test_progress_counts_every_pass(vlm, picture, monkeypatch, options):
    forwards = []
    handle = vlm.model.register_forward_hook(lambda *_: forwards.append(1))
    seen: list[tuple[int, int]] = []
    answer = "a red circle"
    flow = vlm.explain(
        picture, QUESTION, answer, progress=lambda *pair: seen.append(pair), **options
    )
    handle.remove()
    tokens = len(flow.answer_tokens) if options.get("per_token", True) else 1
    batches = -(-(5 if "signals" in options else 0) // smoothing.COPIES_AT_ONCE)
    passes = (1 + batches) * (1 + tokens) + 1  # and one without the picture
    assert seen == [(done, passes) for done in range(1, passes + 1)]
    assert len(forwards) == 2 + batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ("attention", "gradcam")}, "signal 'gradcam' is unknown; there are attention"),
        ({"signals": ()}, "signals is empty"),
        ({"signals": "flow_map"}, "signals='flow_map' is a text"),
        ({"scalar": "loss"}, "scalar='loss' is none of 'logprob'"),
        ({"signals": ["llava_cam_smooth(copies=0)"]}, "copies=0"),
        ({"signals": ["llava_cam_smooth(deviation=-0.1)"]}, "deviation=-0.1"),
        ({"signals": ["llava_cam_smooth(deviation=nan)"]}, "deviation=nan"),
        (
            {"signals": ["llava_cam_smooth(depth=3)"]},
            "has no parameter 'depth'; its parameters are",
        ),
        ({"signals": ["flow_map(layers=5)"]}, "flow_map(layers=5), but the model has 4"),
        ({"signals": ["flow_map(layers=0)"]}, "flow_map(layers=0)"),
        ({"signals": ["llava_cam(hook=mlp.norm)"]}, "hook='mlp.norm'"),
        ({"signals": ["flow_map(3)"]}, "'3' in 'flow_map(3)' is not a parameter"),
        ({"answer": ""}, "answer"),
        ({"answer": "  "}, "answer"),
        ({"answer": []}, "answer"),
        ({"max_new_tokens": 0, "answer": None}, "max_new_tokens=0"),
    ],
)
def test_options_that_cannot_be_used_are_named(vlm, picture, options, message):
    with pytest.raises(InputError) as caught:
        vlm.explain(picture, QUESTION, **{"answer": ANSWER, **options})
    assert message in str(caught.value)


def test_model_that_answers_nothing(vlm, picture, monkeypatch):
    monkeypatch.setattr(LVLM, "generate_batch", lambda *_args, **_options: [()])
    with pytest.raises(InputError, match=r"nothing to explain: pass answer="):
        vlm.explain(picture, QUESTION)


def test_a_map_that_is_not_defined_is_nan_and_not_0():
    """Nothing after the last layer reads image positions: their gradient there means nothing."""
    flow = LVLM(*tiny_llava(layers=3)).explain(Image.new("RGB", (20, 20)), "What?", "1 2")
    assert [flow.flag("llava_cam", layer) == "undefined" for layer in range(3)] == [False] * 2 + [
        True
    ]
    assert np.isnan(flow.map("llava_cam", 2)).all()
    assert np.isnan(flow.grid("llava_cam", 2)).all()
    assert np.isnan(flow.pixel_map("llava_cam", 2)).all()
    assert np.isfinite(flow.map("llava_cam", 1)).all()
    assert np.isfinite(flow.pixel_map("saliency", 2)).all()
