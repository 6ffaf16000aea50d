"""Write a signal of your own, and draw its map beside others.

python examples/own_signal.py                            # the bundled model
python examples/own_signal.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys
from dataclasses import dataclass

import vlmflow


@dataclass(frozen=True)
class Strongest(vlmflow.Signal):
    """The strongest look of any text row at each image token."""

    reads = "attention"
    rows = "text"
    label, colour, source = "strongest look", "#0072b2", "this example"

    def of_layer(self, seen):
        return seen.attention.amax(0)


vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")
picture, question = vlmflow.sample("scenes-reading", index=3)
flow = vlm.explain(picture, question, signals=[Strongest(), "saliency", "flow_map"])
middle = vlm.num_layers // 2
print(f"largest at layer {middle}: {flow.map('strongest', layer=middle).max():.3f}")
print(vlm.trust(flow, "strongest", layer=middle, steps=4))
print(f"the report is {vlmflow.report(flow, 'own-signal.html')}")
