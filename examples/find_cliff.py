"""Find the layer from which on image tokens are no longer needed.

python examples/find_cliff.py                            # the bundled model
python examples/find_cliff.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys

import vlmflow

vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")

# So few samples that it is done in seconds, and intervals are wide; leave both numbers out.
study = vlmflow.cliff_study(vlm, "scenes-existence", samples=12, calibration=4, out="cliff")
print(study.layer_frame()[["layer", "changed", "changed low", "changed high"]].to_string())
print("the page is cliff/cliff.html")

picture, question = vlmflow.sample("scenes-reading", index=3)
curve = vlm.removal_curve(picture, question)  # all layers in one pass
for layer, same in zip(curve.layers, curve.same_answer, strict=True):
    print(f"no image token from layer {layer} on: {'same' if same else 'another'} answer")
