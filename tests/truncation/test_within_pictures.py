"""Keeping some tokens of every picture and of every group of frames, against the slow way."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.lvlm.test_families import QUESTIONS
from tests.lvlm.test_video_models import prompts
from tests.support import masked_truncation, slow_truncation
from tests.support.families import SIZES, picture
from tests.support.tiny_video import VIDEO_FAMILIES, named, video
from vlmflow.errors import InputError
from vlmflow.lvlm.tokens import end_ids
from vlmflow.truncation import Truncation
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.remainder import fold
from vlmflow.truncation.within_pictures import shared_out

each_family = pytest.mark.parametrize("family", VIDEO_FAMILIES, ids=lambda family: family.name)
KEEPS = (0.6, 0.3)


def slowly_shared_out(count, sizes):
    """One token after the other, each to the picture with the largest quotient."""
    kept = [1] * len(sizes)
    while sum(kept) < count:
        open_ones = [number for number, size in enumerate(sizes) if kept[number] < size]
        kept[max(open_ones, key=lambda n: (sizes[n] / (kept[n] + 0.5), -kept[n], -n))] += 1
    return kept


def pictures_of(layout):
    """The picture of every image token, by what lies between them in the layout."""
    numbers = {
        int(position): number
        for number, grid in enumerate(layout.grids)
        for position in grid.positions.flatten()
    }
    last = 0  # a token without a place ends its video
    for position in layout.image_positions.tolist():
        last = numbers.setdefault(position, last)
    return numbers


def within(numbers, sizes, rank_by, left, keep, *shown):
    """Choose the slow way in every picture alone."""
    kept = []
    for number, count in enumerate(slowly_shared_out(keep, sizes)):
        own = [position for position in left if numbers[position] == number]
        kept += slow_truncation.choose(rank_by, own, count, *shown)
    return sorted(kept)


# -------------------------------------------------------------------------- how many of each


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.data())
def test_tokens_are_shared_out_as_one_after_the_other(sizes, data):
    count = data.draw(st.integers(len(sizes), sum(sizes)))
    shares = shared_out(count, sizes)
    assert shares == slowly_shared_out(count, sizes)
    assert sum(shares) == count
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if count > len(sizes):  # a later stage asks for nothing that is gone
        fewer = shared_out(count - 1, sizes)
        assert all(less <= more for less, more in zip(fewer, shares, strict=True))


def test_equal_groups_keep_as_many():
    assert shared_out(16, [64] * 8) == [2] * 8
    assert shared_out(18, [64] * 8) == [3, 3, 2, 2, 2, 2, 2, 2]
    assert shared_out(6, [100, 20]) == [5, 1]


# ------------------------------------------------------------------------------- really removed


@pytest.mark.parametrize(
    ("family", "ranking"),
    [
        *((family, "last_attention") for family in VIDEO_FAMILIES),
        *((named("qwen3_vl"), ranking) for ranking in ("mean_attention", "diversity")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_truncation_within_pictures_equals_hiding_tokens(monkeypatch, family, ranking):
    vlm = family.lvlm("eager")
    # Beside pictures, LLaVA-OneVision does not say which tokens are a video's.
    chosen = prompts(vlm, (None, None))[: 1 if family.name == "llava_onevision" else 2]
    layers = (2,) if family.first_attention else (1, 2)  # every other layer has attention there
    policy = Truncation(layers, KEEPS[-len(layers) :], rank_by=ranking, within="picture")
    for prompt in chosen:
        length = len(prompt.layout)
        _, output = vlm.generate_with(
            prompt, max_new_tokens=2, truncation=policy, options={
                "min_new_tokens": 2, "output_logits": True, "suppress_tokens":
                [*vlm.image_token_ids, *end_ids(vlm.model, vlm.processor.tokenizer)],
            },
        )  # fmt: skip
        whole = vlm.with_answer(prompt, output.sequences[0, length:-1].tolist())
        numbers = pictures_of(whole.layout)
        sizes = [size for _, size in sorted(Counter(numbers.values()).items())]
        monkeypatch.setattr(masked_truncation, "choose", partial(within, numbers, sizes))
        expected, seen = masked_truncation.masked_logits(
            vlm.model, vlm.decoder_layers, whole, policy, vlm.image_token_id
        )
        torch.testing.assert_close(
            torch.cat(output.logits), expected[length - 1 :], rtol=1e-4, atol=5e-5
        )
        left = Counter(numbers[position] for position in seen[-1] if position in numbers)
        assert set(left) == set(numbers.values())  # no moment is lost


@each_family
def test_every_group_of_frames_keeps_its_share_in_a_batch(family):
    vlm = family.lvlm()
    batch = [vlm.prepare(video(6, seed=seed), question) for seed, question in enumerate(QUESTIONS)]
    policy = Truncation(layer=1, keep=0.5, rank_by="random", within="picture")
    with policy(vlm.model) as run:
        answers = [vlm.generate_ids(prompt, max_new_tokens=2) for prompt in batch]
    (positions,) = [run.positions_per_layer()[-1]]
    numbers = pictures_of(batch[-1].layout)
    left = Counter(numbers[int(p)] for p in positions if int(p) in numbers)
    sizes = Counter(numbers.values())
    for number, size in sizes.items():
        assert abs(left[number] - size / 2) <= 1
    assert vlm.generate_batch(batch, max_new_tokens=2, truncation=policy) == answers


def test_random_choices_differ_between_groups():
    vlm = named("qwen2_vl").lvlm()
    prompt = vlm.prepare(video(8, (60, 60)), QUESTIONS[0])
    policy = Truncation(layer=1, keep=0.5, rank_by="random", within="picture")
    with policy(vlm.model) as run:
        vlm.generate_ids(prompt, max_new_tokens=1)
    left = set(map(int, run.positions_per_layer()[-1]))
    kept = {
        tuple(number for number, place in enumerate(grid.positions.flatten()) if int(place) in left)
        for grid in prompt.layout.grids
    }
    assert len(kept) == len(prompt.layout.grids) > 2


# ----------------------------------------------------------------------------------- merging


def test_merging_stays_within_a_picture():
    torch.manual_seed(0)
    hidden, sizes = torch.randn(8, 5), torch.tensor([1.0, 2, 1, 1, 3, 1, 1, 1])
    kept, removed = torch.tensor([0, 4]), torch.tensor([1, 2, 3, 5, 6])
    pictures = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1, 1])
    hidden[1], hidden[5] = hidden[4] * 2, hidden[0] * 2  # most like one of the other picture
    states, total = fold(hidden, sizes, kept, removed, "merge", pictures)
    for place, members in ((0, [0, 1, 2]), (4, [4, 3, 5, 6])):
        weight = sizes[members]
        mean = (hidden[members] * weight[:, None]).sum(0) / weight.sum()
        torch.testing.assert_close(states[place], mean)
        assert total[place] == weight.sum()
    across, _ = fold(hidden, sizes, kept, removed, "merge")
    assert not torch.allclose(across, states)


def test_a_truncation_merges_within_groups_of_frames():
    """Another group's frames may become anything: what stays of this one is the same."""
    vlm = named("qwen2_vl").lvlm()
    states = []
    policy = Truncation(0, 4, rank_by="uniform", remainder="merge", within="picture")
    for seed in (3, 4):
        frames = [picture(1, SIZES[0]), picture(1, SIZES[0]), *[picture(seed, SIZES[0])] * 2]
        prompt = vlm.prepare(vlm_video(frames), QUESTIONS[0])
        with policy(vlm.model) as run:
            given = []
            handle = vlm.decoder_layers[0].register_forward_pre_hook(
                lambda _, args, kwargs, given=given: given.append(
                    (args[0] if args else kwargs["hidden_states"]).clone()
                ),
                with_kwargs=True,
            )
            vlm.generate_ids(prompt, max_new_tokens=1)
            handle.remove()
        kept = [int(p) for p in run.positions_per_layer()[0]]
        numbers = pictures_of(prompt.layout)
        assert Counter(numbers[p] for p in kept if p in numbers) == {0: 2, 1: 2}
        states.append({p: given[0][0, row] for row, p in enumerate(kept)})
    for position in states[0]:
        same = torch.allclose(states[0][position], states[1][position], atol=1e-6)
        assert same == (numbers.get(position, 0) == 0)


def vlm_video(frames):
    import vlmflow

    return vlmflow.Video(frames, seconds=[0.5 * number for number in range(len(frames))])


# -------------------------------------------------------------------------- settings and words


def test_the_setting_goes_through_text_and_json():
    policy = Truncation.parse("layer=2,keep=0.25,within=picture")
    assert policy == Truncation(2, 0.25, within="picture")
    assert Truncation.from_json(policy.to_json()) == policy
    assert "within='picture'" in repr(policy)
    assert "within" not in Truncation(2, 0.25).to_json()
    kept = ExitPolicy(2, 0.25, within="picture", signal="hidden_step", thresholds=(0.5,))
    assert ExitPolicy.from_json(kept.to_json()).within == "picture"


def test_what_cannot_be_is_said():
    with pytest.raises(InputError, match="within='frame' is unknown; there are prompt, picture"):
        Truncation(2, 0.5, within="frame")
    with pytest.raises(InputError, match="remainder='average' makes one token of all pictures"):
        Truncation(2, 0.5, within="picture", remainder="average")
    vlm = named("qwen2_vl").lvlm()
    prompt = vlm.prepare(video(6), QUESTIONS[0])
    with pytest.raises(InputError, match="2 are to stay of 3; keep at least 3"):
        vlm.generate_ids(prompt, truncation=Truncation(1, 2, within="picture"))
    tiles = named("llava_onevision").lvlm()
    prompt = tiles.prepare(picture(1, SIZES[0]), QUESTIONS[0])
    with pytest.raises(InputError, match="is not known for this model; leave it out"):
        tiles.generate_ids(prompt, truncation=Truncation(1, 2, within="picture"))


def test_one_picture_alone_is_the_whole_prompt():
    vlm = named("llava").lvlm()
    prompt = vlm.prepare(picture(1, SIZES[0]), QUESTIONS[0])
    runs = []
    for where in ("prompt", "picture"):
        with Truncation(1, 3, rank_by="key_norm", within=where)(vlm.model) as run:
            vlm.generate_ids(prompt, max_new_tokens=2)
        runs.append([list(map(int, kept)) for kept in run.positions_per_layer()])
    assert runs[0] == runs[1]
