"""What belongs to a prompt stays with it: guesses, chunks, cropped turns, windows, compiling.

Every way of generating is either equal to the same run without the complication, or refused in a
sentence that names the reason.
"""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tests.support.families import FAMILIES, picture
from tests.support.slow_truncation import slow_logits
from tests.support.tiny import tiny_llava
from tests.truncation.test_truncation import BY_CONTENT, batch_of, encode
from vlmflow import LVLM
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.model_parts import image_token_ids
from vlmflow.truncation import Truncation
from vlmflow.truncation.shared_answers import shared_answers

REPEATS = "1 2 3 ASSISTANT: 1 2 3"  # the prompt's end occurs in it before
TURN = torch.tensor([[5, 9, 7, 11]])


def answer(model, inputs, **options):
    return model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True,
        return_dict_in_generate=True, suppress_tokens=[model.config.image_token_id], **options,
    )  # fmt: skip


def agree(first, second):
    assert torch.equal(first.sequences, second.sequences)
    torch.testing.assert_close(
        torch.cat(first.logits), torch.cat(second.logits), rtol=1e-4, atol=1e-5
    )


def small_guesser(model):
    """A language model with the same tokens, whose guesses are nearly always wrong."""
    text = model.config.get_text_config()
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()


class Lengths:
    """The lengths of the calls that a model gets."""

    def __init__(self, model):
        self.seen = []
        self.handle = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _model, _args, kwargs):
        self.seen.append(kwargs["input_ids"].shape[1])


# --- guesses and chunks ---

ASSISTED = ("llava_next", "lfm2_vl")
"""Others hand ``generate`` what transformers refuses an assistant of another kind."""


@pytest.mark.parametrize("ranking", [*BY_CONTENT, "random(seed=3)", "uniform"])
@pytest.mark.parametrize("remainder", ["drop", "average"])
def test_guesses_of_prompt_lookup_decide_about_nothing(ranking, remainder):
    model, processor = tiny_llava(3, layers=4)
    inputs = encode(processor, [1], REPEATS)
    policy = Truncation(2, 0.5, ranking, remainder)
    with policy(model) as run:
        plain = answer(model, inputs)
        counted = run.tokens_per_layer
        lengths = Lengths(model)
        guessed = answer(model, inputs, prompt_lookup_num_tokens=3)
    lengths.handle.remove()
    assert lengths.seen[0] > inputs["input_ids"].shape[1]  # the first call held guesses
    agree(plain, guessed)
    assert (run.tokens_per_layer == counted).all()


@pytest.mark.parametrize("ranking", [*BY_CONTENT, "random(seed=3)", "uniform"])
def test_without_a_cache_the_prompt_stays_the_prompt(ranking):
    """Every step then runs the answer so far with the prompt, of which it is no part."""
    model, processor = tiny_llava(3, layers=4)
    inputs = encode(processor, [1], "What is it?")
    with Truncation(2, 0.5, ranking)(model):
        agree(answer(model, inputs), answer(model, inputs, use_cache=False))


def test_guesses_of_another_model_decide_about_nothing():
    model, processor = tiny_llava(4, layers=4)
    inputs = encode(processor, [1], REPEATS)
    with Truncation(2, 4, "last_attention")(model):
        plain = answer(model, inputs)
        agree(plain, answer(model, inputs, assistant_model=small_guesser(model)))


@pytest.mark.parametrize(
    ("family", "guesser"),
    [
        *((family, "prompt_lookup_num_tokens") for family in FAMILIES),
        *((family, "assistant_model") for family in FAMILIES if family.name in ASSISTED),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_guesses_decide_about_nothing_in_any_family(family, guesser):
    """Sliding windows, convolutions and M-RoPE keep what a rejected guess leaves behind apart."""
    if family.queries:
        pytest.skip("its generate hands the language model embeddings, and guesses need tokens")
    vlm = family.lvlm()
    model, pictures = vlm.model, [picture(1, (40, 40))]
    # What a prompt ends with must occur in it before, so that there is something to look up.
    last = vlm.prepare(pictures, "Is it red?").inputs["input_ids"][0, -1:].tolist()
    ending = vlm.processor.tokenizer.decode(last)
    prompt = vlm.prepare(pictures, f"{ending} 1 2 3 {ending}")
    never = list(image_token_ids(model))
    settings = {
        "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "suppress_tokens": never,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    help_given = {guesser: 3} if guesser.endswith("tokens") else {guesser: small_guesser(model)}

    def run(**options):
        return model.generate(**prompt.inputs, **settings, **options)

    if model._is_stateful:
        with Truncation(1, 0.5)(model), pytest.raises(ValueError, match="stateful models"):
            run(**help_given)
        return
    helped = run(**help_given)
    if family.model_type == "paligemma":
        assert not torch.allclose(torch.cat(helped.logits), torch.cat(run().logits), atol=1e-3)
        pytest.skip("transformers lets its prompts look ahead at guesses, untruncated too")
    agree(run(), helped)
    with Truncation(family.first_attention + 1, 0.5, "last_attention")(model) as truncated:
        plain, counted = run(), truncated.tokens_per_layer
        lengths = Lengths(model)
        agree(plain, run(**help_given))
    lengths.handle.remove()
    assert lengths.seen[0] > prompt.inputs["input_ids"].shape[1]  # the first call held guesses
    assert (truncated.tokens_per_layer == counted).all()


def test_an_oracle_does_not_answer_with_guesses():
    model, processor = tiny_llava(5, layers=4)
    inputs = encode(processor, [1], REPEATS)
    with (
        Truncation(2, 4, "saliency")(model),
        pytest.raises(InputError, match="generate without prompt_lookup_num_tokens"),
    ):
        answer(model, inputs, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("taken", ["from the model", "from its class"])
def test_a_generate_that_is_not_watched_is_refused(taken):
    """Nothing would tell where the prompt ends."""
    model, processor = tiny_llava(5, layers=4)
    inputs = encode(processor, [1], REPEATS)
    generate = model.generate if "model" in taken else partial(type(model).generate, model)
    before = generate(**inputs, max_new_tokens=3)
    with (
        Truncation(2, 4)(model),
        pytest.raises(InputError, match=r"call model\.generate inside the block"),
    ):
        generate(**inputs, max_new_tokens=3)
    assert torch.equal(before, generate(**inputs, max_new_tokens=3))


@pytest.mark.parametrize("by_config", [False, True])
def test_a_prefill_in_chunks_is_refused(by_config):
    model, processor = tiny_llava(6, layers=4)
    inputs = encode(processor, [1], "What is it?")
    expected = answer(model, inputs)
    options = {} if by_config else {"prefill_chunk_size": 8}
    if by_config:
        model.generation_config.prefill_chunk_size = 8
    with (
        Truncation(2, 0.5)(model),
        pytest.raises(InputError, match=r"prefill_chunk_size cannot be used .* all image tokens"),
    ):
        answer(model, inputs, **options)
    assert "generate" not in vars(model)
    model.generation_config.prefill_chunk_size = None
    agree(expected, answer(model, inputs))


# --- conversations ---


def test_a_turn_that_had_removed_tokens_is_cropped_by_its_positions():
    model, processor = tiny_llava(7, layers=4)
    inputs = encode(processor, [1], "What?")
    ids, token = inputs["input_ids"][0], model.config.image_token_id
    images = (ids == token).nonzero()[:, 0].tolist()
    back = len(ids) - images[9]  # nine of sixteen image tokens are left
    policy = Truncation(1, 8, "last_attention")
    cache = DynamicCache()
    with policy(model), torch.no_grad():
        model(**inputs, past_key_values=cache)
        kept = [p for p in cache.layers[2].positions[0].tolist() if p in images]
        cache.crop(-back)
        assert cache.get_seq_length() == images[9]
        mask = torch.ones(1, images[9] + TURN.shape[1])
        fast = model(TURN, attention_mask=mask, past_key_values=cache).logits[0]
    left = [p for p in kept if p < images[9]]
    assert 0 < len(left) < len(kept)
    slow = {
        "layers": [1], "keeps": [len(left)], "remainder": "drop", "positions": "keep",
        "rank_by": lambda shown: {p: float(p in left) for p in shown.left},
    }  # fmt: skip
    whole = torch.cat([ids[: images[9]], TURN[0]])
    pixels = inputs["pixel_values"]
    expected, seen = cropped_logits(model, whole, pixels, ids, images[9], slow, token)
    assert cache.layers[3].positions[0].tolist() == seen[3]
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=2e-5)


def cropped_logits(model, whole, pixels, ids, cut, policy, token):
    """Half a picture cannot be encoded: the slow way gets all embeddings and forgets the rest.

    The tokens between are hidden by running them after everything else.
    """
    images = int((ids == token).sum())
    features = model.get_image_features(pixel_values=pixels).pooler_output[0]
    embedded = model.get_input_embeddings()(whole).detach()
    is_image = whole == token
    embedded[is_image] = features[: int(is_image.sum())].detach()
    assert int(is_image.sum()) < images

    class Embedded(nn.Module):
        config = model.config

        def get_decoder(self):
            return model.get_decoder()

        def __getattr__(self, name):
            return getattr(model, name)

        def __call__(self, *, input_ids, pixel_values, **options):
            return model(inputs_embeds=embedded[None], **options)

    with torch.no_grad():
        return tail(slow_logits(Embedded(), whole, pixels, cut, policy, token), cut)


def tail(result, start):
    logits, seen = result
    return logits[start:], seen


@pytest.mark.parametrize("positions", ["keep", "repack"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_conversation_goes_on_under_a_later_truncation(positions, attention):
    """The picture was cut from layer 1 on; the next turn's truncation begins at layer 3."""
    model, processor = tiny_llava(8, layers=4, attn_implementation=attention)
    inputs = encode(processor, [1], "What?")
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(1, length + TURN.shape[1])
    logits = []
    for following in (
        Truncation(1, 0.5, positions=positions),
        Truncation(3, 0, positions=positions),
    ):
        cache = DynamicCache()
        with Truncation(1, 0.5, positions=positions)(model), torch.no_grad():
            model(**inputs, past_key_values=cache)
        with following(model), torch.no_grad():
            logits.append(model(TURN, attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)

    cache = DynamicCache()
    with Truncation(1, 0.5)(model), torch.no_grad():
        model(**inputs, past_key_values=cache)
    with torch.no_grad(), pytest.raises(ModelError, match="go on inside a truncation block"):
        model(TURN, attention_mask=mask, past_key_values=cache)
    # Where nothing was removed nothing is missing.
    logits = []
    for policy in (None, Truncation(1, 1.0)):
        cache = DynamicCache()
        with torch.no_grad():
            if policy is None:
                model(**inputs, past_key_values=cache)
            else:
                with policy(model):
                    model(**inputs, past_key_values=cache)
            logits.append(model(TURN, attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


SLIDING = [family for family in FAMILIES if family.name.startswith("gemma3")]


@pytest.mark.parametrize("family", SLIDING, ids=lambda family: family.name)
@pytest.mark.parametrize("positions", ["keep", "repack"])
def test_keys_that_left_a_window_keep_their_number(family, positions):
    vlm = family.lvlm()
    text = vlm.model.config.get_text_config()
    window = text.sliding_window
    prompt = vlm.prepare([picture(1, (40, 40))], "Is it red?")
    policy = Truncation(1, 0.25, "uniform", positions=positions)
    steps = window + 3
    with policy(vlm.model):
        cached = vlm.model.generate(
            **prompt.inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
            suppress_tokens=list(vlm.image_token_ids),
        )  # fmt: skip
        whole = dict(prompt.inputs)
        ids = cached.sequences[:, :-1]
        whole["input_ids"] = ids
        whole["attention_mask"] = torch.ones_like(ids)
        if "token_type_ids" in whole:
            more = ids.shape[1] - whole["token_type_ids"].shape[1]
            whole["token_type_ids"] = nn.functional.pad(whole["token_type_ids"], (0, more))
        with torch.no_grad():
            logits = vlm.model(**whole, use_cache=False).logits[0, -steps:]
    torch.testing.assert_close(torch.cat(cached.logits), logits, rtol=1e-3, atol=1e-4)


# --- compiled models and wrappers ---


class Wrapper(nn.Module):
    """Wraps a model as PEFT does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_base_model(self):
        return self.inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("part", ["model", "model.model", "decoder", "layers", "attention"])
def test_a_compiled_model_is_truncated_and_explained(part):
    """Hooks that come after compiling are not seen by compiled modules."""
    model, processor = tiny_llava(9, layers=3)
    inputs = encode(processor, [1], "What?")
    policy = Truncation(1, 3, "last_attention")
    vlm = LVLM(model, processor)
    question = ([picture(1, (40, 40))], "What?")
    untouched = answer(model, inputs)
    with policy(model):
        expected = answer(model, inputs)
    flow = vlm.explain(*question, answer="1 2")
    layers = model.get_decoder().layers
    parts = {
        "model": [model], "model.model": [model.model], "decoder": [model.get_decoder()],
        "layers": list(layers), "attention": [layer.self_attn for layer in layers],
    }[part]  # fmt: skip
    for module in parts:
        module.compile(backend="eager")
    compiled = [module._compiled_call_impl for module in parts]
    agree(untouched, answer(model, inputs))  # compiled now, without hooks
    with policy(model):
        agree(expected, answer(model, inputs))
    again = vlm.explain(*question, answer="1 2")
    for name in flow.maps:
        np.testing.assert_allclose(again.maps[name], flow.maps[name], rtol=1e-4, atol=1e-6)
    assert [module._compiled_call_impl for module in parts] == compiled
    agree(untouched, answer(model, inputs))
    torch._dynamo.reset()


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), Wrapper])
def test_a_wrapped_model_is_truncated(wrap):
    model, processor = tiny_llava(10, layers=3)
    inputs = encode(processor, [1], "What?")
    policy = Truncation(1, 3, "last_attention")
    with policy(model), torch.no_grad():
        expected = answer(model, inputs), model(**inputs).logits
    wrapped = wrap(model)
    if not isinstance(wrapped, Wrapper):
        wrapped(**inputs)  # compiled now
        with policy(wrapped), torch.no_grad():
            torch.testing.assert_close(wrapped(**inputs).logits, expected[1])
    with policy(wrapped) as run:
        agree(expected[0], answer(wrapped, inputs))
    assert run.tokens_per_layer.shape == (1, 3)
    flow = LVLM(wrapped, processor).explain([picture(1, (40, 40))], "What?", answer="1")
    bare = LVLM(model, processor).explain([picture(1, (40, 40))], "What?", answer="1")
    np.testing.assert_allclose(flow.map("saliency", 1), bare.map("saliency", 1), rtol=1e-4)
    torch._dynamo.reset()


def test_a_block_in_which_nothing_was_removed_says_so(monkeypatch):
    model, processor = tiny_llava(11, layers=3)
    inputs = encode(processor, [1], "What?")
    monkeypatch.setattr(type(model), "generate", lambda self, **kwargs: kwargs["input_ids"])
    with pytest.raises(ModelError, match="nothing was removed"), Truncation(1, 3)(model):
        model.generate(**inputs)
    with Truncation(1, 3)(model):
        pass  # nothing ran, nothing to say


def test_an_error_inside_a_block_is_the_one_that_is_raised(monkeypatch):
    model, processor = tiny_llava(11, layers=3)
    inputs = encode(processor, [1], "What?")

    def broken(_self, **_kwargs):
        raise ValueError("mine")

    monkeypatch.setattr(type(model), "generate", broken)
    with pytest.raises(ValueError, match="mine"), Truncation(1, 3)(model):
        model.generate(**inputs)
    assert "generate" not in vars(model)


# --- proof of what a run did ---


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "policy",
    [
        Truncation(2, 0),
        Truncation((1, 3), (0.5, 2), "diversity"),
        Truncation(1, 4, "random", "average"),
        Truncation(1, 1.0),
    ],
    ids=repr,
)
def test_tokens_per_layer_are_counted_in_the_cache(policy, cached):
    model, processor = tiny_llava(12, layers=4)
    prompts = [encode(processor, [1], "What?"), encode(processor, [2, 3], "Is it red or blue?")]
    batch = batch_of(processor, prompts)
    with policy(model) as run, torch.no_grad():
        with pytest.raises(InputError, match="no prompt with pictures has run"):
            run.tokens_per_layer  # noqa: B018
        model(**batch, use_cache=cached)
        counted = run.tokens_per_layer
    for row, prompt in enumerate(prompts):
        ids = prompt["input_ids"][0]
        images = int((ids == model.config.image_token_id).sum())
        left = images
        for layer in range(4):
            for stage in policy.stages:
                if stage.layer == layer:
                    left = min(stage.keep.of(images), left)
            more = policy.remainder == "average" and layer >= 1
            assert counted[row, layer] == len(ids) - images + left + more


# --- the model is left as found ---

CONVERSING = [family for family in FAMILIES if "qwen" in family.model_type or "glm" in family.name]


@pytest.mark.parametrize("family", CONVERSING, ids=lambda family: family.name)
@pytest.mark.parametrize("between", ["explain", "removal_curve", "generate", "oracle"])
def test_a_running_conversation_does_not_notice(family, between):
    """Qwen-VL keeps the offset of its positions on a module, from one call to the next."""
    vlm = family.lvlm()
    model = vlm.model
    prompt = vlm.prepare([picture(1, (56, 28))], "Is it red?")
    turn = vlm.processor.tokenizer("and blue?", return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt.inputs["input_ids"], turn], dim=1)
    logits = []
    for disturbed in (False, True):
        torch.manual_seed(0)
        with torch.no_grad():
            first = model.generate(
                **prompt.inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True
            )
        cache = first.past_key_values
        if disturbed:
            other = [picture(2, (84, 84))], "What is in this picture, and where is it?"
            if between == "explain":
                vlm.explain(*other, answer="red")
            elif between == "removal_curve":
                vlm.removal_curve(*other, answer="red")
            elif between == "generate":
                vlm.generate(*other, max_new_tokens=2)
            else:
                vlm.generate(*other, max_new_tokens=2, truncation=Truncation(1, 2, "saliency"))
        with torch.no_grad():
            following = model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), past_key_values=cache,
                max_new_tokens=2, min_new_tokens=2, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        logits.append(torch.cat(following.logits))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_threads_explain_one_model_one_after_the_other():
    model, processor = tiny_llava(13, layers=3)
    vlm = LVLM(model, processor)
    questions = [([picture(seed, (40, 40))], f"What is {seed}?") for seed in range(6)]
    expected = [vlm.explain(*question, answer="1 2") for question in questions]
    flows = [None] * len(questions)

    def work(number):
        flows[number] = vlm.explain(*questions[number], answer="1 2")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for flow, single in zip(flows, expected, strict=True):
        for name in single.maps:
            np.testing.assert_array_equal(flow.maps[name], single.maps[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_measuring_inside_a_block_is_refused():
    model, processor = tiny_llava(14, layers=3)
    vlm = LVLM(model, processor)
    question = [picture(1, (40, 40))], "What?"
    with Truncation(1, 0)(model):
        with pytest.raises(InputError, match="an explanation measures the untouched model"):
            vlm.explain(*question, answer="1")
        with pytest.raises(InputError, match="a removal curve measures the untouched model"):
            vlm.removal_curve(*question, answer="1")
        assert vlm.generate(*question, max_new_tokens=2) is not None
    vlm.explain(*question, answer="1")


def test_a_wholly_offloaded_model_runs_where_accelerate_says():
    accelerate = pytest.importorskip("accelerate")
    model, processor = tiny_llava(15, layers=3)
    question = [picture(1, (40, 40))], "What?"
    policy = Truncation(1, 3, "last_attention")

    def everything():
        vlm = LVLM(model, processor)
        assert vlm.device == torch.device("cpu")
        flow = vlm.explain(*question, answer="1 2")
        curve = vlm.removal_curve(*question, answer="1 2")
        return flow, curve, vlm.generate(*question, max_new_tokens=4, truncation=policy)

    flow, curve, said = everything()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.device.type == "meta"
    again, curve_again, said_again = everything()
    for name in flow.maps:
        np.testing.assert_allclose(again.maps[name], flow.maps[name], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(curve_again.mean_kl, curve.mean_kl, rtol=1e-5, atol=1e-7)
    assert said_again == said


@pytest.mark.parametrize(
    "settings",
    [{"use_cache": False}, {"guidance_scale": 1.8}, {"repetition_penalty": 2.0}],
    ids=str,
)
def test_shared_answers_are_those_of_generate_whatever_the_model_is_set_to(settings):
    model, processor = tiny_llava(16, layers=4)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    vlm = LVLM(model, processor)
    prompt = vlm.prepare([picture(1, (40, 40))], "What?")
    policies = [Truncation(1, 0), Truncation(2, 0.5, "last_attention")]
    (shared,) = shared_answers(vlm, [prompt], policies, max_new_tokens=6)
    assert shared == [
        vlm.generate_ids(prompt, max_new_tokens=6, truncation=policy)
        for policy in (None, *policies)
    ]


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 40),
        ({"rope_type": "linear", "factor": 8.0}, 320),
        ({"rope_type": "dynamic", "factor": 2.0}, 80),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}, 40),
    ],
)
def test_prompts_may_be_as_long_as_rope_scaling_allows(rope, limit):
    model, processor = tiny_llava(17, layers=2)
    text = model.config.get_text_config()
    text.max_position_embeddings, text.rope_parameters = 40, {**rope, "rope_theta": 10000.0}
    vlm = LVLM(model, processor)
    prompt = vlm.prepare([picture(1, (40, 40))], "What?")
    assert vlm.room_for_answer(prompt, 1000) == limit - len(prompt.layout)
