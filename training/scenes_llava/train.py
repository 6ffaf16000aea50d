"""Train the bundled model: ``python -m training.scenes_llava.train --out DIR``.

Two stages with one fixed seed, in autocast. First the vision tower learns to say what lies
under each patch; then the whole model learns conversations. ``training_log.csv`` says how far and
how long. A killed run continues from its last checkpoint when it is started again.
``--curriculum answers-only`` trains the ablation: the same architecture on the bundled model's
tower, with no loss inside the decoder.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AttentionInterface,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from training.checkpoints import latest_step, restore_checkpoint, save_checkpoint
from training.scenes_llava.architecture import build_model, build_processor, build_tokenizer
from training.scenes_llava.conversations import (
    IGNORE,
    PATCH_LABELS,
    QUESTION_KINDS,
    Conversation,
    Conversations,
)
from training.scenes_llava.curriculum import CURRICULA, Curriculum, Lesson
from training.scenes_llava.losses import (
    centre_loss,
    hint_loss,
    patch_heads,
    patch_loss,
    probe_loss,
    side_ids,
    side_loss,
    spot_loss,
    word_ids,
    word_loss,
)
from training.training_log import TrainingLog
from training.turn_scores import exact_turns, turn_ids, turn_loss
from vlmflow.bundled.shelf import BUNDLED

SEED = 20240606
VISION_STEPS, VISION_BATCH, VISION_RATE = 2000, 64, 2e-3
VISION_SHARE = 0.3  # of the learning rate, for the vision tower in the second stage
PATCH_SHARE = 0.3  # weight of the patch labels, read off the tower, in the second stage
# What these layers are given is read as words: numbers of groups; verdicts on options, and answers.
MENTION_LAYER, VERDICT_LAYER = 6, 9
CHECKPOINT_EVERY, LOG_EVERY = 200, 50


LOG_FIELDS = (
    *("stage", "step", "seconds", "loss", "rate"),
    *QUESTION_KINDS,
    *("verdict", "hint", "mention", "spot"),
    *PATCH_LABELS,
)


def _plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float,
    **_options: object,
) -> tuple[torch.Tensor, None]:
    """Attention as plain matrix products in the autocast dtype, without dropout or padding.

    At these short sequences cheaper on a CPU than SDPA and its backward. Shapes are those of
    ``transformers.AttentionInterface``.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if module.is_causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    weights = scores.softmax(-1, dtype=scores.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("vlmflow-training", _plain_attention)


def _products_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _batches(
    data: Conversations, batch: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    loader: DataLoader[Conversation] = DataLoader(
        data, batch_size=batch, num_workers=1, prefetch_factor=4
    )
    for tensors in loader:
        yield {key: value.to(device, non_blocking=True) for key, value in tensors.items()}


def _lesson_batches(
    processor: LlavaProcessor,
    lessons: Sequence[Lesson],
    start: int,
    steps: int,
    device: torch.device,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of steps ``start + 1`` to ``steps``, lesson after lesson."""
    end, first = 0, VISION_STEPS * VISION_BATCH
    for lesson in lessons:
        skipped = min(max(start - end, 0), lesson.steps)
        count = min(max(steps - end, 0), lesson.steps) - skipped
        if count > 0:
            data = Conversations(
                processor, lesson, count * lesson.batch, first + skipped * lesson.batch
            )
            yield from _batches(data, lesson.batch, device)
        end += lesson.steps
        first += lesson.steps * lesson.batch


def _lesson_at(lessons: Sequence[Lesson], step: int) -> Lesson:
    ends = itertools.accumulate(lesson.steps for lesson in lessons)
    return next(lesson for lesson, end in zip(lessons, ends, strict=True) if step <= end)


def pretrain_vision(
    model: LlavaForConditionalGeneration,
    heads: nn.ModuleDict,
    data: Conversations,
    log: TrainingLog,
    dtype: torch.dtype,
) -> None:
    """Dense classification of every patch: kind, colour, size, digits and place."""
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=VISION_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, VISION_RATE, total_steps=VISION_STEPS, pct_start=0.1
    )
    for step, batch in enumerate(_batches(data, VISION_BATCH, model.device), start=1):
        with _products_in(dtype, model.device):
            features = tower(batch["pixel_values"]).last_hidden_state[:, 1:]
            loss, right = patch_loss(heads, features, batch["patches"])
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
    curriculum: Curriculum,
    log: TrainingLog,
    out: Path,
    start: int,
    steps: int,
    dtype: torch.dtype,
) -> None:
    """Cross-entropy on the answers of every turn, gradients clipped at 1.

    Where the tower learns, the patch labels go on beside it: questions alone name too few of a
    picture's patches.
    """
    vision = [p for p in model.model.vision_tower.parameters() if p.requires_grad]
    vision_ids = {id(parameter) for parameter in model.model.vision_tower.parameters()}
    rest = [p for p in model.parameters() if id(p) not in vision_ids] + list(heads.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": rest}, {"params": vision}, {"params": list(token_heads.parameters())}],
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=True,
    )
    trained = nn.ModuleDict({"model": model, "heads": heads, "token_heads": token_heads})
    if start:
        restore_checkpoint(trained, optimizer, out)
    words = word_ids(processor, model.device)
    sides = side_ids(processor, model.device)
    centre_head = token_heads["centre"]
    # Before and after the projector.
    features: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.model.multi_modal_projector.register_forward_hook(
        lambda _module, args, output: features.append((args[0], output))
    )
    middle: dict[int, torch.Tensor] = {}
    for layer in (MENTION_LAYER, VERDICT_LAYER):
        model.model.language_model.layers[layer].register_forward_pre_hook(
            lambda _module, args, layer=layer: middle.update({layer: args[0]})
        )
    hits: dict[str, list[float]] = defaultdict(list)
    losses: list[float] = []
    for step, batch in enumerate(
        _lesson_batches(processor, curriculum.lessons, start, steps, model.device), start=start + 1
    ):
        rate = float(np.interp(step, list(curriculum.rates), list(curriculum.rates.values())))
        lesson = _lesson_at(curriculum.lessons, step)
        for group, share in zip(optimizer.param_groups, (1.0, VISION_SHARE, 1.0), strict=True):
            group["lr"] = rate * share
        labelled = batch["labels"] != IGNORE
        with _products_in(dtype, model.device):
            # No attention mask: padding comes last, and no earlier position looks ahead.
            hidden = model.model(
                input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], use_cache=False
            ).last_hidden_state
            logits = model.lm_head(hidden[labelled])
            tower_features, embedded = features.pop()
            auxiliary, patches = torch.zeros((), device=model.device), {}
            if curriculum.own_tower:
                term, patches = patch_loss(heads, tower_features, batch["patches"])
                auxiliary = PATCH_SHARE * term
            if lesson.words:
                term = word_loss(model, words, embedded, batch["patches"])
                auxiliary = auxiliary + lesson.words * term
            if lesson.sides:
                term = side_loss(model, sides, embedded, batch["patches"])
                auxiliary = auxiliary + lesson.sides * term
            if lesson.centres:
                term = centre_loss(centre_head, embedded, batch["patches"], batch["centres"])
                auxiliary = auxiliary + lesson.centres * term
            if lesson.verdicts:
                term, right = probe_loss(model, middle[VERDICT_LAYER], batch["verdicts"])
                auxiliary = auxiliary + lesson.verdicts * term
                hits["verdict"].append(right)
            if lesson.hints:
                term = hint_loss(model, middle[VERDICT_LAYER], batch["hints"])
                auxiliary = auxiliary + lesson.hints * term
                hits["hint"].append(term.item())
            if lesson.mentions:
                term, right = probe_loss(model, middle[MENTION_LAYER], batch["mentions"])
                auxiliary = auxiliary + lesson.mentions * term
                hits["mention"].append(right)
            if lesson.spots:
                term = spot_loss(model, sides, middle[MENTION_LAYER], batch["spots"])
                auxiliary = auxiliary + lesson.spots * term
                hits["spot"].append(term.item())
            middle.clear()
            if lesson.labels:
                tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
                term, _ = patch_loss(token_heads, tokens, batch["patches"])
                auxiliary = auxiliary + lesson.labels * term
        labels = batch["labels"][labelled]
        loss = turn_loss(logits.float(), labels, batch["lengths"][labelled])
        optimizer.zero_grad(set_to_none=True)
        (loss + auxiliary).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        for name, share in patches.items():
            hits[name].append(share)
        turns = turn_ids(labelled, batch["turns"])
        right_tokens = logits.argmax(-1) == labels
        for kind, exact in exact_turns(right_tokens, turns, batch["kinds"][labelled]):
            hits[QUESTION_KINDS[kind]].append(exact)
        if step % LOG_EVERY == 0:
            shares = {name: round(sum(values) / len(values), 4) for name, values in hits.items()}
            mean = round(sum(losses) / len(losses), 4)
            log.row(stage="conversation", step=step, loss=mean, rate=round(rate, 6), **shares)
            hits.clear()
            losses.clear()
        if step % CHECKPOINT_EVERY == 0:
            save_checkpoint(trained, optimizer, out, step)


def _speed_up(model: LlavaForConditionalGeneration, compiled: bool) -> None:
    if model.device.type == "cpu":
        model.set_attn_implementation("vlmflow-training")
    if compiled:
        layers = (model.model.language_model.layers, model.model.vision_tower.encoder.layers)
        for layer in itertools.chain(*layers):
            layer.compile(dynamic=False)


def train(
    out: Path,
    device: str,
    curriculum: Curriculum,
    steps: int | None = None,
    *,
    compiled: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Train from scratch, or from the checkpoint in ``out``, and save the model there.

    Stops at ``steps`` of the second stage's schedule. ``compiled`` runs every layer through
    ``torch.compile``, which needs a C++ compiler. ``dtype`` is what matrix products are in;
    float32 is for processors without bfloat16.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, SEED).train()
    nn.Module.to(model, torch.device(device))
    _speed_up(model, compiled)
    heads, token_heads = patch_heads(model), patch_heads(model)
    width = model.config.text_config.hidden_size
    token_heads["centre"] = nn.Linear(width, 1, device=model.device)
    start = latest_step(out)
    log = TrainingLog(out / "training_log.csv", LOG_FIELDS, start, finished_stages=["vision"])
    if not curriculum.own_tower:
        _take_tower(model)
    elif not start:
        pictures = Conversations(processor, curriculum.lessons[0], VISION_STEPS * VISION_BATCH)
        pretrain_vision(model, heads, pictures, log, dtype)
    train_conversations(
        model,
        heads,
        token_heads,
        processor,
        curriculum,
        log,
        out,
        start,
        steps or curriculum.steps,
        dtype,
    )
    nn.Module.to(model.eval(), "cpu", torch.bfloat16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for checkpoint in out.glob("checkpoint-*.safetensors"):
        checkpoint.unlink()


def _take_tower(model: LlavaForConditionalGeneration) -> None:
    """Give a model the bundled one's vision tower, frozen."""
    donor = AutoModelForImageTextToText.from_pretrained(BUNDLED / "scenes-llava", dtype=model.dtype)
    tower = model.model.vision_tower
    tower.load_state_dict(donor.model.vision_tower.state_dict())
    tower.requires_grad_(False)


def main() -> None:
    """Command line of ``python -m training.scenes_llava.train``."""
    parser = argparse.ArgumentParser(
        prog="python -m training.scenes_llava.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the trained model")
    parser.add_argument("--curriculum", choices=CURRICULA, default="scenes-llava")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="stop earlier (for a trial)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers (faster; needs a C++ compiler)"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="format of matrix products (float32 for processors without bfloat16)",
    )
    arguments = parser.parse_args()
    train(
        arguments.out,
        arguments.device,
        CURRICULA[arguments.curriculum],
        arguments.steps,
        compiled=arguments.compile,
        dtype=getattr(torch, arguments.dtype),
    )


if __name__ == "__main__":
    main()
