"""Exits in batches are compared with exits one by one, and counted where they differ."""

from __future__ import annotations

import vlmflow
from benchmarks.batched_exits import alone, differing, together
from tests.support.tiny import tiny_llava
from vlmflow.scenes import samples


def test_float32_batches_leave_where_each_leaves_alone():
    vlm = vlmflow.LVLM(*tiny_llava(5), name="tiny")
    prompts = [
        vlm.prepare(sample.picture, sample.question)
        for task in ("scenes-reasoning", "scenes-existence")
        for sample in samples(task, "test", 3)
    ]
    settings = {"layer": (1, 2), "keep": (0, 0), "signal": "image_attention"}
    shares = []
    for threshold in (-1.0, -0.6, -0.5, -0.4, 0.0):
        policy = vlmflow.ExitPolicy(**settings, thresholds=(threshold, threshold))
        one = alone(vlm, prompts, policy, 3)
        assert differing(one, together(vlm, prompts, policy, 3, 4)) == (0, 0)
        shares.append(sum(layer < vlm.num_layers for layer, _ in one))
    assert max(shares) > 0  # somebody leaves


def test_what_differs_is_counted():
    one = [(1, (5,)), (4, (5, 6)), (4, ())]
    assert differing(one, [(1, (5,)), (2, (5, 6)), (4, (7,))]) == (1, 1)
