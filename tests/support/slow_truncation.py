"""Truncation the slow way: one prompt, whole matrices, explicit masks, no cache, nothing removed.

Every layer is run over the full sequence; tokens that are gone are hidden by a mask. Rankings are
loops over eager attention matrices. Nothing here uses vlmflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Shown:
    """What the layer before showed, for a ranking given as a function of this.

    ``left`` and ``text`` are positions of image tokens and of text after the first of these;
    ``hidden`` (N, width), ``matrix`` (heads, N, N), ``query`` (heads, N, head_dim), ``key`` and
    ``value`` (key heads, N, head_dim).
    """

    left: list[int]
    text: list[int]
    hidden: torch.Tensor
    matrix: torch.Tensor | None
    query: torch.Tensor | None
    key: torch.Tensor | None
    value: torch.Tensor | None


def rotate(states, cos, sin):
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return states * cos + turned * sin


def slow_logits(model, ids, pixels, prompt, policy, image_token, window=None):
    """Logits (N, vocabulary) of one sequence whose first ``prompt`` tokens are the prompt.

    ``policy`` is a dictionary: layers, keeps (counts), rank_by (a name, or a function that gives
    every position of a :class:`Shown` a score), remainder, positions.
    Also returns, for every layer, the positions that it sees.
    """
    decoder = model.get_decoder()
    with torch.no_grad():
        hidden = model(
            input_ids=ids[None], pixel_values=pixels, output_hidden_states=True, use_cache=False
        ).hidden_states[0]
        length = ids.shape[0]
        alive = list(range(length))
        images = [p for p in range(prompt) if ids[p] == image_token]
        left = list(images)
        weight = dict.fromkeys(range(length), 1.0)
        original = torch.arange(length)
        matrix, query, key, value = None, None, None, None
        seen = []
        for number, layer in enumerate(decoder.layers):
            if number in policy["layers"]:
                keep = policy["keeps"][policy["layers"].index(number)]
                kept = choose(
                    policy["rank_by"], left, keep, hidden[0], matrix, query, key, value, prompt,
                    ids, image_token,
                )  # fmt: skip
                gone = [p for p in left if p not in kept]
                hidden, extra = put_away(hidden.clone(), kept, gone, weight, policy["remainder"])
                left = sorted(kept + extra)
                alive = [p for p in alive if p not in gone or p in extra]
            seen.append(list(alive))
            mask = torch.full((length, length), torch.finfo(hidden.dtype).min)
            for row in range(length):
                mask[row, row] = 0  # tokens that are gone look at themselves: a number, never used
                for column in alive:
                    near = window is None or column > row - window
                    if column <= row and row in alive and near:
                        mask[row, column] = 0
            numbers = original.clone()
            if policy["positions"] == "repack" and number >= policy["layers"][0]:
                for new, old in enumerate(alive):
                    numbers[old] = new
            cos, sin = decoder.rotary_emb(hidden, position_ids=numbers[None])
            matrix, query, key, value = attention_matrix(layer, hidden, cos, sin, mask)
            output = layer(
                hidden,
                attention_mask=mask[None, None].to(hidden.dtype),
                position_embeddings=(cos, sin),
                position_ids=numbers[None],
            )
            hidden = output[0] if isinstance(output, tuple) else output
        logits = model.lm_head(decoder.norm(hidden))[0]
    return logits, seen


def attention_matrix(layer, hidden, cos, sin, mask):
    """(heads, N, N), queries (heads, N, width), keys and values (key heads, N, width)."""
    attention, states = layer.self_attn, layer.input_layernorm(hidden)[0]
    width = attention.head_dim
    query = attention.q_proj(states).view(len(states), -1, width).transpose(0, 1)
    key = attention.k_proj(states).view(len(states), -1, width).transpose(0, 1)
    value = attention.v_proj(states).view(len(states), -1, width).transpose(0, 1)
    query, key = rotate(query, cos[0], sin[0]), rotate(key, cos[0], sin[0])
    group = query.shape[0] // key.shape[0]
    rows = [
        torch.softmax(query[h] @ key[h // group].T / width**0.5 + mask, dim=-1)
        for h in range(len(query))
    ]
    return torch.stack(rows), query, key, value


def cosine(a, b):
    return float(torch.dot(a / a.norm(), b / b.norm()))


def choose(rank_by, left, keep, hidden, matrix, query, key, value, prompt, ids, image_token):
    """The positions that stay."""
    if keep == 0:
        return []
    first = min(p for p in range(prompt) if ids[p] == image_token)
    text = [p for p in range(first, prompt) if ids[p] != image_token]
    if callable(rank_by):
        shown = Shown(list(left), text, hidden, matrix, query, key, value)
        scores = {p: float(score) for p, score in rank_by(shown).items()}
    elif rank_by == "last_attention":
        scores = {p: float(matrix[:, prompt - 1, p].mean()) for p in left}
    elif rank_by == "mean_attention":
        later = {p: [q for q in sorted(left + text) if q > p] for p in left}
        scores = {
            p: sum(float(matrix[:, q, p].mean()) for q in later[p]) / max(1, len(later[p]))
            for p in left
        }
    elif rank_by == "text_attention":
        scores = {p: sum(float(matrix[:, q, p].mean()) for q in text) for p in left}
    elif rank_by == "key_norm":
        scores = {p: -sum(float(key[h, p].norm()) for h in range(len(key))) for p in left}
    elif rank_by == "value_norm":
        scores = {p: sum(float(value[h, p].abs().sum()) for h in range(len(value))) for p in left}
    elif rank_by == "question_similarity":
        scores = {p: max(cosine(hidden[p], hidden[q]) for q in text) for p in left}
    elif rank_by == "duplication":
        return duplication(left, keep, hidden, key)
    elif rank_by == "diversity":
        return diversity(left, keep, hidden)
    else:
        raise ValueError(rank_by)
    return sorted(sorted(left, key=lambda p: -scores[p])[:keep])


def duplication(left, keep, hidden, key):
    norms = {p: sum(float(key[h, p].abs().sum()) for h in range(len(key))) for p in left}
    pivots = sorted(left, key=lambda p: -norms[p])[: min(8, keep)]
    kept = list(pivots)
    for number, pivot in enumerate(pivots):
        share = -(-(keep - len(kept)) // (len(pivots) - number))
        free = [p for p in left if p not in kept]
        kept += sorted(free, key=lambda p: cosine(hidden[p], hidden[pivot]))[:share]
    return sorted(kept)


def diversity(left, keep, hidden):
    def distance(a, b):
        return 1 - cosine(hidden[a], hidden[b])

    nearest = {p: min((distance(p, q) for q in left if q != p), default=0) for p in left}
    kept = [max(left, key=lambda p: nearest[p])]
    while len(kept) < keep:
        rest = [p for p in left if p not in kept]
        kept.append(max(rest, key=lambda p: min(distance(p, q) for q in kept)))
    return sorted(kept)


def put_away(hidden, kept, gone, weight, remainder):
    """Merge or average the removed tokens; returns the extra positions that stay."""
    before = hidden[0].clone()
    if remainder == "merge":
        groups = {p: [p] for p in kept}
        for p in gone:
            groups[max(kept, key=lambda q: cosine(before[p], before[q]))].append(p)
    elif remainder == "average" and gone:
        groups = {gone[-1]: gone}
    else:
        return hidden, []
    for place, members in groups.items():
        total = sum(weight[p] for p in members)
        hidden[0, place] = sum(weight[p] * before[p] for p in members) / total
    for place, members in groups.items():
        weight[place] = sum(weight[p] for p in members)
    return hidden, [gone[-1]] if remainder == "average" and gone else []
