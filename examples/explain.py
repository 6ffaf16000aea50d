"""Explain one answer, test its map, and write the report.

python examples/explain.py                            # the bundled model
python examples/explain.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys

import vlmflow

vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")
picture, question = vlmflow.sample("scenes-reading", index=3)

flow = vlm.explain(picture, question, trust=True)
print(f"{question} -> {flow.answer}")
print(flow.trust[0])

image_share = flow.segment_frame().query("segment == 'image' and target == 0")
print(image_share[["layer", "attention_share"]].to_string(index=False))

page = vlmflow.report(flow, "explained.html")
print(f"the report is {page}")
