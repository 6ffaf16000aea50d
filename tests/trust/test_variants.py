"""The scores that curves of token probabilities come to, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmflow.trust.variants import SCORES, curves_of, needing, token_means

# Two tokens: one that the picture lifts from 0.1 to 0.9, one at 0.5 whatever is shown.
INSERTION = np.log([[0.1, 0.5], [0.3, 0.5], [0.9, 0.5]])
DELETION = np.log([[0.9, 0.5], [0.1, 0.5], [0.1, 0.5]])


def test_scores_by_hand():
    means = token_means(INSERTION, DELETION)
    assert needing(INSERTION).tolist() == [True, False]
    curves = {score: curves_of(score, means) for score in SCORES}
    np.testing.assert_allclose(curves["probability"].insertion, [0.3, 0.4, 0.7])
    np.testing.assert_allclose(curves["probability"].deletion, [0.7, 0.3, 0.3])
    np.testing.assert_allclose(curves["logprob"].insertion, INSERTION.mean(1))
    np.testing.assert_allclose(curves["needed"].insertion, [0.1, 0.3, 0.9])
    np.testing.assert_allclose(curves["normalised"].insertion, [0, 0.25, 1], atol=1e-12)
    np.testing.assert_allclose(curves["normalised"].deletion, [1, 0, 0], atol=1e-12)


def test_what_the_picture_adds_too_little_to_is_left_out():
    flat = np.log([[0.5, 0.5], [0.6, 0.5], [0.69, 0.5]])  # 0.19 more, 0.095 in the mean
    means = token_means(flat, flat[::-1])
    assert not needing(flat).any()
    assert curves_of("needed", means) is None
    assert curves_of("normalised", means) is None
    assert curves_of("probability", means).difference == pytest.approx(0)
    # A picture that harms an answer is not one it needs.
    harmed = token_means(flat[::-1] * 3, flat * 3)
    assert curves_of("normalised", harmed) is None
