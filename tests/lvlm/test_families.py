"""What holds for every family: measuring, truncation and removal curves, against the slow way."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers.utils import is_torchvision_available

import vlmflow
from tests.flow.test_signals import SIGNALS, assert_agrees
from tests.support.families import FAMILIES, LAYERS, SIZES, picture
from tests.support.masked_truncation import masked_logits
from tests.support.reference import measure_slowly
from tests.support.tiny_shaped import WithRowBreaks
from tests.support.tiny_square import QUERIES
from vlmflow.errors import InputError, ModelError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.llava_cam_smooth import LlavaCamSmooth
from vlmflow.flow.signals.registry import DEFAULT_SIGNALS
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.families import FAMILIES as REGISTERED
from vlmflow.lvlm.families import family_of
from vlmflow.lvlm.families.table import SUPPORTED
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.tokens import end_ids
from vlmflow.removal.curve import removal_curves
from vlmflow.truncation import Truncation, side_by_side
from vlmflow.truncation.shared_answers import shared_answers

QUESTIONS = ("What colour is the circle?", "Is there a blue square in the picture? yes no")
ANSWERS = ("a red circle", "4 5")

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
with_places = [family for family in FAMILIES if not family.queries]


def pictures_for(family):
    """Pictures of very different shape, where the model takes them."""
    sizes = SIZES[:1] * 2 if family.one_shape else SIZES
    return [picture(1, sizes[0]), picture(2, sizes[1]), picture(3, sizes[0])]


def prompts(vlm, answers=ANSWERS):
    """Two prompts of different lengths: one picture, then two of very different shape."""
    (family,) = [family for family in FAMILIES if family.name == vlm.name]
    first, *others = pictures_for(family)
    shown = ([first], others)
    if not vlm.family.pictures_in_prompt:
        shown = (shown[0], shown[1][:1])
    return [
        vlm.prepare(images, question, answer)
        for images, question, answer in zip(shown, QUESTIONS, answers, strict=True)
    ]


def test_every_registered_type_is_tested():
    registered = {model_type for family in REGISTERED for model_type in family.model_types}
    tested = {family.model_type for family in FAMILIES}
    assert registered - tested <= {"vipllava"}  # LLaVA in everything that is tested here


@each_family
def test_a_saved_model_opens_or_says_what_to_install(family, tmp_path, no_network):
    model, processor = family.build("sdpa")
    for part in (model, processor.tokenizer, processor.image_processor):
        part.save_pretrained(tmp_path)
    if isinstance(processor, WithRowBreaks):
        (tmp_path / "processor_config.json").write_text('{"processor_class": "PixtralProcessor"}')
    elif not hasattr(processor, "video_processor"):  # what stands for that cannot be saved
        processor.save_pretrained(tmp_path)
    needs_torchvision = isinstance(processor, WithRowBreaks) or (
        hasattr(processor, "video_processor") or processor.image_processor.backend == "torchvision"
    )
    if needs_torchvision and not is_torchvision_available():
        message = "its processor needs torchvision: pip install torchvision$"
        with pytest.raises(ModelError, match=message):
            vlmflow.load(tmp_path, device="cpu")
        return
    vlm = vlmflow.load(tmp_path, device="cpu")
    assert len(vlm.prepare(picture(1, SIZES[0]), QUESTIONS[0]).layout) > QUERIES


@pytest.mark.parametrize("family", with_places, ids=lambda family: family.name)
def test_every_picture_has_a_map(family):
    for prompt in prompts(family.lvlm()):
        assert prompt.layout.grids_missing == ""
        assert {grid.image for grid in prompt.layout.grids} == set(range(len(prompt.images)))


@pytest.mark.parametrize(
    "family",
    # Without its family nobody knows what an answer's tokens are to be marked with.
    [family for family in with_places if not family_of(family.model_type).answer_inputs],
    ids=lambda family: family.name,
)
def test_an_unknown_type_lacks_nothing_but_the_map(family, monkeypatch):
    vlm = family.lvlm()
    expected = [vlm.generate_ids(prompt, max_new_tokens=3) for prompt in prompts(vlm, (None, None))]
    monkeypatch.setattr("vlmflow.lvlm.families.registry.FAMILIES", ())
    unknown = family.lvlm()
    batch = prompts(unknown)
    for prompt in batch:
        assert not prompt.layout.grids
        assert re.search(
            "no family .* vlmflow.register_family adds one", prompt.layout.grids_missing
        )
    inputs, layouts = collate(batch, pad_id(unknown.processor.tokenizer))
    assert measure(
        unknown.model,
        unknown.decoder_layers,
        inputs,
        layouts,
        ExplainOptions(("attention", "saliency")),
    )
    assert removal_curves(unknown, batch)
    policy = Truncation(2, 1.0, "diversity")
    for prompt, ids in zip(prompts(unknown, (None, None)), expected, strict=True):
        assert unknown.generate_ids(prompt, max_new_tokens=3, truncation=policy) == ids


@each_family
def test_flow_agrees_with_eager_attention_also_in_a_padded_batch(family):
    vlm, eager = family.lvlm(), family.lvlm("eager")
    batch = prompts(vlm)
    inputs, layouts = collate(batch, pad_id(vlm.processor.tokenizer))
    results = measure(
        vlm.model, vlm.decoder_layers, inputs, layouts, ExplainOptions(SIGNALS),
        kept_rows=[layout.text_rows for layout in layouts],
    )  # fmt: skip
    for prompt, together in zip(batch, results, strict=True):
        truth = measure_slowly(
            eager.model, eager.decoder_layers, prompt.inputs, prompt.layout, "logprob",
            family.norm,
        )  # fmt: skip
        # float32 on both sides: 1e-4 of a layer's largest value is some hundred roundings.
        assert_agrees(together, truth, 1e-4)
        # Half precision rounds by 1 in 2048; padding, which nobody attends to, is at the start.
        rows = truth.attention[:, :, prompt.layout.text_rows].mean(1)
        padding = together.kept_attention.shape[2] - len(prompt.layout)
        np.testing.assert_allclose(together.kept_attention[..., padding:], rows, 6e-4, 1e-7)
        assert not together.kept_attention[..., :padding].any()
        (alone,) = measure(
            vlm.model, vlm.decoder_layers, prompt.inputs, [prompt.layout], ExplainOptions(SIGNALS)
        )
        assert_agrees(alone, truth, 1e-4)


@each_family
def test_explaining_gives_every_map_of_the_own_answer(family):
    vlm = family.lvlm()
    shown = pictures_for(family)[1 : 2 if family.queries else 3]
    flow = vlm.explain(
        shown, QUESTIONS[0], max_new_tokens=2, signals=[*DEFAULT_SIGNALS, LlavaCamSmooth(copies=2)]
    )
    assert set(flow.signals) == {*DEFAULT_SIGNALS, "llava_cam_smooth"}
    for layer in range(LAYERS):
        has_attention = hasattr(vlm.decoder_layers[layer], "self_attn")
        assert (flow.flag("attention", layer) == "ok") == has_attention
    for image, shown_picture in enumerate(shown):
        assert np.isfinite(flow.pixel_map("flow_map", image=image)).any()
        assert flow.pixel_map("flow_map", image=image).shape == shown_picture.size[::-1]


@each_family
def test_keeping_all_changes_nothing(family):
    vlm = family.lvlm()
    batch = prompts(vlm, (None, None))
    policy = Truncation(2, 1.0, "last_attention")
    for prompt in batch:
        untouched = vlm.generate_ids(prompt, max_new_tokens=6)
        assert vlm.generate_ids(prompt, max_new_tokens=6, truncation=policy) == untouched
        with torch.no_grad():
            expected = vlm.model(**prompt.inputs).logits
            with policy(vlm.model):
                logits = vlm.model(**prompt.inputs).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


POLICIES = {
    "no image token": Truncation(1, 0),
    "from the first layer": Truncation((0, 2), (3, 0), "question_similarity"),
    "by attention": Truncation(2, 3, "last_attention"),
    "by question": Truncation((1, 3), (0.5, 0.2), "question_similarity"),
}


@each_family
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_truncation_equals_hiding_tokens_behind_masks(family, policy):
    """Logits of prompt and generated tokens, and which positions the cache holds."""
    vlm = family.lvlm("eager")
    token = vlm.image_token_id
    for prompt in prompts(vlm, (None, None)):
        length = len(prompt.layout)
        _, output = vlm.generate_with(
            prompt, max_new_tokens=4, truncation=policy, options={
                "min_new_tokens": 4, "output_logits": True, "suppress_tokens":
                [*vlm.image_token_ids, *end_ids(vlm.model, vlm.processor.tokenizer)],
            },
        )  # fmt: skip
        whole = vlm.with_answer(prompt, output.sequences[0, length:-1].tolist())
        expected, seen = masked_logits(vlm.model, vlm.decoder_layers, whole, policy, token)
        torch.testing.assert_close(
            torch.cat(output.logits), expected[length - 1 :], rtol=1e-4, atol=5e-5
        )
        for layer, held in zip(output.past_key_values.layers, seen, strict=True):
            # Sliding windows forget what left them; linear attention keeps a state.
            if hasattr(layer, "keys") and not layer.is_sliding:
                assert layer.keys.shape[-2] == len(held)


@each_family
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_truncated_batch_is_its_rows(family, policy):
    vlm = family.lvlm()
    batch = prompts(vlm, (None, None))
    together = vlm.generate_batch(batch, max_new_tokens=5, truncation=policy)
    alone = [vlm.generate_ids(prompt, max_new_tokens=5, truncation=policy) for prompt in batch]
    assert together == alone


@each_family
@pytest.mark.parametrize(("keep", "ranking"), [(0, None), (3, "diversity"), (4, "value_norm")])
def test_a_removal_curve_is_one_truncation_per_layer(family, keep, ranking):
    vlm = family.lvlm()
    batch = prompts(vlm)
    if ranking == "value_norm" and family.first_attention:
        with pytest.raises(InputError, match="layer 0 has no attention to rank by"):
            removal_curves(vlm, batch, keep=keep, rank_by=ranking)
        return
    curves = removal_curves(vlm, batch, keep=keep, rank_by=ranking)
    for prompt, curve in zip(batch, curves, strict=True):
        assert curve.layers == tuple(range(int(ranking == "value_norm"), LAYERS))
        rows = torch.from_numpy(prompt.layout.answer_rows)
        ids = torch.tensor(prompt.answer_ids)[:, None]
        with torch.no_grad():
            reference = vlm.model(**prompt.inputs).logits[0, rows].log_softmax(-1)
            for number, layer in enumerate(curve.layers):
                with Truncation(layer, keep, ranking or "value_norm")(vlm.model):
                    logits = vlm.model(**prompt.inputs).logits[0, rows]
                chances = logits.log_softmax(-1)
                expected = chances.gather(1, ids)[:, 0].numpy()
                np.testing.assert_allclose(curve.logprob[number], expected, rtol=1e-3, atol=5e-5)
                kl = (reference.exp() * (reference - chances)).sum(-1).numpy()
                np.testing.assert_allclose(curve.kl[number], kl, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.model_type.startswith("qwen")],
    ids=lambda family: family.name,
)
def test_rows_and_columns_of_patches_are_not_counted_anew(family):
    """With a number per axis, re-packed positions would be another picture."""
    policy = Truncation(2, 3, "value_norm", positions="repack")
    message = "positions='repack' needs rotary embeddings of one number"
    with pytest.raises(ModelError, match=message), policy(family.lvlm().model):
        pass


@each_family
def test_shared_answers_are_those_of_generate(family, monkeypatch):
    """Prompts together, then each alone by putting the untouched answer to all truncations."""
    vlm = family.lvlm()
    policies = [
        *(Truncation(1, 0), Truncation(LAYERS - 1, 0), Truncation((1, 2), (0.5, 0.25), "random")),
        Truncation(0, 0.5, "diversity"),
    ]
    if not family.model_type.startswith(("qwen", "glm", "blip")):  # one number per token
        policies.append(Truncation(2, 3, "value_norm", positions="repack"))
    batch = prompts(vlm, (None, None))
    expected = [
        [
            vlm.generate_ids(prompt, max_new_tokens=4, truncation=policy)
            for policy in (None, *policies)
        ]
        for prompt in batch
    ]
    starts = []  # of prompts that were decoded together: how many rows the first step has
    vlm.model.get_output_embeddings().register_forward_hook(
        lambda _module, args, _output: starts.append(len(args[0]))
    )
    assert shared_answers(vlm, batch, policies, max_new_tokens=4) == expected
    assert starts[0] == len(batch)
    assert max(starts) >= len(batch) * len(policies)
    monkeypatch.setattr(side_by_side, "LEAST_ROOM", 1)
    assert shared_answers(vlm, batch, policies, max_new_tokens=4) == expected


@pytest.mark.parametrize("name", ["paligemma", "blip-2", "instructblip"])
def test_models_without_a_chat_template_get_the_question_as_it_stands(name):
    (family,) = [family for family in FAMILIES if family.name == name]
    vlm = family.lvlm()
    prompt = vlm.prepare(picture(1, SIZES[0]), "answer en What is it?", "red")
    tokens = zip(prompt.layout.tokens, prompt.inputs["input_ids"][0].tolist(), strict=True)
    text = "".join(text for text, token in tokens if token != vlm.image_token_id)
    assert text == {"paligemma": "<s>answer en What is it?\nred"}.get(
        name, "answer en What is it? red"
    )
    assert not prompt.layout.positions_of(Segment.SYSTEM).size


WITH_PLACES = {row.model_type for row in SUPPORTED if row.by_place}
OF_ONE_TILE = {"idefics3", "smolvlm"}


@each_family
def test_places_read_off_the_inputs_are_those_of_the_grids(family):
    """Where `uniform` knows rows and columns, in a batch of pictures of different shape."""
    vlm = family.lvlm()
    batch = prompts(vlm)
    inputs, _ = collate(batch, pad_id(vlm.processor.tokenizer))
    first = 0
    for prompt in batch:
        count = len(prompt.layout.image_positions)
        places = vlm.family.places(first, count, inputs, vlm.model.config)
        first += count
        placed = WITH_PLACES | (OF_ONE_TILE if len(prompt.layout.grids) == 1 else set())
        assert (places is not None) == (vlm.model.config.model_type in placed)
        if places is None:
            continue
        for grid in prompt.layout.grids:
            at = np.searchsorted(prompt.layout.image_positions, grid.positions)
            assert (places[at, 0] == grid.image).all()
            np.testing.assert_array_equal(
                places[at, 1:], np.moveaxis(np.indices(grid.shape), 0, -1)
            )


@pytest.mark.parametrize(
    "family",
    [
        family
        for family in with_places
        if family.model_type in WITH_PLACES - {"mistral3"} and not family.variant
    ],
    ids=lambda family: family.name,
)
def test_places_are_known_while_generating(family, monkeypatch):
    """`generate` encodes pictures first and does not tell the model their pixels or shapes."""
    vlm, results = family.lvlm(), []
    places = type(vlm.family).places

    def seen(self, first, tokens, inputs, config):
        results.append(places(self, first, tokens, inputs, config))
        return results[-1]

    monkeypatch.setattr(type(vlm.family), "places", seen)
    policy = Truncation(1, 3, "uniform")
    for prompt in prompts(vlm, (None, None)):
        results.clear()
        vlm.generate_ids(prompt, max_new_tokens=1, truncation=policy)
        with policy(vlm.model), torch.no_grad():
            vlm.model(**prompt.inputs)
        assert len(results) == 2
        np.testing.assert_array_equal(*results)
