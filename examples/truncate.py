"""Remove image tokens while a plain transformers model answers, and see what each layer had left.

python examples/truncate.py                            # the bundled model
python examples/truncate.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys

import vlmflow

vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")
picture, question = vlmflow.sample("scenes-reading", index=3)
inputs = vlm.prepare(picture, question).inputs  # what the model's own processor gives

half = vlm.num_layers // 2
for truncation in (
    vlmflow.Truncation(layer=half, keep=0),
    vlmflow.Truncation(layer=half, keep=0.25, rank_by="text_attention"),
    vlmflow.preset("fastv", vlm.num_layers),
):
    with truncation(vlm.model) as run:
        output = vlm.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = vlm.processor.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    print(f"{truncation}: {answer.strip()!r}, tokens per layer {run.tokens_per_layer[0].tolist()}")
print("untouched:", vlm.generate(picture, question))
