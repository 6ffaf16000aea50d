"""`make lmms-eval`: forty bundled questions through lmms-eval, and the same answers without it.

    python benchmarks/lmms_eval/check.py FOLDER

Runs in an environment that has lmms-eval, offline. Every run is a process of `lmms-eval --model
vlmflow` in batches of eight; its answers and scores have to be those that the library gives one by
one, and three scores are stated here. Then `vlmflow study --import` reads the logs back.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from datasets import Dataset, Features, Image, Value

HERE = Path(__file__).parent / "task"
sys.path.insert(0, str(HERE))

from utils import questions  # noqa: E402

import vlmflow  # noqa: E402
from vlmflow.lmms_eval_model.arguments import Arguments, split_arguments  # noqa: E402

MODEL = "scenes-llava"
"""In float32: in bfloat16 a batch can change an answer whose two best tokens are a digit apart."""

RUNS = {
    "untouched": ("", 38),
    "safe": ("layer=6,keep=0.5,rank_by=uniform", 38),
    "random": ("layer=6,keep=0.5,rank_by=random", None),
    "own ranking": ("layer=4,keep=0.5,rank_by=every_other:EveryOther", None),
    "fastv": ("preset=fastv", None),
    "policy": ("policy=policy.json", None),
    "destructive": ("layer=3,keep=0", 6),
    "no image": ("layer=0,keep=0", None),
}
"""Of every run: what removes image tokens, and of three how many of the forty answers are right."""

POLICY = vlmflow.ExitPolicy(10, 0, signal="image_attention", thresholds=(-0.4,))
"""Half of the questions leave at layer 10, the others keep all."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "task").mkdir(parents=True)
    write_task(folder / "task")
    os.chdir(folder / "task")  # where every_other.py and policy.json are
    wrong, rights = [], {}
    for name, (removing, expected) in RUNS.items():
        arguments = ",".join(filter(None, (f"pretrained={MODEL},dtype=float32", removing)))
        logged = evaluate(folder, name, arguments)
        own = own_answers(arguments)
        rights[name] = sum(score for _, score in own.values())
        changed = sum(own[key] != (answer, score) for key, (answer, score) in logged.items())
        right = sum(score for _, score in logged.values())
        print(f"{name:12} {arguments:70} {right:.0f} of {len(logged)} right", flush=True)
        if changed or len(logged) != len(own):
            wrong.append(f"{name}: {changed} of {len(logged)} answers are not the library's own")
        if expected is not None and right != expected:
            wrong.append(f"{name}: {right:.0f} answers are right, {expected} were expected")
    wrong += read_back(folder, rights)
    if wrong:
        sys.exit("\n".join(wrong))


def write_task(folder: Path) -> None:
    """Write the questions with their pictures, and the files of the task beside them."""
    rows = [
        {
            "key": sample.key,
            "picture": sample.pictures[0],
            "question": sample.question,
            "answer": sample.references[0],
        }
        for sample in questions()[1].values()
    ]
    text = Value("string")
    features = Features({"key": text, "picture": Image(), "question": text, "answer": text})
    Dataset.from_list(rows, features=features).to_parquet(folder / "questions.parquet")
    for file in HERE.glob("*.py"):
        shutil.copy(file, folder)
    yaml = (HERE / "vlmflow_scenes.yaml").read_text("utf-8")
    POLICY.save(folder / "policy.json")
    data = json.dumps(str(folder / "questions.parquet"))
    (folder / "vlmflow_scenes.yaml").write_text(yaml.replace("DATA", data), "utf-8")


def evaluate(folder: Path, name: str, arguments: str) -> dict[str, tuple[str, float]]:
    """Run lmms-eval, and return every question's answer and score as it logged them."""
    out = folder / name
    command = [
        *(str(Path(sys.executable).with_name("lmms-eval")), "--model", "vlmflow"),
        *("--model_args", arguments, "--tasks", "vlmflow_scenes", "--include_path", "."),
        *("--device", "cpu", "--batch_size", "8", "--log_samples", "--output_path", str(out)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    caches = {"HF_HOME": str(folder / "hf"), "LMMS_EVAL_HOME": str(folder / "hf")}
    done = subprocess.run(
        command, env={**os.environ, **offline, **caches}, capture_output=True, text=True
    )
    logs = list(out.rglob("*_samples_vlmflow_scenes.jsonl"))
    if done.returncode or len(logs) != 1:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    keys = list(questions()[1])
    lines = map(json.loads, logs[0].read_text("utf-8").splitlines())
    logged = {keys[line["doc_id"]]: (line["filtered_resps"], line["accuracy"]) for line in lines}
    (results,) = out.rglob("*_results.json")
    reported = json.loads(results.read_text("utf-8"))["results"]["vlmflow_scenes"]
    mean = sum(score for _, score in logged.values()) / len(logged)
    assert abs(reported["accuracy,none"] - mean) < 1e-9, reported
    return logged


def own_answers(arguments: str) -> dict[str, tuple[str, float]]:
    """Answer one by one, without lmms-eval."""
    task, samples = questions()
    vlm, policy = Arguments.read(split_arguments(arguments)).open()
    vlm = vlmflow.LVLM(vlm.model, vlm.processor)
    answers = {}
    for key, sample in samples.items():
        answer = vlm.generate(
            sample.pictures, sample.question, max_new_tokens=16, truncation=policy
        )
        answers[key] = (answer, task.score(sample, answer))
    return answers


def read_back(folder: Path, rights: dict[str, float]) -> list[str]:
    """Import the logs as a study, and hold its table against the runs."""
    imports = [word for name in RUNS for word in ("--import", f"{name}={folder / name}")]
    program = str(Path(sys.executable).with_name("vlmflow"))
    subprocess.run([program, "study", *imports, "--out", str(folder / "study")], check=True)
    with (folder / "study" / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    return [
        f"{name}: imported score {rows[name]['score']}, expected {right / 40}"
        for name, right in rights.items()
        if abs(float(rows[name]["score"]) - right / 40) > 1e-9
    ]


if __name__ == "__main__":
    main()
