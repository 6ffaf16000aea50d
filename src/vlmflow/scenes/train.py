"""Train the bundled model: ``python -m vlmflow.scenes.train --out DIR``.

Two stages with one fixed seed, in bf16 autocast. First the vision tower learns to say what lies
under each patch; then the whole model learns conversations. ``training_log.csv`` says how far and
how long. A killed run continues from its last checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import AttentionInterface, LlavaForConditionalGeneration, LlavaProcessor

from vlmflow.scenes.architecture import build_model, build_processor, build_tokenizer
from vlmflow.scenes.conversations import (
    GRID,
    IGNORE,
    PATCH_LABELS,
    QUESTION_KINDS,
    Conversation,
    Conversations,
    Lesson,
)
from vlmflow.scenes.generator import COLOURS, KINDS, SIZES

SEED = 20240606
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 2e-3
BATCH = 32
# Words on image tokens first: attention by likeness, which text alone teaches, then finds them.
# Digits join them later; letters of options mean little before the answers themselves are known.
LESSONS = (
    Lesson(1400, 352, captions=0.3, descriptions=0.05, details=0.35, open=0.6, words=0.3),
    Lesson(400, 352, captions=0.25, descriptions=0.05, details=0.3, open=0.6, labels=0.3),
    Lesson(200, 352, captions=0.25, details=0.3, open=0.9, words=0.3, digits=True, labels=0.1),
    Lesson(
        400, 352, captions=0.2, details=0.2, places=0.12, open=0.9, comparisons=True, words=0.3,
        digits=True, labels=0.1,
    ),
    Lesson(
        400, 352, captions=0.2, details=0.12, places=0.15, open=0.85, comparisons=True, words=0.3,
        digits=True, labels=0.1, sides=0.3,
    ),
    Lesson(
        400, 352, captions=0.2, details=0.1, places=0.12, doubts=0.12, open=0.9, comparisons=True,
        words=0.2, digits=True, labels=0.1, sides=0.3, slope=2.0,
    ),
    Lesson(
        800, 352, captions=0.25, details=0.08, places=0.15, doubts=0.06, open=0.9,
        comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.5, slope=2.0,
    ),
    Lesson(
        600, 352, captions=0.25, details=0.06, places=0.1, doubts=0.06, open=0.55,
        comparisons=True, words=0.2, digits=True, labels=0.1, sides=0.3, slope=2.0,
    ),
    Lesson(
        600, 352, captions=0.3, details=0.04, places=0.04, doubts=0.08, open=0.3, comparisons=True,
        words=0.1, digits=True, labels=0.1, sides=0.1, slope=2.0,
    ),
)  # fmt: skip
STEPS = sum(lesson.steps for lesson in LESSONS)
# Learning rate of the second stage at some steps; straight lines between them.
RATES = {
    0: 0.0,
    100: 1.5e-3,
    1400: 1.0667e-3,
    1800: 1.0334e-3,
    3200: 5.51e-4,
    3300: 7.5e-4,
    4400: 6e-4,
    STEPS: 0.0,
}
VISION_SHARE = 0.3  # of the learning rate, for the vision tower in the second stage
PATCH_SHARE = 0.3  # weight of the patch labels, read off the tower, in the second stage
BACKGROUND_WEIGHT = 0.05
PLACE_CHANNELS = [list(PATCH_LABELS).index(name) for name in ("column", "row")]
CHECKPOINT_EVERY, LOG_EVERY = 200, 50


class Log:
    """Rows of the training log, on the terminal and in ``training_log.csv``."""

    fields = ("stage", "step", "seconds", "loss", "rate", *QUESTION_KINDS, *PATCH_LABELS)

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        rows: list[dict[str, str]] = []
        if start and path.exists():
            with path.open(newline="") as file:
                # What was logged after the checkpoint will be logged again.
                rows = [
                    row
                    for row in csv.DictReader(file)
                    if row["stage"] == "vision" or int(row["step"]) <= start
                ]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.fields)
            writer.writeheader()
            writer.writerows(rows)
        self.started = time.monotonic() - (float(rows[-1]["seconds"]) if rows else 0)

    def row(self, **values: float | str) -> None:
        """Append one row; columns that are not given stay empty."""
        values["seconds"] = round(time.monotonic() - self.started)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.fields).writerow(values)
        print("  ".join(f"{key} {value}" for key, value in values.items()), flush=True)


def _plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float,
    **_options: object,
) -> tuple[torch.Tensor, None]:
    """Attention as three matrix products in the autocast dtype, without dropout or padding.

    The backward of SDPA on a CPU takes most of a step at these short sequences. Shapes are those
    of ``transformers.AttentionInterface``.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if module.is_causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    weights = scores.softmax(-1, dtype=scores.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("vlmflow-training", _plain_attention)


def _batches(
    data: Conversations, batch: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    loader: DataLoader[Conversation] = DataLoader(
        data, batch_size=batch, num_workers=1, prefetch_factor=4
    )
    for tensors in loader:
        yield {key: value.to(device, non_blocking=True) for key, value in tensors.items()}


def _lesson_batches(
    processor: LlavaProcessor, start: int, steps: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of steps ``start + 1`` to ``steps``, lesson after lesson."""
    end = 0
    for lesson in LESSONS:
        begin, end = max(end, start), min(end + lesson.steps, steps)
        if begin < end:
            first = VISION_STEPS * VISION_BATCH + begin * BATCH
            count = (end - begin) * BATCH
            yield from _batches(Conversations(processor, lesson, count, first), BATCH, device)


def _lesson_at(step: int) -> Lesson:
    ends = itertools.accumulate(lesson.steps for lesson in LESSONS)
    return next(lesson for lesson, end in zip(LESSONS, ends, strict=True) if step <= end)


def _patch_heads(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Linear read-outs of the patch labels; tower and projected image tokens are equally wide."""
    width = model.model.vision_tower.config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in PATCH_LABELS.items()})
    return heads.to(model.device)


def _patch_loss(
    heads: nn.ModuleDict, features: torch.Tensor, patches: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of the patch labels, and the share right where there is something."""
    loss = torch.zeros((), device=features.device)
    right: dict[str, float] = {}
    for channel, (name, classes) in enumerate(PATCH_LABELS.items()):
        labels = patches[:, channel]
        weight = torch.ones(classes, device=features.device)
        weight[0] = BACKGROUND_WEIGHT
        scores = heads[name](features).float()
        loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), weight)
        seen = labels > 0
        right[name] = (scores.argmax(-1) == labels)[seen].float().mean().item()
    return loss, right


def _word_ids(processor: LlavaProcessor, device: torch.device) -> torch.Tensor:
    """Token of the word for each kind, colour, size and digit: (5, classes), padded with 0."""
    names = [[f" {word}" for word in group] for group in (KINDS, COLOURS, SIZES)]
    names += [[str(digit) for digit in range(10)]] * 2
    ids = torch.zeros(len(names), max(map(len, names)) + 1, dtype=torch.long)
    for row, group in enumerate(names):
        for column, word in enumerate(group, start=1):
            (ids[row, column],) = processor.tokenizer.encode(word, add_special_tokens=False)
    return ids.to(device)


def _side_ids(processor: LlavaProcessor, device: torch.device) -> torch.Tensor:
    """Tokens of the words for small and large columns and rows: (2, 2)."""
    words = ((" left", " right"), (" above", " below"))
    encode = processor.tokenizer.encode
    ids = [[encode(word, add_special_tokens=False) for word in pair] for pair in words]
    return torch.tensor(ids, device=device)[..., 0]


def _word_loss(
    model: LlavaForConditionalGeneration,
    words: torch.Tensor,
    embedded: torch.Tensor,
    patches: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of reading an object's words off its image tokens with the output embedding.

    Places image tokens near the words for what they show: ``words`` are those of the first patch
    labels, in their order. A label that an object does not have asks for nothing.
    """
    tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
    something = patches[:, 0] > 0
    scores = model.lm_head(tokens[something]).float()
    losses = []
    for channel, ids in enumerate(words):
        labels = patches[:, channel][something]
        targets = torch.where(labels > 0, ids[labels], IGNORE)
        losses.append(nn.functional.cross_entropy(scores, targets, ignore_index=IGNORE))
    return torch.stack(losses).mean()


def _side_loss(
    model: LlavaForConditionalGeneration,
    sides: torch.Tensor,
    embedded: torch.Tensor,
    patches: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """Cross-entropy of reading how far to the left and above an object is, as shares of two words.

    An object a quarter of the way from the left is to say "left" with 0.75 and "right" with 0.25;
    a steeper ``slope`` moves these away from a half.
    """
    tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
    something = patches[:, 0] > 0
    chances = model.lm_head(tokens[something]).float().log_softmax(-1)
    losses = []
    for channel, (low, high) in zip(PLACE_CHANNELS, sides, strict=True):
        place = (patches[:, channel][something] - 0.5) / GRID
        share = (0.5 + slope * (place - 0.5)).clamp(0.02, 0.98)
        losses.append(-(1 - share) * chances[:, low] - share * chances[:, high])
    return torch.stack(losses).mean()


def pretrain_vision(
    model: LlavaForConditionalGeneration, heads: nn.ModuleDict, data: Conversations, log: Log
) -> None:
    """Dense classification of every patch: kind, colour, size, digits and place."""
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=VISION_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, VISION_RATE, total_steps=VISION_STEPS, pct_start=0.1
    )
    for step, batch in enumerate(_batches(data, VISION_BATCH, model.device), start=1):
        with torch.autocast(model.device.type, torch.bfloat16):
            features = tower(batch["pixel_values"]).last_hidden_state[:, 1:]
            loss, right = _patch_loss(heads, features, batch["patches"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            shares = {name: round(share, 4) for name, share in right.items()}
            log.row(stage="vision", step=step, loss=round(loss.item(), 4), **shares)


def train_conversations(
    model: LlavaForConditionalGeneration,
    heads: nn.ModuleDict,
    token_heads: nn.ModuleDict,
    processor: LlavaProcessor,
    log: Log,
    out: Path,
    start: int,
    steps: int,
) -> None:
    """Cross-entropy on the answers of every turn, linear decay, gradients clipped at 1.

    The patch labels go on beside it: questions alone name too few of a picture's patches.
    """
    vision = list(model.model.vision_tower.parameters())
    chosen = {id(parameter) for parameter in vision}
    rest = [p for p in model.parameters() if id(p) not in chosen] + list(heads.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": rest}, {"params": vision}, {"params": list(token_heads.parameters())}],
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=True,
    )
    trained = nn.ModuleDict({"model": model, "heads": heads, "token_heads": token_heads})
    if start:
        _restore(trained, optimizer, out)
    words = _word_ids(processor, model.device)
    sides = _side_ids(processor, model.device)
    # Before and after the projector.
    features: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.model.multi_modal_projector.register_forward_hook(
        lambda _module, args, output: features.append((args[0], output))
    )
    hits: dict[str, list[float]] = defaultdict(list)
    losses: list[float] = []
    for step, batch in enumerate(
        _lesson_batches(processor, start, steps, model.device), start=start + 1
    ):
        rate = float(np.interp(step, list(RATES), list(RATES.values())))
        lesson = _lesson_at(step)
        for group, share in zip(optimizer.param_groups, (1.0, VISION_SHARE, 1.0), strict=True):
            group["lr"] = rate * share
        wanted = batch["labels"] != IGNORE
        with torch.autocast(model.device.type, torch.bfloat16):
            # No attention mask: padding comes last, and no earlier position looks ahead.
            hidden = model.model(
                input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], use_cache=False
            ).last_hidden_state
            logits = model.lm_head(hidden[wanted])
            seen, embedded = features.pop()
            patch_loss, patches = _patch_loss(heads, seen, batch["patches"])
            help_loss = PATCH_SHARE * patch_loss
            if lesson.words:
                asked = words if lesson.digits else words[:3]
                word_loss = _word_loss(model, asked, embedded, batch["patches"])
                help_loss = help_loss + lesson.words * word_loss
            if lesson.sides:
                side_loss = _side_loss(model, sides, embedded, batch["patches"], lesson.slope)
                help_loss = help_loss + lesson.sides * side_loss
            if lesson.labels:
                tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
                label_loss, _ = _patch_loss(token_heads, tokens, batch["patches"])
                help_loss = help_loss + lesson.labels * label_loss
        loss = _turn_loss(logits.float(), batch["labels"][wanted], batch["lengths"][wanted])
        optimizer.zero_grad(set_to_none=True)
        (loss + help_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        for name, share in patches.items():
            hits[name].append(share)
        right = logits.argmax(-1) == batch["labels"][wanted]
        for kind, exact in _exact_turns(right, wanted, batch["turns"], batch["kinds"]):
            hits[kind].append(exact)
        if step % LOG_EVERY == 0:
            shares = {name: round(sum(seen) / len(seen), 4) for name, seen in hits.items()}
            mean = round(sum(losses) / len(losses), 4)
            log.row(stage="conversation", step=step, loss=mean, rate=round(rate, 6), **shares)
            hits.clear()
            losses.clear()
        if step % CHECKPOINT_EVERY == 0:
            _checkpoint(trained, optimizer, out, step)


def _turn_loss(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, an answer of n tokens counting as much as sqrt(n) answers of one token.

    Otherwise captions, with forty tokens each, drown the questions.
    """
    weight = lengths.float().rsqrt()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (weight * losses).sum() / weight.sum()


def _exact_turns(
    right: torch.Tensor, wanted: torch.Tensor, turns: torch.Tensor, kinds: torch.Tensor
) -> Iterator[tuple[str, float]]:
    """Whether every token of each turn's answer was predicted (pictures are never seen twice)."""
    row = wanted.nonzero()[:, 0]
    key = row * 1000 + turns[wanted]
    _, group = torch.unique(key, return_inverse=True)
    count = int(group.max()) + 1
    exact = torch.ones(count, device=right.device).scatter_reduce(
        0, group, right.float(), reduce="amin"
    )
    kind = torch.zeros(count, dtype=torch.long, device=right.device)
    kind[group] = kinds[wanted]
    for index, value in zip(kind.tolist(), exact.tolist(), strict=True):
        yield QUESTION_KINDS[index], value


def _checkpoint(trained: nn.Module, optimizer: torch.optim.Optimizer, out: Path, step: int) -> None:
    tensors = {f"weights.{k}": v.detach().clone() for k, v in trained.named_parameters()}
    parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
    for number, parameter in enumerate(parameters):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{number}.{key}"] = value.clone()
    partial = out / "checkpoint.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(out / f"checkpoint-{step}.safetensors")
    for old in out.glob("checkpoint-*.safetensors"):
        if old.name != f"checkpoint-{step}.safetensors":
            old.unlink()


def _latest(out: Path) -> int:
    """Step of the checkpoint in ``out``; 0 if there is none."""
    steps = [int(p.stem.split("-")[1]) for p in out.glob("checkpoint-*.safetensors")]
    return max(steps, default=0)


def _restore(trained: nn.Module, optimizer: torch.optim.Optimizer, out: Path) -> None:
    tensors = load_file(out / f"checkpoint-{_latest(out)}.safetensors")
    with torch.no_grad():
        for key, parameter in trained.named_parameters():
            parameter.copy_(tensors[f"weights.{key}"])
    parameters = itertools.chain(*(group["params"] for group in optimizer.param_groups))
    for number, parameter in enumerate(parameters):
        moments = {
            key: tensors[f"optimizer.{number}.{key}"]
            for key in ("exp_avg", "exp_avg_sq", "step")
            if f"optimizer.{number}.{key}" in tensors  # absent for weights nothing depends on
        }
        if moments:
            optimizer.state[parameter] = moments


def _speed_up(model: LlavaForConditionalGeneration, compiled: bool) -> None:
    if model.device.type == "cpu":
        model.set_attn_implementation("vlmflow-training")
    if compiled:
        layers = (model.model.language_model.layers, model.model.vision_tower.encoder.layers)
        for layer in itertools.chain(*layers):
            layer.compile(dynamic=False)


def train(out: Path, device: str, steps: int = STEPS, *, compiled: bool = False) -> None:
    """Train from scratch, or from the checkpoint in ``out``, and save the model there.

    Parameters
    ----------
    out
        Directory for the model, its processor and ``training_log.csv``.
    device
        A torch device.
    steps
        Where to stop in the schedule of the second stage.
    compiled
        Compile every layer with ``torch.compile``, which needs a C++ compiler.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, SEED).train()
    nn.Module.to(model, torch.device(device))
    _speed_up(model, compiled)
    heads, token_heads = _patch_heads(model), _patch_heads(model)
    start = _latest(out)
    log = Log(out / "training_log.csv", start)
    if not start:
        pictures = Conversations(processor, LESSONS[0], VISION_STEPS * VISION_BATCH)
        pretrain_vision(model, heads, pictures, log)
    train_conversations(model, heads, token_heads, processor, log, out, start, steps)
    nn.Module.to(model.eval(), "cpu", torch.bfloat16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for checkpoint in out.glob("checkpoint-*.safetensors"):
        checkpoint.unlink()


def main() -> None:
    """Command line of ``python -m vlmflow.scenes.train``."""
    parser = argparse.ArgumentParser(prog="python -m vlmflow.scenes.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the trained model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=STEPS, help="stop earlier (for a trial)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers (faster; needs a C++ compiler)"
    )
    arguments = parser.parse_args()
    train(arguments.out, arguments.device, arguments.steps, compiled=arguments.compile)


if __name__ == "__main__":
    main()
