"""Video files: which frames are taken of them, when, how upright, and what is refused."""

from __future__ import annotations

import builtins
import os
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

import vlmflow
from tests.lvlm.test_families import QUESTIONS
from tests.support.clips import STEP, clip, numbers
from tests.support.families import SIZES, picture
from tests.support.tiny_video import VIDEO_FAMILIES, named
from vlmflow.errors import InputError
from vlmflow.lvlm import video_files
from vlmflow.lvlm.frame_choice import ChosenFrames, read_video
from vlmflow.lvlm.video_files import VideoFile, frames_at, is_video_file

each_family = pytest.mark.parametrize("family", VIDEO_FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def plain(clips):
    """Three seconds at eight frames a second."""
    return clip(clips / "plain.mp4")


def sampling(vlm):
    """Switch a processor's own choice of frames on, where its class has it off."""
    if vlm.model.config.model_type in ("qwen2_vl", "qwen2_5_vl"):
        vlm.processor.video_processor.do_sample_frames = True
        vlm.processor.video_processor.fps = 2
    return vlm


# ------------------------------------------------------------------------------ as the processor


@each_family
@pytest.mark.parametrize("frames", [24, 17])
def test_inputs_are_those_of_the_processor_that_chooses_itself(clips, family, frames):
    vlm = sampling(family.lvlm())
    path = clip(clips / f"{frames}.mp4", frames)
    prompt = vlm.prepare(path, QUESTIONS[0])
    every = np.stack([np.asarray(frame) for frame in frames_at(VideoFile(path), range(frames))])
    assert numbers(every) == list(range(frames))
    chooses = vlm.processor.video_processor.do_sample_frames
    if not chooses:  # LLaVA-OneVision takes all: here two a second
        every = every[[number * frames // (frames // 4) for number in range(frames // 4)]]
    metadata = VideoMetadata(total_num_frames=frames, fps=8.0, duration=frames / 8)
    expected = vlm.processor(
        text=[prompt.text],
        videos=[every],
        return_tensors="pt",
        videos_kwargs={
            "do_sample_frames": chooses,
            "video_metadata": [metadata],
            "input_data_format": "channels_last",
        },
    )
    names = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    assert set(names) == set(prompt.inputs)
    for name in names:
        assert torch.equal(expected[name], prompt.inputs[name].to(expected[name].dtype)), name


def test_times_stand_where_frames_stood(plain):
    layout = named("qwen2_vl").lvlm().prepare(str(plain), QUESTIONS[0]).layout
    assert [frames.seconds for frames in layout.frames] == [(0.0, 0.5), (1.0, 1.5), (2.0, 2.5)]


def test_a_number_of_frames_is_taken_evenly(plain):
    file = VideoFile(plain, frames=5)
    chosen = read_video(file, None)
    assert chosen.numbers == (0, 4, 9, 14, 19) == tuple(numbers(chosen.frames))
    assert chosen.seconds == tuple(number / 8 for number in chosen.numbers)
    assert len(read_video(VideoFile(plain, frames=100), None).frames) == 24
    prompt = named("llava_onevision").lvlm().prepare([file, picture(1, SIZES[0])], QUESTIONS[0])
    assert [frames and frames.first for frames in prompt.layout.frames] == [0, 1, 2, 3, 4, None]


def test_a_file_stands_in_a_conversation(plain):
    vlm = named("qwen2_vl").lvlm()
    parts = [{"type": "video", "path": str(plain)}, {"type": "text", "text": "What is it?"}]
    spoken = vlm.prepare(None, [{"role": "user", "content": parts}])
    assert spoken.text == vlm.prepare(VideoFile(plain), "What is it?").text
    assert len(spoken.layout.frames) == 3


# ------------------------------------------------------------------------------------ what it shows


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("b.mkv", "mpeg4"), ("c.mov", "libx264"), ("d.webm", "libvpx")],
)
def test_every_container_gives_the_frames_of_these_numbers(clips, name, codec):
    file = VideoFile(clip(clips / name, codec=codec))
    assert (file.contents.frames, file.contents.rate) == (24, 8.0)
    assert numbers(frames_at(file, [0, 3, 4, 4, 10, 23])) == [0, 3, 4, 4, 10, 23]


def test_of_uneven_frames_those_are_taken_that_are_shown_at_the_moment(clips):
    ticks = [0, 100, 200, 2000, 2100, 4000]
    file = VideoFile(clip(clips / "uneven.mkv", 6, ticks=ticks))
    assert file.contents.rate == 1.25  # five steps in four seconds
    moments = [number / 1.25 for number in range(6)]
    shown = [max(n for n, tick in enumerate(ticks) if tick <= 1000 * t) for t in moments]
    assert numbers(frames_at(file, range(6))) == shown == [0, 2, 2, 4, 4, 5]


def test_a_video_that_was_filmed_upright_is_upright(clips):
    """The display matrix of a phone that was held upright: a quarter turn clockwise."""
    path = clip(clips / "turned.mp4", 4, size=(64, 32), codec="mpeg4")
    data = path.read_bytes()
    unit, one = 1 << 16, 1 << 30
    level = struct.pack(">9i", unit, 0, 0, 0, unit, 0, 0, 0, one)
    start = data.index(level, data.index(b"tkhd"))
    turned = struct.pack(">9i", 0, unit, 0, -unit, 0, 0, 32 * unit, 0, one)
    path.write_bytes(data[:start] + turned + data[start + len(level) :])
    import av

    with av.open(str(clips / "half.mp4"), "w") as container:  # its left half is white
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:, :32] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = (clips / "half.mp4").read_bytes()
    start = data.index(level, data.index(b"tkhd"))
    path.write_bytes(data[:start] + turned + data[start + len(level) :])
    (frame,) = frames_at(VideoFile(path), [0])
    assert frame.size == (32, 64)
    # A quarter turn clockwise brings what was left to the top.
    assert np.asarray(frame)[:24].mean() > 240 > 20 > np.asarray(frame)[40:].mean()


def test_a_file_is_known_by_its_ending_or_its_beginning(clips, plain):
    bare = clips / "bare"
    for path in (plain, clip(clips / "k.mkv", 2), clip(clips / "l.avi", 2)):
        bare.write_bytes(path.read_bytes())
        assert is_video_file(bare)
    picture(1, SIZES[0]).save(clips / "p.avif")
    bare.write_bytes((clips / "p.avif").read_bytes())
    assert not is_video_file(bare)
    assert is_video_file("no/such/Clip.MOV")
    assert not is_video_file("no/such/file")
    assert not is_video_file(picture(1, SIZES[0]))


# ------------------------------------------------------------------------------------- said clearly


def refused(path, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        frames_at(VideoFile(path), [0])
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(clips, plain):
    data = plain.read_bytes()
    broken = clips / "broken.mp4"
    for content, pattern in (
        (data[: len(data) // 2], r"(has no video in it|cannot be read) .*cut off"),
        (b"hello\n" * 100, "cannot be read .*Invalid data"),
        (b"", "is empty"),
        (f"#EXTM3U\n#EXTINF:3,\n{plain}\n#EXT-X-ENDLIST\n".encode(), "cannot be read"),
        (f"ffconcat version 1.0\nfile {plain.name}\n".encode(), "cannot be read"),
    ):
        broken.write_bytes(content)
        refused(broken, f"video '.*broken.mp4' {pattern}")
    matroska = clip(clips / "whole.mkv").read_bytes()
    (clips / "cut.mkv").write_bytes(matroska[: len(matroska) // 3])
    refused(clips / "cut.mkv", "is cut off")
    refused(clips / "none.mp4", "does not exist")
    refused(clips, "is a directory; give the path of one video")
    os.mkfifo(clips / "endless.mp4")
    refused(clips / "endless.mp4", "is not a regular file")


@pytest.mark.parametrize("name", ["hurt.mp4", "hurt.mkv", "hurt.avi"])
def test_damaged_files_are_read_or_refused_and_no_more(clips, name):
    data = clip(clips / name, 8).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(12):
        hurt = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(len(hurt), size=8):
            hurt[place] = rng.integers(256)
        (clips / name).write_bytes(hurt)
        with suppress(InputError):
            assert len(frames_at(VideoFile(clips / name), [0, 5])) == 2


def test_a_file_without_moving_pictures_is_refused(clips):
    import av

    path = clips / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(path, "has no video in it")


def test_a_file_that_states_more_frames_than_it_has_is_refused(clips, plain):
    """Its table is at the front, and its end is missing."""
    import av

    path = clips / "front.mp4"
    with (
        av.open(str(plain)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    data = path.read_bytes()
    path.write_bytes(data[:-200])
    refused(path, r"is cut off: \d+ of its 24 frames are there|cannot be read")


@pytest.mark.parametrize(
    ("limit", "value", "pattern"),
    [
        ("MAX_BYTES", 1000, "bytes, but at most 1,000 are read"),
        ("MAX_SECONDS", 2.0, "is 3 s long, but at most 2 s are read"),
        ("MAX_STORED", 20, "has more than 20 frames"),
        ("MAX_PIXELS", 1000, "cannot be read|has no frame that can be decoded"),
    ],
)
def test_limits_are_said(monkeypatch, plain, limit, value, pattern):
    monkeypatch.setattr(video_files, limit, value)
    refused(plain, pattern)


def test_frames_that_are_too_many_for_the_memory_are_said(monkeypatch, plain):
    monkeypatch.setattr(video_files, "MAX_MEMORY", 3 * 32 * 48 * 5)
    assert len(frames_at(VideoFile(plain), range(5))) == 5
    with pytest.raises(InputError, match=r"6 frames of 32 x 48 pixels, but 5 .*--frames"):
        frames_at(VideoFile(plain), range(6))
    with pytest.raises(InputError, match="frames=0; give an integer from 1 to 768"):
        VideoFile(plain, frames=0)


def test_frames_of_several_sizes_are_refused(clips):
    """Two streams of MPEG-1, one after the other, as a recording that changes on the way."""
    both = [clip(clips / f"{n}.mpg", 12, rate=24, size=size, codec="mpeg1video")
            for n, size in enumerate(((32, 48), (64, 48)))]  # fmt: skip
    path = clips / "both.mpg"
    path.write_bytes(b"".join(part.read_bytes() for part in both))
    file = VideoFile(path)
    with pytest.raises(InputError, match="changes its size on the way"):
        frames_at(file, range(0, file.contents.frames, 3))


def test_what_a_processor_cannot_choose_from_is_said(clips):
    path = clip(clips / "single.mp4", 1)
    vlm = sampling(named("qwen2_5_vl").lvlm())
    with pytest.raises(InputError, match=r"cannot choose frames of .*single.mp4', which has 1 "):
        vlm.prepare(path, "What is it?")
    assert len(vlm.prepare(VideoFile(path, frames=1), "What is it?").layout.frames) == 1


def test_without_pyav_it_is_said_what_to_install(monkeypatch, plain):
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(InputError, match=r"run: pip install 'vlmflow\[video\]'$"):
        vlmflow.VideoFile(plain).contents  # noqa: B018


def test_a_model_without_videos_is_asked_before_the_file_is_read(clips):
    with pytest.raises(InputError, match="type 'llava' take no videos here"):
        named("llava").lvlm().prepare(clips / "none.mp4", "What is it?")


def test_frames_taken_from_a_file_have_their_metadata(plain):
    chosen = read_video(VideoFile(plain, frames=2), None)
    assert isinstance(chosen, ChosenFrames)
    assert chosen.metadata() == {
        "total_num_frames": 24, "fps": 8.0, "frames_indices": [0, 12], "duration": 3.0,
    }  # fmt: skip
    assert pytest.approx(np.asarray(chosen.frames[1]).mean(), abs=STEP / 2) == STEP * 12
