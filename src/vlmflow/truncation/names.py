"""Names of the rankings, known without importing torch."""

from __future__ import annotations

RANKINGS: dict[str, str] = {
    "last_attention": "attention of the last prompt token (the paper's eq. 12; FastV's code)",
    "mean_attention": "mean attention from all later tokens (FastV's text)",
    "text_attention": "mean attention from the text after the picture (SparseVLM's raters)",
    "saliency": "oracle: flow map of the first answer token up to the layer",
    "llava_cam": "oracle: LLaVA-CAM of the first answer token at the layer before",
    "key_norm": "small key norm first (Devoto et al. 2024)",
    "value_norm": "large value norm first",
    "question_similarity": "likeness to the question's tokens (Simignore's idea, without options)",
    "duplication": "least like a few pivot tokens (DART)",
    "diversity": "farthest from those already kept (DivPrune)",
    "random": "seeded random choice: the control",
    "uniform": "evenly over the picture: the other control",
    "top_left": "the top left corner: for studies' down-sampled pictures, which lie there",
}
"""Name and one line on every ranking."""

ATTENTION_RANKINGS = (
    *("last_attention", "mean_attention", "text_attention"),
    *("key_norm", "value_norm", "duplication"),
)
"""Those that read queries, keys or values of the layer before."""

ORACLE_RANKINGS = ("saliency", "llava_cam")
"""Those that look at the answer."""
