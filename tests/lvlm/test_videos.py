"""Videos: what a prompt becomes of them, what results and pages say, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.lvlm.test_families import QUESTIONS
from tests.support.families import SIZES, picture
from tests.support.synthetic import HOSTILE
from tests.support.tiny_video import VIDEO_FAMILIES, WITH_VIDEOS, named, video
from vlmflow.errors import InputError
from vlmflow.lvlm.batch import collate
from vlmflow.lvlm.families import family_of
from vlmflow.lvlm.families.table import SUPPORTED
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.videos import Frames
from vlmflow.result import parts, storage
from vlmflow.result.information_flow import InformationFlow
from vlmflow.studies.truncations.down_sample import down_sampled, grows

each_family = pytest.mark.parametrize("family", VIDEO_FAMILIES, ids=lambda family: family.name)


# ------------------------------------------------------------------------- what a prompt becomes


def test_the_table_says_which_types_take_videos():
    takers = {row.model_type for row in SUPPORTED if family_of(row.model_type).takes_videos}
    assert takers == WITH_VIDEOS == {family.model_type for family in VIDEO_FAMILIES}


@each_family
def test_every_group_of_frames_is_a_picture_with_its_time(family):
    vlm = family.lvlm()
    together = vlm.family.frames_together(vlm.processor)
    assert together == (1 if family.model_type == "llava_onevision" else 2)
    prompt = vlm.prepare(video(5), QUESTIONS[0], "red")
    layout = prompt.layout
    firsts = range(0, 5, together)
    assert [frames.first for frames in layout.frames] == list(firsts)
    assert [frames.last for frames in layout.frames] == [min(f + together, 5) - 1 for f in firsts]
    assert layout.frames[0].seconds == (0.0, 0.5 * (together - 1))
    assert layout.frames[-1].seconds == (2.0, 2.0)
    for shown, first in zip(prompt.images, firsts, strict=True):
        assert np.array_equal(np.asarray(shown), np.asarray(picture(first, SIZES[0])))
    assert layout.image_sizes == (SIZES[0],) * len(firsts)
    assert [grid.image for grid in layout.grids] == list(range(len(firsts)))
    assert all((grid.boxes[-1, -1, 2:] == SIZES[0]).all() for grid in layout.grids)
    before = layout.positions_of(Segment.SYSTEM)
    assert before.max() < layout.image_positions.min()
    assert layout.answer_positions.min() > layout.image_positions.max()
    ids = prompt.inputs["input_ids"][0].numpy()
    assert np.isin(ids, vlm.image_token_ids).sum() == layout.image_positions.size


def test_times_reach_the_model():
    uneven = vlmflow.Video(video(4).frames, seconds=[1.0, 1.25, 3.5, 4.0])
    prompt = named("qwen3_vl").lvlm().prepare(uneven, QUESTIONS[0])
    assert re.findall(r"<([\d.]+) seconds>", "".join(prompt.layout.tokens)) == ["1.1", "3.8"]
    # The mean rate: 3 steps in 3 seconds, two frames a step.
    prompt = named("qwen2_5_vl").lvlm().prepare(uneven, QUESTIONS[0])
    assert prompt.inputs["second_per_grid_ts"].tolist() == [2.0]
    assert prompt.layout.frames[1].seconds == (3.5, 4.0)
    prompt = named("glm4v").lvlm().prepare(uneven, QUESTIONS[0])
    assert re.findall(r"<\|end_of_image\|>(\d)", "".join(prompt.layout.tokens)) == ["1", "3"]


def test_times_are_not_rounded_to_the_weights():
    vlm = named("qwen2_5_vl").lvlm()
    vlm.model.to(torch.bfloat16)
    inputs = vlm.prepare(video(4, every=1 / 24), QUESTIONS[0]).inputs
    assert inputs["second_per_grid_ts"].item() == pytest.approx(1 / 12, rel=1e-6)
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16


def test_pictures_and_videos_stand_as_the_template_places_them():
    """LLaVA-OneVision's own template puts a turn's pictures before its videos."""
    vlm = named("llava_onevision").lvlm()
    kinds = ("image", "video")
    loops = [
        f"{{% for part in message['content'] if part['type'] == '{kind}' %}}{{{{ '<{kind}>' }}}}"
        "{% endfor %}"
        for kind in kinds
    ]
    vlm.processor.chat_template = (
        "{% for message in messages %}" + "".join(loops) + "{% for part in message['content'] if "
        "part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endfor %}"
    )
    layout = vlm.prepare([video(2), picture(3, SIZES[1])], QUESTIONS[0]).layout
    assert layout.image_sizes == (SIZES[1], SIZES[0], SIZES[0])
    assert [frames and frames.first for frames in layout.frames] == [None, 0, 1]
    assert [grid.image for grid in layout.grids] == [0, 0, 1, 2]


def test_videos_in_a_conversation():
    vlm = named("qwen2_vl").lvlm()
    messages = [
        {"role": "user", "content": [
            {"type": "video", "video": video(2, SIZES[1])},
            {"type": "text", "text": "What is it?"},
        ]},
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": [
            {"type": "image"},
            {"type": "video"},
            {"type": "video", "video": [picture(1, SIZES[0])]},
            {"type": "text", "text": "And these?"},
        ]},
    ]  # fmt: skip
    layout = vlm.prepare([picture(5, SIZES[0]), video(4)], messages).layout
    numbers = [frames and (frames.video, frames.first, frames.seconds) for frames in layout.frames]
    assert numbers == [
        (0, 0, (0.0, 0.5)), None, (1, 0, (0.0, 0.5)), (1, 2, (1.0, 1.5)), (2, 0, None),
    ]  # fmt: skip
    labels = [layout.frames_label(image) for image in range(5)]
    assert labels == [
        "video 1, 0:00.0–0:00.5", "", "video 2, 0:00.0–0:00.5", "video 2, 0:01.0–0:01.5",
        "video 3, frame 1",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r'picture 1 .* type "image", but .* type "video"'):
        vlm.prepare([video(4), picture(5, SIZES[0])], messages)


def test_without_a_chat_template_videos_stand_like_pictures():
    vlm = named("llava_onevision").lvlm()
    vlm.processor.chat_template = None
    prompt = vlm.prepare([video(2), picture(1, SIZES[0])], "What is it?")
    assert prompt.text == "USER: <video>\n<image>\nWhat is it? ASSISTANT:"


# ------------------------------------------------------------------------ kept, drawn and reported


def explained(frames: int = 3) -> InformationFlow:
    return (
        named("qwen2_vl").lvlm().explain(video(frames), QUESTIONS[0], "red", signals=["flow_map"])
    )


def test_a_result_keeps_its_frames(tmp_path):
    flow = explained()
    again = InformationFlow.load(flow.save(tmp_path))
    assert again.layout.frames == flow.layout.frames
    assert again.layout.frames == (Frames(0, 0, 1, (0.0, 0.5)), Frames(0, 2, 2, (1.0, 1.0)))
    assert flow.layout.shifted(2, len(flow.layout) + 2).frames == flow.layout.frames


def test_frames_without_a_number_are_refused(tmp_path):
    flow = named("qwen2_vl").lvlm().explain(picture(1, SIZES[0]), QUESTIONS[0], "red")
    body, arrays = parts.take_apart(vars(flow))
    assert body["layout"].pop("frames") == []
    storage.write_pair(tmp_path, body, arrays)
    with pytest.raises(InputError, match="'frames' is missing"):
        InformationFlow.load(tmp_path)
    body["layout"]["frames"] = [{"video": 0, "first": 0, "seconds": None}]
    storage.write_pair(tmp_path, body, arrays)
    with pytest.raises(InputError, match="'last' is missing"):
        InformationFlow.load(tmp_path)


@pytest.mark.parametrize("payload", ["<script>alert(1)</script>", HOSTILE])
def test_a_saved_label_is_made_of_numbers_alone(tmp_path, payload):
    body, arrays = parts.take_apart(vars(explained()))
    for name in ("first", "video", "seconds"):
        shown = dict(body["layout"]["frames"][0])
        changed = {**body, "layout": {**body["layout"], "frames": [{**shown, name: payload}] * 2}}
        storage.write_pair(tmp_path / name, changed, arrays)
        with pytest.raises(InputError, match="holds no result"):
            InformationFlow.load(tmp_path / name)


def test_a_layout_says_of_every_picture_or_of_none_which_frames_it_is():
    with pytest.raises(InputError, match="of each of its 1 picture"):
        TokenLayout(np.array([1]), ("i",), ((4, 3),), frames=(None, Frames(0, 0, 0)))


@pytest.mark.parametrize(
    ("frames", "label"),
    [
        (Frames(0, 2, 3, (1.0, 1.5)), "0:01.0–0:01.5"),
        (Frames(0, 2, 2, (1.0, 1.0)), "0:01.0"),
        (Frames(0, 0, 1, (0.0, 1 / 24)), "0:00.0–0:00.04"),
        (Frames(0, 0, 1, (59.999, 3725.5)), "1:00.0–1:02:05.5"),
        (Frames(0, 2, 3), "frames 3–4"),
        (Frames(0, 2, 2), "frame 3"),
    ],
)
def test_frames_are_called_by_their_time_or_number(frames, label):
    assert frames.label == label


# ------------------------------------------------------------------------------------- said clearly


def frame(size=(8, 6)):
    return Image.new("RGB", size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "has no frames"),
        (("clip.mp4",), "'clip.mp4' is a file: pass its path in place of the video"),
        ((frame(),), "not one: "),
        ((3,), "sequence of paths or pictures, not int"),
        (([frame()] * 2, [0.0]), r"2 frame\(s\) but 1 time"),
        (
            ([frame()] * 2, [1.0, 1.0]),
            "must increase, but frame 0 is at 1.0 s and frame 1 at 1.0 s",
        ),
        (([frame()] * 2, [0.0, float("nan")]), "seconds from its start"),
        (([frame()] * 2, [-1.0, 0.0]), "seconds from its start"),
        (([frame()] * 2, ["0", "later"]), "numbers of seconds"),
    ],
)
def test_what_is_not_a_video_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        vlmflow.Video(*arguments)


def test_frames_and_files_that_cannot_be_read_are_refused(tmp_path):
    vlm = named("qwen2_vl").lvlm()
    with pytest.raises(
        InputError, match="frame 1 of the video is 6 x 6 pixels, but frame 0 is 8 x"
    ):
        vlm.prepare(vlmflow.Video([frame(), frame((6, 6))]), "What is it?")
    with pytest.raises(InputError, match="does not exist"):
        vlm.prepare(vlmflow.Video([tmp_path / "0.png"]), "What is it?")
    with pytest.raises(InputError, match=r"clip.MOV' does not exist"):
        vlm.prepare(str(tmp_path / "clip.MOV"), "What is it?")
    with pytest.raises(InputError, match="contains the video placeholder"):
        vlm.prepare(frame(), "What is <|video_pad|>?")
    with pytest.raises(InputError, match="not a text token"):
        vlm.prepare(frame(), "What is it?", [vlm.model.config.video_token_id])


@pytest.mark.parametrize("name", ["llava", "internvl", "smolvlm", "blip-2"])
def test_a_type_that_takes_no_videos_says_so(name):
    with pytest.raises(InputError, match=f"type '{name}' take no videos here: .*qwen2_vl"):
        named(name).lvlm().prepare(video(), "What is it?")


@pytest.mark.parametrize("name", sorted(WITH_VIDEOS - {"qwen2_vl", "llava_onevision"}))
def test_a_type_that_is_told_times_wants_them(name):
    with pytest.raises(InputError, match=r"told the time of every frame: .*seconds="):
        named(name).lvlm().prepare(vlmflow.Video(video().frames), "What is it?")


def test_without_a_video_processor_it_is_said_what_to_install():
    vlm = named("qwen2_vl").lvlm()
    vlm.processor.video_processor = None
    with pytest.raises(InputError, match=r"needs torchvision: pip install torchvision$"):
        vlm.prepare(video(), "What is it?")
    assert vlm.prepare(picture(1, SIZES[0]), "What is it?").layout.grids


def test_what_transformers_cannot_take_together_is_refused():
    vlm = named("llava_onevision").lvlm()
    with pytest.raises(InputError, match="3, 2 frames, but LLaVA-OneVision takes videos of one"):
        vlm.prepare([video(3), video(2)], "What is it?")
    with pytest.raises(InputError, match="videos of a batch have different numbers of frames"):
        collate([vlm.prepare(video(n), "What is it?") for n in (2, 3)], 0)
    with pytest.raises(InputError, match="pictures or videos in a prompt, not both"):
        named("glm4v").lvlm().prepare([video(), picture(1, SIZES[0])], "What is it?")
    with pytest.raises(InputError, match=r"refuses this prompt: .*temporal_factor"):
        named("qwen3_vl").lvlm().prepare(video(1), "What is it?")


@each_family
def test_a_down_sampled_video_has_as_many_frames_of_fewer_tokens(family):
    vlm = family.lvlm()
    whole = vlm.prepare(video(), "What is it?")
    growing = grows(vlm, whole, "What is it?")
    if family.name == "llava_onevision":  # makes every frame into the same grid
        assert not growing
        with pytest.raises(InputError, match=r"do not say where .*; --controls random leaves this"):
            down_sampled(vlm, whole, "What is it?", 0.5, growing=growing)
        return
    smaller, rest = down_sampled(vlm, whole, "What is it?", 0.5, growing=growing)
    assert rest is None
    assert smaller.layout.frames == whole.layout.frames
    assert smaller.layout.image_positions.size < whole.layout.image_positions.size
    (shown,), (before,) = smaller.visuals, whole.visuals
    assert shown.seconds == before.seconds
    for frame, own in zip(shown.frames, before.frames, strict=True):
        assert frame.size < own.size
        same = own.resize(frame.size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(same))
