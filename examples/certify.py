"""Find where each prompt may drop its image tokens, at a risk that is promised.

python examples/certify.py                            # the bundled model
python examples/certify.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys

import vlmflow

vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")

# A weak promise from few samples, so that it is done in seconds. Leave the settings out for the
# usual one: with 90 % confidence at most 5 % of the answers change, on 500 calibration samples.
half = vlm.num_layers // 2
settings = vlmflow.CertifySettings(
    risk=0.3, calibration=30, samples=6, layers=(half - 1, half + 2), keeps=(0.0,), timed=0
)
certificate = vlmflow.certify(vlm, "scenes-existence", settings=settings, out="policy.json")
print("the page is policy/certificate.html")

if certificate.policy is None:
    print("nothing could be promised; the page says why")
else:
    picture, question = vlmflow.sample("scenes-existence", index=0)
    print(question, "->", vlm.generate(picture, question, policy=certificate))
    with vlmflow.ExitPolicy.load("policy.json")(vlm.model) as run:  # a plain transformers model
        inputs = vlm.prepare(picture, question).inputs
        vlm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    print(f"left at layer {run.exit_layers[0]} of {vlm.num_layers}")
