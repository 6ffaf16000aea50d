"""Every signal against the slow way: eager attention, all matrices kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.support.reference import Reference, measure_slowly
from tests.support.tiny import tiny_llava
from vlmflow.flow import measure as measuring
from vlmflow.flow import sample_record
from vlmflow.flow.measure import EMPTY, OK, UNDEFINED, Measurement, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.llava_cam import LlavaCam
from vlmflow.flow.signals.llava_cam_code import LlavaCamCode
from vlmflow.flow.signals.signal import POST_ATTENTION_NORM
from vlmflow.lvlm.batch import collate
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt

SIGNALS = ("attention", "saliency", "llava_cam")

# float32, both sides: 1e-4 of the layer's largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4

MODELS = {
    "plain": {},
    "grouped heads": {"kv_heads": 2, "layers": 6},
    "one key head": {"kv_heads": 1},
    "sliding window": {"text_model": "mistral", "text_config": {"sliding_window": 9}},
    "another tower": {"tower": "siglip", "kv_heads": 2},
    "biases": {"text_model": "qwen2", "kv_heads": 2},
}


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def lvlm(**options) -> LVLM:
    return LVLM(*tiny_llava(**options))


def fast(vlm: LVLM, prompt: Prompt, **options) -> Measurement:
    chosen = {"signals": SIGNALS, **options}
    layouts = [prompt.layout]
    chosen = ExplainOptions(**chosen)
    return measure(vlm.model, vlm.decoder_layers, prompt.inputs, layouts, chosen)[0]


def slow(prompt: Prompt, target: str = "logprob", hook: str | None = None, **options):
    vlm = lvlm(**options, attn_implementation="eager")
    return measure_slowly(
        vlm.model,
        vlm.decoder_layers,
        prompt.inputs,
        prompt.layout,
        target,
        hook or "post_attention_layernorm",
    )


def assert_close(
    measured: np.ndarray,
    expected: np.ndarray,
    tolerance: float,
    what: str,
    scale: np.ndarray | None = None,
) -> None:
    """Compare with the largest value of each layer (the first axis), or a scale per layer."""
    assert measured.shape == expected.shape, what
    axes = tuple(range(1, expected.ndim))
    largest = np.abs(expected).max(axes) if scale is None else scale
    largest = np.expand_dims(largest, axes)
    worst = (np.abs(measured - expected) / np.maximum(largest, 1e-30)).max()
    assert worst <= tolerance, f"{what}: off by {worst:.2e} of the layer's largest value"


def assert_agrees(measured: Measurement, truth: Reference, tolerance: float) -> None:
    tokens = len(truth.layout.answer_positions)
    shares = [truth.share(token) for token in range(tokens)]
    maps = [truth.attention_map(token) for token in range(tokens)]
    shares, maps = [np.mean(shares, 0), *shares], [np.mean(maps, 0), *maps]
    for number in range(1 + tokens):
        at = f"target {number}"
        assert_close(measured.attention_share[:, number], shares[number], tolerance, f"share, {at}")
        assert_close(measured.maps["attention"][:, number], maps[number], tolerance, f"map, {at}")
        mean, total = truth.segment_saliency(number)
        assert_close(measured.saliency_mean[:, number], mean, tolerance, f"S mean, {at}")
        assert_close(measured.saliency_sum[:, number], total, tolerance, f"S sum, {at}")
        expected = truth.saliency_map(number)
        assert_close(measured.maps["saliency"][:, number], expected, tolerance, f"saliency, {at}")
        # The terms of its sum cancel, so it is their size that the rounding goes with.
        cam, terms = truth.llava_cam(number), truth.llava_cam_terms(number)
        assert_close(measured.maps["llava_cam"][:, number], cam, tolerance, f"CAM, {at}", terms)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_agrees_with_eager_attention_over_all_layers(options, seed):
    vlm = lvlm(seed=seed, **options)
    prompt = vlm.prepare(picture(seed), "What colour is the circle?", "a red circle")
    assert_agrees(fast(vlm, prompt), slow(prompt, seed=seed, **options), FLOAT32)


@pytest.mark.parametrize("target", ["logprob", "logit", "margin"])
def test_agrees_for_every_target(target):
    vlm = lvlm(kv_heads=2)
    prompt = vlm.prepare(picture(), "Which number?", "7 3")
    measured = fast(vlm, prompt, scalar=target)
    assert_agrees(measured, slow(prompt, target, kv_heads=2), FLOAT32)


def test_agrees_with_several_pictures():
    vlm = lvlm()
    prompt = vlm.prepare([picture(1), picture(2)], "Which is red?", "yes")
    assert len(prompt.layout.image_positions) == 32
    assert_agrees(fast(vlm, prompt), slow(prompt), FLOAT32)


@pytest.mark.parametrize(
    "options", [{}, {"text_model": "mistral", "text_config": {"sliding_window": 9}}]
)
def test_padded_batch_equals_one_by_one(options):
    """Left padding, prompts of different lengths, answers of different lengths, two pictures."""
    vlm = lvlm(kv_heads=2, **options)
    prompts = [
        vlm.prepare(picture(1), "What is it?", "a red circle"),
        vlm.prepare(picture(2), "Is there a blue square in the picture?", "no"),
        vlm.prepare([picture(3), picture(4)], "Which number is printed?", "7 3"),
    ]
    inputs, layouts = collate(prompts, vlm.processor.tokenizer.pad_token_id)
    batch = measure(vlm.model, vlm.decoder_layers, inputs, layouts, ExplainOptions(SIGNALS))
    for prompt, measured in zip(prompts, batch, strict=True):
        assert_agrees(measured, slow(prompt, kv_heads=2, **options), FLOAT32)


def test_low_memory_gives_the_same_numbers():
    vlm = lvlm(kv_heads=2)
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    measured = fast(vlm, prompt, low_memory=True)
    assert_agrees(measured, slow(prompt, kv_heads=2), FLOAT32)


def test_a_model_with_eager_attention_is_measured_too():
    vlm = lvlm(attn_implementation="eager")
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    assert_agrees(fast(vlm, prompt), slow(prompt), FLOAT32)


@pytest.mark.parametrize(
    ("options", "text_config"),
    [
        # Softcapped scores, norms around both blocks, alternating windows.
        (
            "gemma2",
            {"sliding_window": 9, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        ),
        # A sink score per head in every softmax; experts.
        ("gpt_oss", {"sliding_window": 9, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_eager_only_kinds_of_attention(options, text_config):
    options = {"text_model": options, "text_config": text_config}
    vlm = lvlm(**options, attn_implementation="eager")
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    assert_agrees(fast(vlm, prompt), slow(prompt, **options), FLOAT32)


def test_image_tokens_that_see_each_other_both_ways():
    """Gemma 3: a bidirectional block over the image, windows in five layers of six."""
    config = Gemma3Config(
        text_config={
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 9,
            "initializer_range": 0.1,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=99,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 90, (1, 24), generator=generator)
    ids[0, 4:8] = 99
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": (ids == 99).long(),
        "pixel_values": torch.randn(1, 3, 56, 56, generator=generator),
    }
    segments = np.repeat(np.array([0, 1, 2, 3], dtype=np.int8), [4, 4, 13, 3])
    layout = TokenLayout(segments, ("",) * 24, ())
    models = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        models.append(
            Gemma3ForConditionalGeneration._from_config(
                config, attn_implementation=attention
            ).eval()
        )
    layers = [model.model.language_model.layers for model in models]
    measured = measure(models[0], layers[0], inputs, [layout], ExplainOptions(SIGNALS))[0]
    hook = "post_attention_layernorm"
    truth = measure_slowly(models[1], layers[1], inputs, layout, "logprob", hook)
    assert truth.attention[5, :, 4, 7].min() > 0  # an image token looks at a later one
    assert_agrees(measured, truth, FLOAT32)


def test_bfloat16_agrees_within_its_own_rounding():
    """In bf16 each value carries 3 significant digits (2^-8 = 0.4 % per rounding).

    Eager rounds A, dA and every product in between to bf16; here A and dA come from bf16 q, k, v
    and dO in float32. Both stand a few roundings per layer off the float32 truth, so the yardstick
    is that truth (the same bf16 weights run in float32): the error is at most 10 % of a layer's
    largest value (25 roundings; 1 to 2 % was seen), and at most three times eager's own, which
    differs by as much from one set of weights to the next.
    """
    options = {"kv_heads": 2, "dtype": torch.bfloat16}
    vlm = lvlm(**options)
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    exact = lvlm(**options, attn_implementation="eager")
    exact.model.float()
    inputs = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in prompt.inputs.items()
    }
    truth = measure_slowly(
        exact.model,
        exact.decoder_layers,
        inputs,
        prompt.layout,
        "logprob",
        "post_attention_layernorm",
    )
    measured, eager = fast(vlm, prompt), slow(prompt, **options)
    assert_agrees(measured, truth, 0.1)

    def error(maps: np.ndarray) -> float:
        expected = truth.saliency_map(0)
        return float((np.abs(maps - expected).max(1) / expected.max(1)).max())

    assert error(measured.maps["saliency"][:, 0]) <= 3 * error(eager.saliency_map(0))


def test_whole_answer_alone_equals_the_sum_over_its_tokens():
    vlm = lvlm()
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    signals = (*SIGNALS, "llava_cam_code")
    alone = fast(vlm, prompt, per_token=False, signals=signals)
    summed = fast(vlm, prompt, signals=signals)
    assert alone.maps["saliency"].shape[1] == 1
    for name in signals:
        assert_close(alone.maps[name][:, 0], summed.maps[name][:, 0], FLOAT32, name)
    assert_close(alone.saliency_sum[:, 0], summed.saliency_sum[:, 0], FLOAT32, "S")


@pytest.mark.parametrize("held", ["none", "one_layer", "all"])
def test_attention_held_between_tokens_changes_nothing(held, monkeypatch):
    """Not a bit: what is held is what would be rebuilt."""
    vlm = lvlm(kv_heads=2)
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    wanted = fast(vlm, prompt, low_memory=True)  # which holds none
    rows, heads = len(prompt.layout.text_rows), vlm.model.config.text_config.num_attention_heads
    layer = 4 * heads * rows * len(prompt.layout)
    built = []
    whole = sample_record.all_attention_rows
    monkeypatch.setattr(
        sample_record, "all_attention_rows", lambda *given: built.append(1) or whole(*given)
    )
    fits = {"none": layer - 1, "one_layer": layer, "all": vlm.num_layers * layer}[held]
    monkeypatch.setattr(measuring, "HELD_BYTES", fits)
    measured = fast(vlm, prompt)
    assert len(built) == {"none": 0, "one_layer": 1, "all": vlm.num_layers}[held]
    for name in SIGNALS:
        np.testing.assert_array_equal(measured.maps[name], wanted.maps[name])
    np.testing.assert_array_equal(measured.saliency_sum, wanted.saliency_sum)
    np.testing.assert_array_equal(measured.attention_share, wanted.attention_share)


@pytest.mark.parametrize(
    "hook", ["layer_input", "layer_output", "input_layernorm", "self_attn.v_proj"]
)
def test_other_hook_points(hook):
    vlm = lvlm()
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    measured = fast(vlm, prompt, signals=[LlavaCam(hook)]).maps["llava_cam"]
    # The input of a layer is what its input norm is given; the output, the next one's input.
    truth = slow(prompt, hook=hook) if "layer_" not in hook else None
    if truth is not None:
        assert_close(measured[:, 0], truth.llava_cam(0), FLOAT32, hook)
        return
    streams = []
    model, layers = vlm.model, vlm.decoder_layers
    handles = [
        layer.register_forward_hook(lambda _m, args, out: streams.append((args[0], out)))
        for layer in layers
    ]
    logits = model(**prompt.inputs).logits[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    ids = prompt.inputs["input_ids"][0]
    score = sum(logits[p - 1, ids[p]] for p in prompt.layout.answer_positions)
    chosen = [pair[hook == "layer_output"] for pair in streams]
    gradients = torch.autograd.grad(score, chosen)
    image = prompt.layout.image_positions
    expected = [
        (stream[0, image] @ gradient[0, image].mean(0)).relu().detach().numpy()
        for stream, gradient in zip(chosen, gradients, strict=True)
    ]
    assert_close(measured[:, 0], np.stack(expected), FLOAT32, hook)


def test_last_layer_of_llava_cam_is_undefined_at_the_papers_hook_only():
    vlm = lvlm()
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    at_norm = fast(vlm, prompt, signals=[LlavaCam(POST_ATTENTION_NORM)])
    assert (at_norm.flags["llava_cam"][-1] == UNDEFINED).all()
    assert not at_norm.maps["llava_cam"][-1].any()
    assert (at_norm.flags["llava_cam"][:-1] != UNDEFINED).all()
    at_input = fast(vlm, prompt, signals=[LlavaCam("layer_input")])
    assert (at_input.flags["llava_cam"] != UNDEFINED).all()


def test_a_map_without_positive_value_is_flagged_empty():
    vlm = lvlm()
    prompt = vlm.prepare(picture(), "What is it?", "red")
    # Values that are always 0: there is a gradient, but nothing it could be multiplied with.
    with torch.no_grad():
        vlm.decoder_layers[1].self_attn.v_proj.weight.zero_()
    measured = fast(vlm, prompt, signals=[LlavaCam("self_attn.v_proj")])
    assert (measured.flags["llava_cam"][1] == EMPTY).all()
    assert not measured.maps["llava_cam"][1].any()
    assert (measured.flags["llava_cam"][[0, 2, 3]] == OK).all()


def test_code_variant_step_by_step():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 6, generator=generator)
    gradients = torch.randn(20, 6, generator=generator)
    heat = np.zeros(20)
    for p in range(20):
        for k in range(6):
            alpha = sum(max(0.0, float(gradients[q, k])) for q in range(20)) / 20
            heat[p] += alpha * float(features[p, k]) / 6
    heat = np.maximum(heat, 0) / heat.max()
    heat[heat < 0.5] = 0
    rows = torch.zeros(0, dtype=torch.bool)

    def llava_cam_code(features: torch.Tensor) -> np.ndarray:
        view = LayerView("", (), 0, rows, _features=features, _gradient=gradients)
        return LlavaCamCode().of_layer(view).numpy()

    measured = llava_cam_code(features)
    np.testing.assert_allclose(measured, heat, rtol=1e-5, atol=1e-7)
    assert not llava_cam_code(-features.abs()).any()  # empty: 0, where the code has NaN


def test_flow_map_sums_layers_before_the_cliff():
    vlm = lvlm()
    prompt = vlm.prepare(picture(), "What is it?", "a red circle")
    measured = fast(vlm, prompt, signals=["saliency", "flow_map", "flow_map(layers=2)"]).maps
    assert list(measured) == ["saliency", "flow_map", "flow_map(layers=2)"]
    np.testing.assert_allclose(measured["flow_map"][0], measured["saliency"].sum(0), rtol=1e-6)
    np.testing.assert_allclose(
        measured["flow_map(layers=2)"][0], measured["saliency"][:2].sum(0), rtol=1e-6
    )
