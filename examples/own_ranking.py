"""Write a ranking of your own, and compare it with two others and with random tokens.

python examples/own_ranking.py                            # the bundled model
python examples/own_ranking.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys
from dataclasses import dataclass

import vlmflow


@dataclass(frozen=True)
class Unusual(vlmflow.Ranking):
    """Keeps tokens that differ from their picture's mean state."""

    power: float = 1.0

    def scores(self, seen):
        states = seen.hidden[seen.image].float()
        return (states - states.mean(0)).norm(dim=-1) ** self.power


vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")
rankings = (Unusual(power=2), "last_attention", "diversity")
result = vlmflow.study(
    vlm,
    "scenes-reading",
    [vlmflow.Truncation(layer=2, keep=0.25, rank_by=ranking) for ranking in rankings],
    out="rankings",
    samples=8,  # so few that intervals are wide; leave both out for 200
    calibration=2,
    controls=["random"],
    timed=0,
)
table = result.arm_frame().query("split == 'test'")
print(table[["arm", "score", "score low", "score high"]].to_string(index=False))
