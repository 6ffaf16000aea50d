"""Rankings from outside of the package: defined here, run through everything, against loops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from importlib import import_module, metadata
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import vlmflow
from tests.support.reference import measure_slowly
from tests.support.slow_truncation import Shown, slow_logits
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.removal.curve import removal_curve
from vlmflow.truncation.flops import prefill_cost
from vlmflow.truncation.rankings.random import Random
from vlmflow.truncation.rankings.ranking import RankingSize
from vlmflow.truncation.rankings.registry import RANKINGS, as_ranking
from vlmflow.truncation.shared_answers import shared_answers

QUESTION = "Is there a blue square in the picture?"
KEEP = 5
SIDE = 4
"""Image tokens of the tiny model stand four by four."""


@dataclass(frozen=True)
class Departure(vlmflow.Ranking):
    """Keeps tokens that differ from their picture's mean state."""

    power: float = 1.0
    reads = "hidden"

    def scores(self, seen):
        states = seen.hidden[seen.image].float()
        return (states - states.mean(0)).norm(dim=-1) ** self.power

    def flops(self, size):
        return 3 * size.image * size.width

    @staticmethod
    def slowly(shown: Shown):
        mean = sum(shown.hidden[p] for p in shown.left) / len(shown.left)
        return {p: (shown.hidden[p] - mean).norm() for p in shown.left}


@dataclass(frozen=True)
class Loudness(vlmflow.Ranking):
    """The last token's query times each key, weighed with the size of the value."""

    reads = "keys"

    def scores(self, seen):
        groups = seen.queries.shape[0] // seen.keys.shape[0]
        query = seen.queries[:, seen.text[-1]]
        keys, values = (states.repeat_interleave(groups, 0) for states in (seen.keys, seen.values))
        return ((query[:, None] * keys).sum(-1).exp() * values.norm(dim=-1)).sum(0)

    @staticmethod
    def slowly(shown: Shown):
        scores, groups = {}, len(shown.query) // len(shown.key)
        for p in shown.left:
            scores[p] = 0.0
            for head, query in enumerate(shown.query):
                key, value = shown.key[head // groups, p], shown.value[head // groups, p]
                product = torch.dot(query[shown.text[-1]], key)
                scores[p] += float(product.exp() * value.norm())
        return scores


@dataclass(frozen=True)
class Unseen(vlmflow.Ranking):
    """Keeps what the last token looks at least."""

    reads = "attention"
    rows = "last"

    def scores(self, seen):
        assert seen.attention.shape == (1, len(seen.image))
        return -seen.attention[0]

    @staticmethod
    def slowly(shown: Shown):
        return {p: -shown.matrix[:, shown.text[-1], p].mean() for p in shown.left}


@dataclass(frozen=True)
class AnyWord(vlmflow.Ranking):
    """The strongest look of any word."""

    reads = ("attention", "hidden")
    rows = "text"

    def scores(self, seen):
        assert seen.attention.shape == (len(seen.text), len(seen.image))
        return seen.attention.amax(0)

    @staticmethod
    def slowly(shown: Shown):
        return {p: max(shown.matrix[:, q, p].mean() for q in shown.text) for p in shown.left}


@dataclass(frozen=True)
class AnyToken(vlmflow.Ranking):
    """The strongest look of any other token, image tokens among them."""

    reads = "attention"
    rows = "all"

    def scores(self, seen):
        rows = torch.cat([seen.image, seen.text]).sort().values
        assert seen.attention.shape == (len(rows), len(seen.image))
        own = rows[:, None] == seen.image[None]
        return seen.attention.masked_fill(own, 0).amax(0)

    @staticmethod
    def slowly(shown: Shown):
        rows = [*shown.left, *shown.text]
        return {p: max(shown.matrix[:, q, p].mean() for q in rows if q != p) for p in shown.left}


@dataclass(frozen=True)
class Corner(vlmflow.Ranking):
    """Keeps what lies near the bottom right corner."""

    reads = "places"

    def scores(self, seen):
        picture, row, column = seen.places.unbind(1)
        return (100 * picture + 10 * row + column).to(seen.image.device)

    @staticmethod
    def slowly(shown: Shown):
        scores = {}
        for number, p in enumerate(shown.left):
            picture, place = divmod(number, SIDE**2)
            scores[p] = 100 * picture + 10 * (place // SIDE) + place % SIDE
        return scores


@dataclass(frozen=True)
class EveryOther(vlmflow.Ranking):
    """Overrides the choice itself."""

    first: int = 0

    def select(self, seen, keep):
        return (torch.arange(keep, device=seen.image.device) * 2 + self.first).clamp_max(
            len(seen.image) - 1
        )

    @staticmethod
    def slowly(shown: Shown):
        return {p: float(number % 2 == 0) for number, p in enumerate(shown.left)}


@dataclass(frozen=True)
class Fifth(vlmflow.Signal):
    """The fifth power of attention: a signal of this file, for an oracle of this file."""

    power: int = 5
    reads = "attention"

    def of_layer(self, seen):
        return seen.attention.mean(0) ** self.power


@dataclass(frozen=True)
class SaliencyBefore(vlmflow.Ranking):
    """Oracle by a built-in signal."""

    reads = "answer"
    signal = "saliency"

    def scores(self, seen):
        return seen.maps[seen.layer - 1]


@dataclass(frozen=True)
class FifthBefore(vlmflow.Ranking):
    """Oracle by a signal that is an object."""

    reads = "answer"
    signal = Fifth()

    def scores(self, seen):
        return seen.maps[seen.layer - 1]


OWN = (Departure(), Loudness(), Unseen(), AnyWord(), AnyToken(), Corner(), EveryOther())
ORACLES = (SaliencyBefore(), FifthBefore())
EACH = pytest.mark.parametrize("ranking", OWN, ids=lambda ranking: ranking.known_as())
WITH_ORACLES = pytest.mark.parametrize(
    "ranking", [*OWN, *ORACLES], ids=lambda ranking: ranking.known_as()
)


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(values)


def lvlm(seed: int = 1, **options) -> vlmflow.LVLM:
    return vlmflow.LVLM(*tiny_llava(seed, layers=5, kv_heads=2, **options))


def prepared(vlm, pictures=(1,), answer=None):
    return vlm.prepare([picture(seed) for seed in pictures], QUESTION, answer)


def slow(vlm, ids, pixels, prompt, ranking, layers=(2,), keeps=(KEEP,)):
    """Logits (N, vocabulary) of one sequence, by loops."""
    policy = {
        "layers": list(layers),
        "keeps": list(keeps),
        "rank_by": ranking if callable(ranking) else ranking.slowly,
        "remainder": "drop",
        "positions": "keep",
    }
    return slow_logits(vlm.model, ids, pixels, prompt, policy, vlm.model.config.image_token_id)


def oracle_scores(vlm, prompt, signal):
    """Maps (L, P) of the first answer token over eager attention, as scores by position."""
    with torch.no_grad():
        first = int(vlm.model(**prompt.inputs).logits[0, -1].argmax())
    whole = vlm.with_answer(prompt, (first,))
    eager = lvlm(attn_implementation="eager")
    truth = measure_slowly(
        eager.model,
        eager.decoder_layers,
        whole.inputs,
        whole.layout,
        "logprob",
        "post_attention_layernorm",
    )
    maps = truth.saliency_map(1) if signal == "saliency" else truth.attention_map(0) ** 5
    positions = [int(position) for position in prompt.layout.image_positions]
    return [dict(zip(positions, values, strict=True)) for values in maps]


@WITH_ORACLES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generating_agrees_with_the_slow_way(ranking, attention):
    """Logits of every step, and how many tokens each layer of the cache holds."""
    vlm = lvlm(attn_implementation=attention)
    prompt = prepared(vlm, (1, 2))
    policy = vlmflow.Truncation((2, 3), (9, KEEP), rank_by=ranking)
    length = prompt.inputs["input_ids"].shape[1]
    with policy(vlm.model):
        output = vlm.model.generate(
            **prompt.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[vlm.model.config.image_token_id],
        )  # fmt: skip
    slowly = ranking
    if ranking in ORACLES:
        maps = oracle_scores(vlm, prompt, ranking.signal)
        stages = iter((1, 2))

        def slowly(shown):
            layer = next(stages)
            return {p: maps[layer][p] for p in shown.left}

    logits, seen = slow(
        vlm, output.sequences[0, :-1], prompt.inputs["pixel_values"], length, slowly,
        (2, 3), (9, KEEP),
    )  # fmt: skip
    # 1e-4 relative and 2e-5 absolute: float32 on both sides, as in test_truncation.py.
    torch.testing.assert_close(torch.cat(output.logits), logits[length - 1 :], rtol=1e-4, atol=2e-5)
    assert [layer.keys.shape[-2] for layer in output.past_key_values.layers] == list(map(len, seen))


@WITH_ORACLES
def test_a_batch_is_its_rows(ranking):
    """Forward passes with left padding and several pictures."""
    vlm = lvlm()
    prompts = [prepared(vlm, (1,)), prepared(vlm, (2, 3))]
    longest = max(prompt.inputs["input_ids"].shape[1] for prompt in prompts)
    rows = {"input_ids": [], "attention_mask": []}
    for prompt in prompts:
        for name, row in rows.items():
            values = prompt.inputs[name]
            row.append(torch.nn.functional.pad(values, (longest - values.shape[1], 0)))
    batch = {name: torch.cat(row) for name, row in rows.items()}
    batch["pixel_values"] = torch.cat([prompt.inputs["pixel_values"] for prompt in prompts])
    policy = vlmflow.Truncation(2, KEEP, rank_by=ranking)
    with policy(vlm.model), torch.no_grad():
        together = vlm.model(**batch).logits[:, -1]
        alone = [vlm.model(**prompt.inputs).logits[0, -1] for prompt in prompts]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=2e-5)


@EACH
def test_removal_curves_agree_with_the_slow_way(ranking):
    """Every layer's log-probabilities; tokens are chosen by what the prompt alone shows."""
    vlm = lvlm()
    answer = (40, 41, 42)
    curve = vlm.removal_curve(picture(1), QUESTION, answer, keep=KEEP, rank_by=ranking)
    assert curve.ranking == ranking
    assert curve.layers[0] == (1 if ranking.needs_layer_before else 0)
    prompt = prepared(vlm)
    length = prompt.inputs["input_ids"].shape[1]
    whole = vlm.with_answer(prompt, answer)
    ids, pixels = whole.inputs["input_ids"][0], whole.inputs["pixel_values"]
    for layer, logprob in zip(curve.layers, curve.logprob, strict=True):
        logits, _ = slow(vlm, ids, pixels, length, ranking, (layer,))
        chances = logits.log_softmax(-1)
        expected = [float(chances[length - 1 + t, token]) for t, token in enumerate(answer)]
        np.testing.assert_allclose(logprob, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("ranking", ORACLES, ids=lambda ranking: ranking.known_as())
def test_removal_curves_refuse_oracles(ranking):
    message = f"rank_by='{ranking.known_as()}' looks at the answer"
    with pytest.raises(InputError, match=message):
        removal_curve(lvlm(), picture(1), QUESTION, "red", keep=KEEP, rank_by=ranking)


def test_shared_answers_are_those_of_generate():
    vlm = lvlm(3)
    for pictures in ((1,), (2, 3)):
        prompt = prepared(vlm, pictures)
        policies = [vlmflow.Truncation(2, KEEP, ranking) for ranking in (*OWN, *ORACLES)]
        (answers,) = shared_answers(vlm, [prompt], policies, max_new_tokens=5)
        expected = [
            vlm.generate_ids(prompt, max_new_tokens=5, truncation=policy)
            for policy in (None, *policies)
        ]
        assert answers == expected
        assert len(set(answers)) > 2


@WITH_ORACLES
def test_the_cost_of_a_prefill_counts_the_ranking(ranking):
    vlm = lvlm()
    system, image, user = 3, SIDE**2, 20
    costs = [
        prefill_cost(
            vlm.model, vlm.decoder_layers, vlmflow.Truncation((2, 3), (8, KEEP), by),
            system, image, user,
        )
        for by in (ranking, Random())
    ]  # fmt: skip
    heads, head_dim, width = 4, 8, 32
    text = system + user
    expected = 0
    for tokens in (image, 8):
        if ranking == Departure():
            expected += 3 * tokens * width
        elif "attention" in ranking.all_reads:
            rows = {"last": 1, "text": user, "all": tokens + user}[ranking.rows]
            expected += 2 * rows * (tokens + text) * heads * head_dim
    assert costs[0].exact - costs[1].exact == expected
    assert costs[0].tokens_per_layer == costs[1].tokens_per_layer
    size = RankingSize(image=image, text=text, user=user, width=width, inner=heads * head_dim)
    assert isinstance(ranking.flops(size), int)


@dataclass(frozen=True)
class Tuned(vlmflow.Ranking):
    """Parameters of every kind that JSON holds."""

    power: float = 1.0
    steps: tuple[int, ...] = (1, 2)
    nested: tuple[tuple[int, ...], ...] = ()
    word: str = "plain"
    strict: bool = False
    limit: int | None = None
    drawn: tuple[int, ...] = field(default_factory=tuple)
    derived: float = field(default=0.0, init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "derived", self.power * 2)

    def scores(self, seen):
        return seen.image.float()


TUNED = (
    Tuned(),
    Tuned(power=2.5),
    Tuned(steps=(3,), strict=True),
    Tuned(word="a, b (c) = 'd'", nested=((1, 2), (3,)), limit=7),
    Tuned(drawn=(1, 2), word="true"),
)


@pytest.mark.parametrize("ranking", [*OWN, *ORACLES, Departure(2.0), *TUNED], ids=str)
def test_a_policy_survives_json_and_is_read_by_its_title(ranking):
    policy = vlmflow.Truncation((1, 3), (0.5, 2), ranking, "average", "repack")
    again = vlmflow.Truncation.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False)))
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.ranking == ranking
    assert type(again.ranking) is type(ranking)
    assert RANKINGS.read(ranking.title) == ranking
    text = f"layer=1:3,keep=0.5:2,rank_by={ranking.title},remainder=average,positions=repack"
    assert vlmflow.Truncation.parse(text) == policy
    assert vlmflow.Truncation(2, 4, ranking.title).ranking == ranking


def test_parameters_are_settings_of_a_policy_too():
    expected = vlmflow.Truncation(2, 4, Departure(2.0))
    assert vlmflow.Truncation.parse("layer=2,keep=4,rank_by=departure,power=2.0") == expected
    assert vlmflow.Truncation.parse("layer=2, keep=4, rank_by=departure( power = 2.0 )") == expected
    plain = {"layer": 2, "keep": 4, "rank_by": "departure", "power": 2.0}
    assert vlmflow.Truncation.from_json(plain) == expected
    assert repr(expected) == "Truncation(layer=2, keep=4, rank_by=Departure(power=2.0))"
    assert Departure(2.0).title == "departure(power=2.0)"
    assert Departure().title == "departure"
    assert Tuned().title == "tuned"


def refused(message: str):
    return pytest.raises(InputError, match=message)


def forward(ranking, layer=2, keep=KEEP, vlm=None):
    vlm = vlm or lvlm()
    with vlmflow.Truncation(layer, keep, rank_by=ranking)(vlm.model), torch.no_grad():
        return vlm.model(**prepared(vlm).inputs).logits


@pytest.mark.parametrize(
    ("attribute", "word"),
    [
        ("attention", "'keys' or 'attention'"),
        ("keys", "'keys' or 'attention'"),
        ("values", "'keys' or 'attention'"),
        ("queries", "'keys' or 'attention'"),
        ("places", "'places'"),
        ("places_if_known", "'places'"),
        ("maps", "'answer'"),
    ],
)
def test_what_was_not_declared_is_not_there(attribute, word):
    @dataclass(frozen=True)
    class Curious(vlmflow.Ranking):
        def scores(self, seen):
            return getattr(seen, attribute)

    message = rf"ranking 'curious' looks at seen\.{attribute} but declares .*add {word} to it"
    with refused(message):
        forward(Curious())


def test_rows_of_attention_need_no_more_than_keys():
    """Whoever reads keys may ask for attention rows; the cost is then the author's to state."""

    @dataclass(frozen=True)
    class ByKeys(vlmflow.Ranking):
        reads = "keys"

        def scores(self, seen):
            return -seen.attention_of(seen.text[-1:])[0]

    torch.testing.assert_close(forward(ByKeys()), forward(Unseen()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"reads": "pixels"}, "declares reads='pixels', but 'pixels' is none of hidden, keys"),
        ({"reads": ("keys", "gradients")}, "'gradients' is none of"),
        ({"reads": "attention", "rows": "first"}, "declares rows='first', .* last, text, all"),
        ({"reads": "answer"}, "reads the answer but declares no signal; write"),
        ({"reads": "answer", "signal": "nonsense"}, "signal 'nonsense' is unknown"),
        ({"reads": "answer", "signal": "llava_cam_smooth(copies=2)"}, "a mean over noisy pictures"),
        ({"name": "my ranking"}, "name='my ranking' of Bad is not a name; use letters"),
    ],
)
def test_bad_declarations_are_refused_before_anything_runs(body, message):
    def scores(self, seen):
        return seen.image.float()

    cls = dataclass(frozen=True)(type("Bad", (vlmflow.Ranking,), {"scores": scores, **body}))
    with refused(message):
        vlmflow.Truncation(2, 4, cls())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            lambda seen: seen.image.float()[1:],
            r"ranking bad gave scores of shape \(15,\), but .*16",
        ),
        (lambda seen: seen.image.float()[None], r"scores of shape \(1, 16\)"),
        (lambda seen: seen.image.float() / 0 * 0, "a score that is not a number"),
        (lambda seen: [1.0] * len(seen.image), "gave scores as a list: return a tensor of 16"),
        (lambda seen: None, "gave scores as a NoneType"),
    ],
    ids=["short", "deep", "nan", "list", "none"],
)
def test_bad_scores_are_refused(scores, message):
    @dataclass(frozen=True)
    class Bad(vlmflow.Ranking):
        def scores(self, seen):
            return scores(seen)

    with refused(message):
        forward(Bad())


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (torch.tensor([0, 1, 1, 2, 3]), r"shape \(5,\) with \[0, 1, 1, 2, 3\]"),
        (torch.tensor([0, 1, 2, 3]), r"shape \(4,\)"),
        (torch.arange(12), r"shape \(12,\) with \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\."),
        (torch.tensor([4, 3, 2, 1, 0]), r"shape \(5,\) with \[4, 3, 2, 1, 0\]"),
        (torch.tensor([0, 1, 2, 3, 16]), r"shape \(5,\) with \[0, 1, 2, 3, 16\]"),
        (torch.tensor([-1, 1, 2, 3, 4]), r"shape \(5,\) with \[-1, 1, 2, 3, 4\]"),
        (torch.tensor([5, 3, 5, 6, 7], dtype=torch.uint8), r"shape \(5,\) with \[5, 3, 5, 6, 7\]"),
        (torch.tensor([0.0, 1, 2, 3, 4]), r"shape \(5,\) with \[0\.0, 1\.0"),
        (torch.tensor([True] * 5), r"shape \(5,\) with \[True, True"),
        ([0, 1, 2, 3, 4], "a list"),
    ],
    ids=[
        "twice",
        "few",
        "many",
        "unsorted",
        "above",
        "below",
        "bytes",
        "fractions",
        "mask",
        "list",
    ],
)
def test_bad_choices_are_refused(chosen, shown):
    @dataclass(frozen=True)
    class Bad(vlmflow.Ranking):
        def select(self, seen, keep):
            return chosen

    message = f"ranking bad was to choose 5 of 16 image tokens, but select gave {shown}"
    with refused(message):
        forward(Bad())


def hooks_of(model):
    """How many each module has; transformers keeps some of its own."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("reads", ["hidden", "keys", "attention", "places", "answer"])
def test_a_ranking_that_fails_leaves_the_model_as_it_was(reads):
    @dataclass(frozen=True)
    class Failing(vlmflow.Ranking):
        signal = "saliency"

        def scores(self, seen):
            raise RuntimeError(f"cannot choose at layer {seen.layer}")

    Failing.reads = reads
    vlm = lvlm()
    prompt = prepared(vlm)
    with torch.no_grad():
        expected = vlm.model(**prompt.inputs).logits
    before = hooks_of(vlm.model)
    with pytest.raises(RuntimeError, match="cannot choose at layer 2"):
        forward(Failing(), vlm=vlm)
    with pytest.raises(RuntimeError, match="cannot choose at layer 2"):
        shared_answers(vlm, [prompt], [vlmflow.Truncation(2, KEEP, Failing())])
    assert hooks_of(vlm.model) == before
    with torch.no_grad():
        assert torch.equal(vlm.model(**prompt.inputs).logits, expected)


def test_a_class_without_a_choice_and_a_class_for_an_instance_are_refused():
    @dataclass(frozen=True)
    class Silent(vlmflow.Ranking):
        pass

    with refused(r"ranking 'silent' chooses nothing: define scores\(self, seen\) or select"):
        vlmflow.Truncation(2, 4, Silent())
    with refused(r"Departure is a class; pass an instance of it: Departure\(\)"):
        vlmflow.Truncation(2, 4, Departure)
    with refused("7 is not a ranking; give a name"):
        vlmflow.Truncation(2, 4, 7)
    with refused("is not a ranking; give a name"):
        vlmflow.Truncation(2, 4, Fifth())


def test_a_layer_before_is_needed_from_layer_1_on():
    for ranking in OWN:
        if ranking.needs_layer_before:
            with refused(f"rank_by='{ranking.known_as()}' needs the attention of the layer before"):
                vlmflow.Truncation(0, 4, ranking)
        else:
            assert vlmflow.Truncation(0, 4, ranking).ranking is ranking


def test_a_layer_without_attention_is_named():
    """Qwen3-Next: layers 0 to 2 of four have linear attention."""
    vlm = vlmflow.LVLM(
        *tiny_llava(
            layers=4,
            text_model="qwen3_next",
            text_config={
                "linear_num_value_heads": 2, "linear_num_key_heads": 2,
                "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                "num_experts": 2, "num_experts_per_tok": 1,
                "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
                "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            },
        )
    )  # fmt: skip
    for ranking in (Loudness(), AnyWord()):
        with refused("layer 1 has no attention to rank by; choose another layer"):
            forward(ranking, layer=2, vlm=vlm)
    assert forward(Departure(), layer=2, vlm=vlm).isfinite().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("departure(strength=2)", "ranking 'departure' has no parameter 'strength'; .* power"),
        ("unseen(power=2)", "ranking 'unseen' has no parameter 'power'; it has none"),
        ("departure(power)", "'power' in .* is not a parameter; write name=3"),
        ("departure(power=1,power=2)", "is not a parameter"),
        ("departure(power=1", "is not a ranking; write for example"),
        ("departures", "ranking 'departures' is unknown; there are .*departure"),
    ],
)
def test_bad_spellings_are_refused(text, message):
    with refused(message):
        vlmflow.Truncation(2, 4, text)


def test_a_missing_parameter_is_named():
    @dataclass(frozen=True)
    class Needy(vlmflow.Ranking):
        strength: int

        def scores(self, seen):
            return seen.image * self.strength

    with refused("ranking 'needy': .*'strength'"):
        as_ranking("needy")
    assert as_ranking("needy(strength=3)") == Needy(3)


def test_a_name_that_is_taken_is_refused_but_its_instance_works():
    @dataclass(frozen=True)
    class Uniform(vlmflow.Ranking):
        def scores(self, seen):
            return seen.image.float()

    try:
        with refused(r"ranking 'uniform' means .*Uniform and .*give yours another name"):
            vlmflow.Truncation(2, 4, "uniform")
        assert vlmflow.Truncation(2, 4, Uniform()).ranking == Uniform()
    finally:
        Uniform.name = "uniform_of_a_test"  # classes are known for as long as they live
    assert type(as_ranking("uniform")) is not Uniform
    assert type(as_ranking("uniform_of_a_test")) is Uniform


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "kept.value is a dict, which can change after it was passed"),
        ([1, 2], "kept.value is a list, which can change"),
        (np.zeros(2), "kept.value is a ndarray, which can change"),
    ],
    ids=["dict", "list", "array"],
)
def test_parameters_that_can_change_are_refused(value, message):
    @dataclass(frozen=True)
    class Kept(vlmflow.Ranking):
        value: object = None

        def scores(self, seen):
            return seen.image.float()

    with refused(message):
        vlmflow.Truncation(2, 4, Kept(value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), "held.value is a Tensor, which cannot be saved"),
        (print, "held.value is a builtin_function_or_method, which cannot be saved"),
        ((1, print), "held.value is a builtin_function_or_method, which cannot be saved"),
        (float("inf"), "held.value is inf, which cannot be saved; give a finite number"),
    ],
    ids=["tensor", "function", "inside", "infinite"],
)
def test_parameters_that_json_cannot_hold_run_but_are_not_saved(value, message):
    @dataclass(frozen=True)
    class Held(vlmflow.Ranking):
        value: object = None

        def scores(self, seen):
            return -seen.image.float()

    assert forward(Held(value)).isfinite().all()
    with refused(message):
        vlmflow.Truncation(2, 4, Held(value)).to_json()
    with refused(message):
        Held(value).fingerprint()


def test_a_parameter_may_not_be_called_name():
    @dataclass(frozen=True)
    class Titled(vlmflow.Ranking):
        name: str = "mine"

        def scores(self, seen):
            return seen.image.float()

    with refused("Titled has a parameter called 'name'"):
        vlmflow.Truncation(2, 4, Titled())


CELL = """
from dataclasses import dataclass
import vlmflow

@dataclass(frozen=True)
class Rerun(vlmflow.Ranking):
    '''{line}'''
    def scores(self, seen):
        return {sign}seen.image.float()
"""


def test_the_last_run_of_a_cell_counts():
    first, second = {"__name__": "a_notebook"}, {"__name__": "a_notebook"}
    exec(CELL.format(line="First try.", sign=""), first)
    assert RANKINGS.names()["rerun"] == "First try."
    exec(CELL.format(line="Second try.", sign="-"), second)
    assert RANKINGS.names()["rerun"] == "Second try."
    assert RANKINGS.find("rerun") is second["Rerun"]
    by_name, by_object = forward("rerun"), forward(second["Rerun"]())
    torch.testing.assert_close(by_name, by_object, rtol=0, atol=0)
    assert not torch.allclose(by_name, forward(first["Rerun"]()))


MODULE = """
from dataclasses import dataclass
import vlmflow

class Parent(vlmflow.Ranking):
    def helper(self):
        return {parent}

class Mixin:
    extra = {mixin}

@dataclass(frozen=True)
class Written(Parent, Mixin):
    power: float = 1.0
    {version}
    def scores(self, seen):
        return seen.image * {own}
"""


def written(directory, monkeypatch, *, number, parent=1, mixin=1, own=1, version=""):
    """Import a class from a file of its own module name."""
    name = f"written_{number}"
    text = MODULE.format(parent=parent, mixin=mixin, own=own, version=version)
    (directory / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(directory)
    return import_module(name).Written


def test_the_fingerprint_changes_with_parameters_and_code(tmp_path, monkeypatch):
    classes = [
        written(tmp_path, monkeypatch, number=number, **change)
        for number, change in enumerate(({}, {}, {"own": 2}, {"parent": 2}, {"mixin": 2}))
    ]
    prints = [cls().fingerprint() for cls in classes]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert classes[0](power=2.0).fingerprint() != prints[0]
    assert classes[0](power=1.0).fingerprint() == prints[0]
    stated = [
        written(tmp_path, monkeypatch, number=number, own=own, version=f"version = {version!r}")
        for number, own, version in ((5, 1, "1"), (6, 2, "1"), (7, 2, "2"))
    ]
    prints = [cls().fingerprint() for cls in stated]
    assert prints[0] == prints[1]  # taken at its word
    assert prints[1] != prints[2]


def test_a_version_stands_for_the_class_that_states_it():
    """A subclass is read all the same: its parent's version says nothing of it."""

    @dataclass(frozen=True)
    class Stated(Departure):
        version = "1"

    def children():
        @dataclass(frozen=True)
        class Child(Stated):
            def scores(self, seen):
                return seen.image.float()

        yield Child()

        @dataclass(frozen=True)
        class Child(Stated):
            def scores(self, seen):
                return -seen.image.float()

        yield Child()

    first, second = (child.fingerprint() for child in children())
    assert first != second


def test_the_fingerprint_of_an_oracle_changes_with_its_signal():
    @dataclass(frozen=True)
    class Other(FifthBefore):
        signal = Fifth()

    before = Other().fingerprint()
    Other.signal = Fifth(power=4)
    assert Other().fingerprint() != before


def test_a_class_without_source_has_to_state_a_version():
    names = {"__name__": "nowhere"}
    exec(CELL.format(line="From nowhere.", sign=""), names)
    with refused("the source of 'rerun' cannot be read, .* write version = '1' into the class"):
        names["Rerun"]().fingerprint()
    names["Rerun"].version = "1"
    assert names["Rerun"]().fingerprint()


def test_the_source_of_a_notebook_cell_is_read(monkeypatch):
    """IPython keeps each cell in linecache, under a file name that does not exist."""
    import linecache

    prints = []
    monkeypatch.setitem(sys.modules, "a_notebook", ModuleType("a_notebook"))
    for number, sign in enumerate(("", "", "-")):
        text = CELL.format(line="In a cell.", sign=sign)
        cell = f"<ipython-input-{number}>"
        linecache.cache[cell] = (len(text), None, text.splitlines(keepends=True), cell)
        names = {"__name__": "a_notebook"}
        exec(compile(text, cell, "exec"), names)
        prints.append(names["Rerun"]().fingerprint())
    assert prints[0] == prints[1] != prints[2]


SCRIPT = """
import base64, pickle, sys
from dataclasses import dataclass
import vlmflow

@dataclass(frozen=True)
class Shipped(vlmflow.Ranking):
    power: float = 1.0
    def scores(self, seen):
        return seen.image ** self.power

if __name__ == "__main__":
    from ray import cloudpickle
    ranking = Shipped(2.0)
    sent = base64.b64encode(cloudpickle.dumps(ranking)).decode()
    print(sent, ranking.fingerprint())
"""


def test_a_class_of_a_script_goes_to_workers_with_its_code(tmp_path):
    """As Ray ships what is defined in ``__main__``: by value, without the file."""
    pytest.importorskip("ray")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    sent, expected = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    path.unlink()
    code = f"""
    import base64, pickle
    ranking = pickle.loads(base64.b64decode({sent!r}))
    from vlmflow.truncation.rankings.registry import RANKINGS
    assert RANKINGS.read("shipped(power=2.0)") == ranking
    assert ranking.title == "shipped(power=2.0)"
    assert type(ranking)().title == "shipped"
    print(ranking.fingerprint())
    """
    worker = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert worker.returncode == 0, worker.stderr
    assert worker.stdout.strip() == expected


def install(monkeypatch, name: str, value: str) -> None:
    """Let an installed package offer a ranking."""
    module = ModuleType("their_rankings")
    module.Departure, module.number, module.Fifth = Departure, 7, Fifth
    monkeypatch.setitem(sys.modules, "their_rankings", module)
    point = metadata.EntryPoint(name, value, RANKINGS.group)

    def entry_points(*, group, name=None):
        assert group == "vlmflow.rankings"
        return metadata.EntryPoints([point] if name in (None, point.name) else [])

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def test_an_installed_package_adds_rankings(monkeypatch):
    module = ModuleType("their_rankings")
    monkeypatch.setitem(sys.modules, "their_rankings", module)

    def load(self):
        names = {"__name__": "their_rankings"}
        exec(CELL.replace("Rerun", "Theirs").format(line="Theirs.", sign="-"), names)
        return names["Theirs"]

    point = metadata.EntryPoint("theirs", "their_rankings:Theirs", RANKINGS.group)
    monkeypatch.setattr(metadata.EntryPoint, "load", load)
    monkeypatch.setattr(
        metadata, "entry_points", lambda *, group, name="theirs": [point] * (name == "theirs")
    )
    assert RANKINGS.names()["theirs"] == "from their_rankings:Theirs"
    policy = vlmflow.Truncation(2, 4, "theirs")
    assert type(policy.ranking).__module__ == "their_rankings"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seven", "their_rankings:number", "'their_rankings:number' of vlmflow.rankings is not a"),
        ("fifths", "their_rankings:Fifth", "is not a subclass of vlmflow.Ranking"),
        ("gone", "their_rankings:Gone", r"'gone' cannot be loaded from .* \(AttributeError"),
        ("none", "no_such_package:Mine", r"'none' cannot be loaded from .* uninstall its package"),
        (
            "misnamed",
            "their_rankings:Departure",
            "whose name is 'departure'; the two names must be",
        ),
    ],
)
def test_an_installed_ranking_that_cannot_be_used_is_one_sentence(
    monkeypatch, name, value, message
):
    install(monkeypatch, name, value)
    assert name in RANKINGS.names()
    with refused(message):
        vlmflow.Truncation(2, 4, name)


def test_names_are_listed_without_importing_torch():
    code = """
    import sys
    from dataclasses import dataclass
    import vlmflow

    @dataclass(frozen=True)
    class Mine(vlmflow.Ranking):
        '''One line of mine.'''

    from vlmflow.truncation.rankings.registry import RANKINGS
    from vlmflow.flow.signals.registry import SIGNALS
    names = RANKINGS.names()
    assert names['mine'] == 'One line of mine.'
    assert names['random'].startswith('seeded random choice')
    assert list(names)[-1] == 'mine'
    assert 'flow_map' in SIGNALS.names()
    from vlmflow.cli import app
    for command in ('rankings', 'signals'):
        try:
            app([command])
        except SystemExit as end:
            assert not end.code
    assert 'torch' not in sys.modules
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^last_attention +attention of the last prompt token", run.stdout, re.M)
    assert "flow_map" in run.stdout
