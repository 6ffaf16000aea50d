"""Train a bundled model with a pretrained decoder: ``python -m training.pretrained_decoder NAME``.

The standard LLaVA recipe on SmolLM2-135M-Instruct: a frozen vision tower (that of scenes-llava,
trained on patch labels before, or one that learned from it), a projector, and low-rank adapters on
every matrix of the frozen decoder. The only loss is the cross-entropy of the answers' tokens. A
killed run continues from its last checkpoint; ``training_log.csv`` says how far and how long.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AttentionInterface

from training.adapters import adapt, adapter_weights
from training.checkpoints import (
    latest_step,
    restore_checkpoint,
    restore_weights,
    save_checkpoint,
)
from training.packing import IGNORE, Examples, collate, may_look
from training.smollm2_models import BUILDERS, Unfinished
from training.training_log import TrainingLog
from training.turn_scores import exact_turns, turn_ids, turn_loss
from training.turns import KINDS, MIXTURE, WORDS_FIRST, Mixture
from vlmflow.bundled.shelf import TUNED

CHECKPOINT_EVERY, LOG_EVERY = 100, 25


@dataclass(frozen=True)
class Recipe:
    """What differs between models, and when training ends."""

    rank: int  # Rank of the adapters
    # Positions of an example, and examples of a step
    length: int = 480
    batch: int = 8
    # All steps, and how many of them at the end take the learning rates down to 0
    steps: int = 2000
    decay: int = 400
    warm_up: int = 60
    # Learning rates (AdamW) between warm-up and decay
    projector_rate: float = 1e-3
    adapter_rate: float = 6e-4
    conversations: float = 0.2  # Share of examples whose turns see those before them
    seed: int = 0  # Seed of initial weights and examples
    mixture: Mixture = field(default_factory=lambda: WORDS_FIRST)

    def rate(self, step: int, begun: int = 0) -> float:
        """Give the learning rates' factor at a step: warm-up, plateau, straight down to 0.

        ``begun`` is the step after which the optimiser was made.
        """
        warm = (step - begun) / self.warm_up
        return min(1.0, warm, (self.steps - step) / self.decay + 1e-3)


RECIPES = {
    "scenes-smollm2": Recipe(rank=32, mixture=MIXTURE),
    # As much text beside each picture as there, whose image tokens are four times as many.
    "scenes-smolvlm": Recipe(rank=16, length=376, steps=1800, decay=500),
    # And here, beside 91 image tokens, the mean over the resolutions that pictures are drawn at.
    "scenes-qwen": Recipe(rank=16, length=430, steps=1800, decay=500),
}


def _plain_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attention as plain matrix products, cheaper on a CPU than SDPA at these lengths.

    Query heads of one key head are stacked as further rows, so that keys are not repeated. Shapes
    are those of ``transformers.AttentionInterface``; the mask is additive, (B, 1, N, N).
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    stacked = (query * scaling).reshape(batch, key.shape[1], groups * length, width)
    scores = torch.matmul(stacked, key.transpose(-1, -2))
    scores = scores.view(batch, heads, length, length) + attention_mask
    weights = scores.softmax(-1).view(batch, key.shape[1], groups * length, length)
    mixed = torch.matmul(weights, value).reshape(batch, heads, length, width)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("training-plain", _plain_attention)


def _states(unfinished: Unfinished, batch: dict[str, Any]) -> Tensor:
    """Run the whole model up to the decoder's last norm: (B, N, width)."""
    language = unfinished.language_model
    with torch.no_grad():
        features = unfinished.features(batch["picture"])
    pictures = unfinished.projector(features)
    hidden = language.embed_tokens(batch["input_ids"])
    is_image = batch["input_ids"] == unfinished.image_token_id
    hidden = hidden.masked_scatter(is_image[..., None], pictures.to(hidden.dtype))
    mask = torch.zeros(1, dtype=hidden.dtype).expand(len(hidden), 1, *[hidden.shape[1]] * 2)
    mask = mask.masked_fill(~may_look(batch["blocks"]), torch.finfo(hidden.dtype).min)
    positions = batch["position_ids"]
    if positions.ndim == 3:  # M-RoPE's axes come first
        positions = positions.transpose(0, 1)
    places = language.rotary_emb(hidden, positions)
    for layer in language.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=places)
    return language.norm(hidden)


def train(name: str, out: Path, until: int | None = None) -> None:
    """Train from the base, from the checkpoint in ``out``, or from what was trained alone.

    ``tuned.safetensors`` beside each checkpoint holds what was trained, in bf16, and the tower
    where no other bundled model has it. Where it is there without a checkpoint, training goes on
    from it with new moments, after another warm-up.
    """
    recipe = RECIPES[name]
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    unfinished: Unfinished = BUILDERS[name](out)
    language = unfinished.language_model
    language.requires_grad_(False)
    adapt(language.layers, recipe.rank)
    for part in (language.embed_tokens, language.norm, *language.layers):
        for parameter in part.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    language.set_attn_implementation("training-plain")
    for layer in language.layers:
        layer.compile(dynamic=False)
    adapters = dict(adapter_weights(language.layers))
    projector = dict(unfinished.projector.named_parameters())
    named = {
        **{f"projector.{key}": value for key, value in projector.items()},
        **{f"adapters.{key}": value for key, value in adapters.items()},
    }
    trained = nn.ParameterDict({key.replace(".", "/"): value for key, value in named.items()})
    groups = [
        {"params": list(projector.values()), "rate": recipe.projector_rate},
        {"params": list(adapters.values()), "rate": recipe.adapter_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    start, begun = latest_step(out), 0
    if start:
        restore_checkpoint(trained, optimizer, out)
    elif (out / TUNED).is_file():
        start = begun = restore_weights(trained, out / TUNED)
    fields = ("step", "seconds", "loss", "rate", *KINDS)
    log = TrainingLog(out / "training_log.csv", fields, start)
    examples = Examples(
        unfinished.processor,
        unfinished.pictures,
        recipe.length,
        recipe.batch,
        start,
        until or recipe.steps,
        recipe.conversations,
        recipe.seed,
        recipe.mixture,
    )
    loader: Any = DataLoader(
        examples, recipe.batch, num_workers=1, prefetch_factor=4, collate_fn=collate
    )
    hits: dict[str, list[float]] = defaultdict(list)
    losses: list[float] = []
    for step, batch in enumerate(loader, start=start + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * recipe.rate(step, begun)
        labelled = batch["labels"] != IGNORE
        with torch.autocast("cpu", torch.bfloat16):
            states = _states(unfinished, batch)[labelled]
            logits = nn.functional.linear(states, language.embed_tokens.weight).float()
        labels = batch["labels"][labelled]
        turns = turn_ids(labelled, batch["turns"])
        _, inverse, lengths = torch.unique(turns, return_inverse=True, return_counts=True)
        loss = turn_loss(logits, labels, lengths[inverse])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        right = logits.argmax(-1) == labels
        for kind, exact in exact_turns(right, turns, batch["kinds"][labelled]):
            hits[KINDS[kind]].append(exact)
        if step % LOG_EVERY == 0 or step <= 6:
            shares = {
                kind: round(sum(exact) / len(exact), 3) for kind, exact in sorted(hits.items())
            }
            mean = round(sum(losses) / len(losses), 4)
            log.row(step=step, loss=mean, rate=round(recipe.rate(step, begun), 4), **shares)
            hits.clear()
            losses.clear()
        if step % CHECKPOINT_EVERY == 0:
            save_checkpoint(trained, optimizer, out, step)
            _save_tuned(out, {**unfinished.fixed, **named}, name, step)


def _save_tuned(out: Path, named: dict[str, Tensor], name: str, step: int) -> None:
    tensors = {key: value.detach().to(torch.bfloat16).contiguous() for key, value in named.items()}
    partial = out / "tuned.partial"
    save_file(tensors, partial, metadata={"model": name, "step": str(step)})
    partial.replace(out / TUNED)


def main() -> None:
    """Command line of ``python -m training.pretrained_decoder``."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrained_decoder")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True, help="directory of checkpoints and log")
    parser.add_argument("--until", type=int, help="stop earlier (for a trial)")
    arguments = parser.parse_args()
    train(arguments.name, arguments.out, arguments.until)


if __name__ == "__main__":
    main()
