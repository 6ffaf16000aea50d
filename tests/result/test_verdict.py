"""A finding in words names the place that holds the map, and says what the picture is worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.synthetic import synthetic_flow
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.videos import Frames
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.result.reading import mass_in, smallest_box
from vlmflow.result.sentences import shown_things
from vlmflow.result.verdict import verdict


def flow_of(values, *, grid=(4, 4), **options):
    """A result whose flow map is these values, (rows, columns), for every target."""
    flow = synthetic_flow(grid=grid, **options)
    row = np.asarray(values, dtype=np.float32).ravel()
    maps = dict(flow.maps) | {"flow_map": np.broadcast_to(row, flow.maps["flow_map"].shape)}
    return dataclasses.replace(flow, maps=maps)


def test_the_smallest_box_is_that_of_trying_every_box():
    rng = np.random.default_rng(0)
    for seed in range(20):
        flow = synthetic_flow(grid=(4, 5), seed=seed)
        values = rng.gamma(0.4, size=20)
        layout = flow.layout
        (grid,) = layout.grids
        best = None
        table = values.reshape(4, 5) / values.sum()
        areas = np.outer(np.diff(grid.y_edges)[:, 0], np.diff(grid.x_edges)[:, 0])
        for y0 in range(4):
            for y1 in range(y0 + 1, 5):
                for x0 in range(5):
                    for x1 in range(x0 + 1, 6):
                        mass = table[y0:y1, x0:x1].sum()
                        area = areas[y0:y1, x0:x1].sum()
                        if mass >= 0.5 and (best is None or area < best[0] - 1e-6):
                            best = area, mass
        width, height = layout.image_sizes[0]
        reading = smallest_box(values, layout)
        assert reading.area == pytest.approx(best[0] / (width * height))
        again = mass_in(values, layout, reading.box)
        assert again.mass == pytest.approx(reading.mass)
        assert again.area == pytest.approx(reading.area)


@pytest.mark.parametrize(
    ("at", "place"),
    [
        ((0, 0), "the upper left"), ((0, 2), "the top"), ((0, 4), "the upper right"),
        ((2, 2), "the middle"), ((4, 0), "the lower left"), ((2, 4), "the right"),
    ],
)  # fmt: skip
def test_the_headline_names_the_place(at, place):
    values = np.full((5, 5), 0.01)
    values[at] = 1
    flow = flow_of(values, grid=(5, 5))
    said = verdict(flow)
    assert said.headline.startswith(
        f"It read {place} of the picture: 81\u00a0% of the flow_map lies"
    )
    assert f"in {100 * said.reading.area:.1f}\u00a0% of it." in said.headline
    word = flow.answer_tokens[1].strip()
    assert verdict(flow, 2).headline.startswith(f"For “{word}” the model read {place}")


def test_an_even_map_reads_all_over_the_picture():
    said = verdict(flow_of(np.ones((4, 4))))
    assert said.headline == (
        "It read all over the picture: half of the flow_map takes 38\u00a0% of it."  # 75 % is seen
    )


def test_a_region_is_named_only_where_the_map_lies_on_it():
    values = np.zeros((4, 4))
    values[1, 2] = 3
    values[3, 0] = 1
    flow = flow_of(values)
    box, other = (tuple(map(float, flow.token_boxes()[token])) for token in (6, 0))
    width, height = flow.layout.image_sizes[0]
    everything = (0.0, 0.0, float(width), float(height))
    said = verdict(flow, 0, {"the cup": box, "the door": other, "the room": everything})
    assert said.headline.startswith("It read the cup: 75\u00a0% of the flow_map lies there, on ")
    assert said.reading.box == box
    assert "the room" not in verdict(flow, 0, {"the room": everything}).headline
    assert "the door" not in verdict(flow, 0, {"the door": other}).headline


def test_without_a_map_or_a_grid_the_attention_is_said():
    flow = synthetic_flow()
    for poor in (
        dataclasses.replace(flow, maps={}, flags={}),
        dataclasses.replace(
            flow, layout=dataclasses.replace(flow.layout, grids=(), grids_missing="none")
        ),
    ):
        said = verdict(poor)
        assert said.headline.startswith("At layer 0 the answer draws")
        assert said.reading is None


def with_effect(own, blind, likeliest, answer=("Yes",)):
    effect = PictureEffect(np.array(own), np.array(blind), likeliest)
    return dataclasses.replace(synthetic_flow(answer_tokens=answer), picture_effect=effect)


def test_the_picture_decides_or_does_not():
    flow = with_effect([0.98], [0.03], ("No",))
    assert verdict(flow).picture == (
        "Without the picture it would say “No” (probability 3.0\u00a0% instead of 98\u00a0% for "
        "this answer)."
    )
    flow = with_effect([0.98], [0.9], ("Yes",))
    assert verdict(flow).picture == (
        "The model gives this answer without the picture, too (probability 90\u00a0% instead of "
        "98\u00a0%)."
    )
    flow = with_effect([0.5, 0.5], [0.5, 0.1], ("a", "dog"), answer=("a", " cat"))
    assert verdict(flow).picture.startswith("Without the picture it would answer something else")
    assert "5.0\u00a0% instead of 25\u00a0%" in verdict(flow).picture
    assert verdict(flow, 2).picture == (
        "Without the picture “cat” has a probability of 10\u00a0% instead of 50\u00a0%; “dog” "
        "would be likelier."
    )
    assert "it would still be the likeliest" in verdict(flow, 1).picture


def test_what_was_not_measured_is_said_not_to_be():
    assert "was not measured" in verdict(synthetic_flow()).picture


def test_several_pictures_are_several():
    flow = synthetic_flow(sizes=((240, 240),) * 2, grid=(4, 4), answer_tokens=("Yes",))
    effect = PictureEffect(np.array([0.9]), np.array([0.1]), ("No",))
    said = verdict(dataclasses.replace(flow, picture_effect=effect)).picture
    assert said.startswith("Without the pictures it would say “No”")


def test_hostile_tokens_are_spelled_out():
    flow = with_effect([0.9], [0.1], ("\u202eNo",), answer=("Yes\u200b",))
    assert "⟦U+202E⟧No" in verdict(flow).picture
    assert "⟦U+200B⟧" in verdict(flow, 1).headline


@pytest.mark.parametrize(
    ("frames", "things"),
    [
        ((), "picture"),
        ((None, None), "pictures"),
        ((Frames(0, 0, 1), Frames(0, 2, 3)), "video"),
        ((Frames(0, 0, 0), Frames(1, 0, 0)), "videos"),
        ((Frames(0, 0, 1), None, None), "pictures and video"),
    ],
)
def test_what_a_question_shows_has_its_name(frames, things):
    sizes = ((4, 3),) * max(1, len(frames))
    assert shown_things(TokenLayout(np.array([1]), ("i",), sizes, frames=frames)) == things
