"""Explain the answers to a list of questions: a folder of reports, wrong answers first.

python examples/explain_folder.py                            # the bundled model
python examples/explain_folder.py llava-hf/llava-1.5-7b-hf   # a model of the hub, or a directory
"""

import sys

import vlmflow

vlm = vlmflow.load(sys.argv[1] if len(sys.argv) > 1 else "scenes-llava")

options = vlmflow.ExplainOptions(signals=["sensitivity"], per_token=False)
explained = vlmflow.explain_task(
    vlm,
    "scenes-reasoning",  # or "questions.jsonl", which 'vlmflow sample' writes
    out="explained-answers",
    samples=6,
    options=options,
)
for answer in explained.answers:
    print(f"{answer.sample.key}: {answer.answer!r}, score {answer.score:.0f}. {answer.headline}")
print("the list is explained-answers/index.html")
