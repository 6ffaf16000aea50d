from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, VipLlavaConfig
from transformers import VipLlavaForConditionalGeneration as VipLlava

from tests.support.tiny import tiny_llava, tiny_processor
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.batch import collate
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model import LVLM

QUESTION = "What colour is the circle?"
KINDS = [
    {"tower": "clip"},
    {"tower": "siglip", "kv_heads": 2, "image_size": 42},
    {"tower": "clip", "select_strategy": "full", "tokenizer": "metaspace"},
    {"tower": "clip", "chat_template": False, "text_model": "qwen2"},
]


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def vlm() -> LVLM:
    return LVLM(*tiny_llava(1))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: ",".join(map(str, kind.values())))
def each(request: pytest.FixtureRequest) -> LVLM:
    return LVLM(*tiny_llava(2, **request.param))


def spelled(prompt, segment: Segment) -> str:
    return "".join(prompt.layout.tokens[p] for p in prompt.layout.positions_of(segment))


def test_every_position_has_its_segment(vlm):
    layout = vlm.prepare(picture(), QUESTION, "red circle").layout
    runs = "".join(str(int(segment)) for segment in layout.segments)
    assert runs.strip("0").rstrip("3").strip("1") == "2" * runs.count("2")
    assert spelled(vlm.prepare(picture(), QUESTION, "red circle"), Segment.ANSWER) == " red circle"
    prompt = vlm.prepare(picture(), QUESTION)
    assert spelled(prompt, Segment.SYSTEM) == "USER: "
    assert spelled(prompt, Segment.USER) == f"\n{QUESTION} ASSISTANT:"
    assert prompt.layout.answer_positions.size == 0
    assert prompt.answer is None


def test_image_tokens_are_counted_and_shown_where_they_stand(each):
    sizes = [(80, 60), (30, 90)]
    prompt = each.prepare([picture(0, sizes[0]), picture(1, sizes[1])], QUESTION)
    layout = prompt.layout
    ids = prompt.inputs["input_ids"][0].numpy()
    assert (layout.image_positions == np.flatnonzero(ids == each.image_token_id)).all()
    features = each.model.get_image_features(prompt.inputs["pixel_values"]).pooler_output
    assert layout.image_positions.size == sum(len(feature) for feature in features)
    assert layout.image_sizes == tuple(sizes)
    side = each.model.config.vision_config.image_size // 14
    assert [grid.image for grid in layout.grids] == [0, 1]
    assert all(grid.shape == (side, side) for grid in layout.grids)
    in_grids = np.concatenate([grid.positions.ravel() for grid in layout.grids])
    assert (np.diff(in_grids) > 0).all()
    left_out = np.setdiff1d(layout.image_positions, in_grids)
    full_clip = each.model.config.vision_feature_select_strategy == "full" and side == 4
    # The class token stands in front of each picture's patches and shows no place.
    expected = [grid.positions[0, 0] - 1 for grid in layout.grids] if full_clip else []
    assert left_out.tolist() == expected


def test_each_grid_holds_the_features_of_its_own_picture(each):
    """Only the second picture changes: so may only the features at the second grid's positions."""
    layout = each.prepare([picture(0), picture(1)], QUESTION).layout
    before, after = (
        torch.cat(
            each.model.get_image_features(
                each.prepare([picture(0), picture(seed)], QUESTION).inputs["pixel_values"]
            ).pooler_output
        )
        for seed in (1, 2)
    )
    changed = layout.image_positions[((before - after).abs().amax(dim=-1) > 1e-6).numpy()]
    first, second = layout.grids
    assert not np.isin(first.positions, changed).any()
    assert np.isin(second.positions, changed).all()


def test_answer_rows_predict_the_generated_answer(each):
    question = each.prepare(picture(), QUESTION)
    ids = each.generate_ids(question, max_new_tokens=6)
    prompt = each.with_answer(question, ids)
    assert prompt.answer_ids == ids
    assert len(ids) > 0
    with torch.no_grad():
        logits = each.model(**prompt.inputs).logits[0]
    assert tuple(logits[prompt.layout.answer_rows].argmax(dim=-1).tolist()) == ids
    assert each.generate(picture(), QUESTION, max_new_tokens=6) == prompt.answer


def test_generated_ids_stop_before_the_end_token(vlm, monkeypatch):
    prompt = vlm.prepare(picture(), QUESTION)
    ids = prompt.inputs["input_ids"]
    end, pad = vlm.processor.tokenizer.eos_token_id, vlm.processor.tokenizer.pad_token_id
    tail = torch.tensor([[7, 8, end, pad]])
    output = SimpleNamespace(sequences=torch.cat([ids, tail], dim=1))
    monkeypatch.setattr(vlm.model, "generate", lambda **_: output)
    assert vlm.generate_ids(prompt) == (7, 8)
    assert vlm.with_answer(prompt, [7, 8, end]).answer_ids == (7, 8)


@pytest.mark.parametrize("tokenizer", ["byte", "metaspace", "word"])
@pytest.mark.parametrize("chat_template", [True, False])
def test_an_answer_text_gets_the_ids_of_the_template(tokenizer, chat_template):
    vlm = LVLM(*tiny_llava(tokenizer=tokenizer, chat_template=chat_template))
    prompt = vlm.prepare(picture(), QUESTION, "red circle")
    whole = vlm.processor.tokenizer(prompt.text + " red circle", add_special_tokens=False)
    assert list(prompt.answer_ids) == whole["input_ids"][-len(prompt.answer_ids) :]
    assert spelled(prompt, Segment.ANSWER) == " red circle"
    assert prompt.answer == "red circle"
    assert (prompt.inputs["attention_mask"] == 1).all()
    assert prompt.inputs["attention_mask"].shape == prompt.inputs["input_ids"].shape


def test_a_template_without_a_space_before_the_answer_is_followed():
    model, processor = tiny_llava()
    processor.chat_template = processor.chat_template.replace("': '", "':\n'").replace(
        "'ASSISTANT:'", "'ASSISTANT:\n'"
    )
    prompt = LVLM(model, processor).prepare(picture(), QUESTION, "red")
    assert prompt.text.endswith("ASSISTANT:\n")
    assert spelled(prompt, Segment.ANSWER) == "red"


def test_a_template_that_writes_the_start_token_gets_no_second_one():
    model, processor = tiny_llava()
    backend = processor.tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    starts = []
    for template in (processor.chat_template, "{{ bos_token }}" + processor.chat_template):
        processor.chat_template = template
        ids = LVLM(model, processor).prepare(picture(), QUESTION).inputs["input_ids"][0].tolist()
        starts.append(ids.count(processor.tokenizer.bos_token_id))
    assert starts == [1, 1]


def test_the_prompt_without_a_template_is_llava_1_5s():
    vlm = LVLM(*tiny_llava(chat_template=False))
    text = vlm.prepare([picture(), picture()], QUESTION).text
    assert text == f"USER: <image>\n<image>\n{QUESTION} ASSISTANT:"


def test_a_conversation_keeps_its_turns_and_the_order_of_its_pictures(each, tmp_path):
    picture(5, (20, 40)).save(tmp_path / "a.png")
    messages = [
        {"role": "system", "content": "Answer in a few words."},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(tmp_path / "a.png")},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "image", "image": picture(6, (90, 30))},
                {"type": "text", "text": "And these?"},
            ],
        },
    ]
    kept = json.dumps(messages, default=str)
    prompt = each.prepare(picture(7), messages, "red")
    assert prompt.layout.image_sizes == ((20, 40), (80, 60), (90, 30))
    assert json.dumps(messages, default=str) == kept
    first, last = prompt.layout.image_positions[[0, -1]]
    assert "few words" in "".join(prompt.layout.tokens[:first])
    assert "a circle" in spelled(prompt, Segment.USER)
    assert (prompt.layout.positions_of(Segment.USER) > first).all()
    assert prompt.layout.answer_positions.min() > last
    assert prompt.text.index("a circle") < prompt.text.index("And these?")


def turn(role: str, *content: object) -> dict[str, object]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": role, "content": parts}


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("images", "question", "answer", "message"),
    [
        ([picture()], "", None, "question is empty"),
        ([picture()], " \n", None, "question is empty"),
        ([picture()], "Is <image> red?", None, "image placeholder '<image>'"),
        ([picture()], "Is </s> red?", None, "contains '</s>'.*special token"),
        ([], QUESTION, None, "no picture"),
        (None, QUESTION, None, "no picture"),
        ([picture()], QUESTION, "", "tokenises to nothing"),
        ([picture()], QUESTION, "  ", "tokenises to nothing"),
        ([picture()], QUESTION, "an <image>", "answer contains the image placeholder"),
        ([picture()], QUESTION, [], "no tokens"),
        ([picture()], QUESTION, [2], "no tokens"),
        ([picture()], QUESTION, [5, 99999], "id 99999"),
        ([picture()], "what " * 2100, None, "at most 2048"),
        ([picture()], QUESTION, "what " * 2100, "at most 2048"),
        (["nowhere.png"], QUESTION, None, "nowhere.png"),
        ([], [], None, "no messages"),
        ([picture()], [turn("user", "Red?")], None, "0 picture.*images= holds 1"),
        (None, [turn("user", IMAGE, "Red?")], None, "1 picture.*images= holds 0"),
        (None, [turn("user", "Red?")], None, "show no picture"),
        ([picture()], [turn("user", IMAGE)], None, "question is empty"),
        ([picture()], [turn("user", IMAGE, "Red <image>?")], None, "image placeholder"),
        ([picture()], [turn("user", IMAGE, "?"), turn("assistant", "no")], None, "assistant mess"),
        ([picture()], [turn("bot", IMAGE, "Red?")], None, "role 'bot'"),
        ([picture()], [turn("user", {"type": "audio"}, "Red?")], None, "type 'audio'"),
        ([picture()], [turn("user", {"type": "video"}, "Red?")], None, 'is a part of type "video"'),
        (None, [turn("user", {"type": "image", "url": "http://x/y"}, "?")], None, "by url"),
    ],
)
def test_bad_input_is_one_clear_sentence(vlm, images, question, answer, message):
    with pytest.raises(InputError, match=message) as caught:
        vlm.prepare(images, question, answer)
    assert "\n" not in str(caught.value)


def test_a_conversation_that_the_template_refuses_is_said():
    model, processor = tiny_llava()
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses this conversation: roles must alternate"):
        LVLM(model, processor).prepare(picture(), QUESTION)


def test_an_answer_goes_after_a_prompt_once(vlm):
    answered = vlm.prepare(picture(), QUESTION, "red")
    for again in (lambda: vlm.with_answer(answered, "blue"), lambda: vlm.generate_ids(answered)):
        with pytest.raises(InputError, match="already carries an answer"):
            again()


def test_a_processor_or_model_that_cannot_work_is_refused():
    model, processor = tiny_llava()
    with pytest.raises(InputError, match="has no tokenizer"):
        LVLM(model, processor.image_processor)
    with pytest.raises(InputError, match="has no image_processor"):
        LVLM(model, _tokenizer_as_processor(processor))
    text_only = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=10,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    with pytest.raises(ModelError, match="no image_token_id"):
        LVLM(text_only, processor)


def _tokenizer_as_processor(processor):
    tokenizer = processor.tokenizer
    tokenizer.tokenizer = tokenizer
    return tokenizer


def test_the_model_and_its_processor_stay_as_they_were():
    model, processor = tiny_llava()
    model.train()
    model.model.vision_tower.eval()
    model.lm_head.weight.requires_grad_(False)

    def state() -> list[object]:
        return [
            [
                (name, module.training, sorted(vars(module)))
                for name, module in model.named_modules()
            ],
            [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
            model.config.to_dict(),
            model.generation_config.to_dict(),
            processor.to_dict(),
            sorted(vars(processor)),
            len(processor.tokenizer),
        ]

    # transformers marks its vision tower at the first call of a model, whoever calls.
    model.generate(**LVLM(model, processor).prepare(picture(), "?").inputs, max_new_tokens=1)
    before = state()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    vlm = LVLM(model, processor)
    vlm.prepare(picture(), QUESTION, "red")
    vlm.generate(picture(), QUESTION, max_new_tokens=3)
    assert state() == before
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())


def test_training_flags_come_back_when_generation_fails(monkeypatch):
    model, processor = tiny_llava()
    model.train()
    vlm = LVLM(model, processor)

    def broken(**_: object) -> None:
        assert not model.training
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(RuntimeError, match="broken"):
        vlm.generate(picture(), QUESTION)
    assert all(module.training for module in model.modules())


def test_a_batch_gives_every_prompt_the_logits_it_has_alone(each):
    alone = [
        each.prepare(picture(0), QUESTION, "red"),
        each.prepare([picture(1), picture(2)], "Which number is printed?", "7 3"),
        each.prepare(picture(3), "Is it?", "no"),
    ]
    inputs, layouts = collate(alone, each.processor.tokenizer.pad_token_id)
    assert inputs["pixel_values"].shape[0] == 4
    with torch.no_grad():
        batch = each.model(**inputs).logits
        for index, (prompt, layout) in enumerate(zip(alone, layouts, strict=True)):
            single = each.model(**prompt.inputs).logits[0]
            positions = layout.positions_of(Segment.PAD)
            assert (inputs["attention_mask"][index, positions] == 0).all()
            own = batch[index, len(positions) :]
            torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-4)
            ids = inputs["input_ids"][index]
            assert (ids[layout.image_positions] == each.image_token_id).all()
            assert tuple(ids[layout.answer_positions].tolist()) == prompt.answer_ids


def test_decoder_layers_are_the_models_own(vlm):
    assert vlm.num_layers == 4
    assert vlm.decoder_layers is vlm.model.model.language_model.layers
    summary = vlm.config_summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["layers"], summary["family"], summary["dtype"]) == (4, "Llava", "float32")


def test_vip_llava_is_laid_out_like_llava():
    model, processor = tiny_llava()
    vip = VipLlava(
        VipLlavaConfig(
            vision_config=model.config.vision_config,
            text_config=model.config.text_config,
            image_token_index=model.config.image_token_id,
            vision_feature_layers=[-1, -2],
        )
    ).eval()
    prompt = LVLM(vip, processor).prepare([picture(0), picture(1)], QUESTION, "red")
    expected = LVLM(model, processor).prepare([picture(0), picture(1)], QUESTION, "red").layout
    for grid, other in zip(prompt.layout.grids, expected.grids, strict=True):
        assert (grid.positions == other.positions).all()
        assert (grid.boxes == other.boxes).all()
    assert vip(**prompt.inputs).logits.shape[1] == len(prompt.layout)


def test_an_unknown_family_gets_a_layout_and_a_reason_for_the_missing_map():
    model, processor = tiny_llava()
    model.config.model_type = "brand_new_vlm"
    layout = LVLM(model, processor).prepare(picture(), QUESTION, "red").layout
    assert layout.grids == ()
    assert "'brand_new_vlm' have no family" in layout.grids_missing
    assert layout.image_positions.size == 16


def test_inputs_have_the_models_precision():
    vlm = LVLM(*tiny_llava(dtype=torch.bfloat16))
    prompt = vlm.prepare(picture(), QUESTION)
    assert prompt.inputs["pixel_values"].dtype == vlm.dtype == torch.bfloat16
    assert prompt.inputs["input_ids"].dtype == torch.int64


def test_pictures_whose_tokens_do_not_fit_their_patches_have_no_map():
    model, _ = tiny_llava()
    processor = tiny_processor()
    processor.num_additional_image_tokens = 0
    layout = LVLM(model, processor).prepare(picture(), QUESTION).layout
    assert layout.grids == ()
    assert "15 image tokens" in layout.grids_missing


def test_the_decoder_is_found_without_its_usual_name():
    model, processor = tiny_llava()
    text = AutoModel.from_config(model.config.text_config)
    model.get_decoder = lambda: text
    assert LVLM(model, processor).decoder_layers is text.layers
    model.get_decoder = lambda: torch.nn.Identity()
    with pytest.raises(ModelError, match=r"decoder layers .* cannot be found"):
        LVLM(model, processor)
