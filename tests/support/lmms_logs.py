"""Logs as lmms-eval 0.7.3 writes them with --log_samples: no model, no lmms-eval."""

from __future__ import annotations

import json

COUNT = 200


def logged(folder, arguments="", *, right=COUNT, task="seeing", model="vlmflow", **changes):
    """Write what lmms-eval 0.7.3 writes: the first ``right`` of the documents are right."""
    folder = folder / "tiny-model"
    folder.mkdir(parents=True, exist_ok=True)
    count, pictures = changes.get("count", COUNT), changes.get("pictures")
    lines = [
        {
            "doc_id": number,
            "target": "yes",
            "filtered_resps": "yes" if number < right else changes.get("wrong", "no"),
            "token_counts": [{"input_tokens": 9, "output_tokens": 1}],
            "doc_hash": "74234e98",
            "accuracy": float(number < right),
            "graded": {"score": number < right, "question_id": number},
            "words": {"said": 3},
            "input": f"{changes.get('question', 'Is it')} {number}?",
            **({"input_media": [f"{number // pictures}.png"]} if pictures else {}),
        }
        for number in range(count)
    ]
    (folder / f"20260101_000000_samples_{task}.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), "utf-8"
    )
    results = {
        "config": {"model": model, "model_args": arguments or "pretrained=tiny"},
        "configs": {task: {"generation_kwargs": {"max_new_tokens": changes.get("longest", 8)}}},
        "higher_is_better": {task: {"accuracy": changes.get("higher", True)}},
    }
    (folder / "20260101_000000_results.json").write_text(json.dumps(results), "utf-8")
    return folder.parent
