"""The model is left exactly as found, whatever happens, and no more passes are made than said."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

import vlmflow
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError
from vlmflow.flow import sample_record
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.llava_cam import LlavaCam
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt

ANSWER = "a red circle"
SIGNALS = ("attention", "saliency", "llava_cam")


@pytest.fixture
def vlm() -> LVLM:
    return LVLM(*tiny_llava(kv_heads=2))


@pytest.fixture
def prompt(vlm) -> Prompt:
    values = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return vlm.prepare(Image.fromarray(values), "What is it?", ANSWER)


def run(vlm: LVLM, prompt: Prompt, *, on_pass=None, **options: Any):
    chosen = ExplainOptions(**{"signals": SIGNALS, **options})
    layouts, layers = [prompt.layout], vlm.decoder_layers
    return measure(vlm.model, layers, prompt.inputs, layouts, chosen, on_pass=on_pass)[0]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that measuring could disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    configs = {
        name: module.config for name, module in model.named_modules() if hasattr(module, "config")
    }
    return {
        "attention": {
            name: config._attn_implementation_internal for name, config in configs.items()
        },
        "config": model.config.to_dict(),
        "training": {name: module.training for name, module in model.named_modules()},
        "trainable": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "gradients": {name: weight.grad for name, weight in model.named_parameters()},
        "hooks": {
            (name, kind): list(getattr(module, kind))
            for name, module in model.named_modules()
            for kind in hooks
        },
        "own attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "grad mode": torch.is_grad_enabled(),
        "attention functions": set(AttentionInterface._global_mapping),
        "mask functions": set(AttentionMaskInterface._global_mapping),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in before["weights"]:
        assert torch.equal(before["weights"][name], after["weights"][name]), name
    for what in before.keys() - {"weights"}:
        assert before[what] == after[what], what


def unusual(vlm: LVLM, prompt: Prompt) -> None:
    """Give the model a state of its own, so that nothing is put "back" to a default."""
    vlm.model(**prompt.inputs)  # transformers notes a thing or two in a model's first forward
    vlm.model.train()
    vlm.decoder_layers[1].eval()
    vlm.model.lm_head.requires_grad_(False)
    vlm.decoder_layers[2].mlp.requires_grad_(False)
    vlm.decoder_layers[0].register_forward_hook(lambda _module, _args, _output: None)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("hook", ["post_attention_norm", "layer_input", "layer_output"])
def test_model_is_left_as_found(vlm, prompt, low_memory, hook):
    unusual(vlm, prompt)
    before = state_of(vlm.model)
    run(vlm, prompt, low_memory=low_memory, signals=[*SIGNALS[:2], LlavaCam(hook)])
    assert_same(before, state_of(vlm.model))


@pytest.mark.parametrize("low_memory", [False, True])
def test_model_is_left_as_found_when_the_forward_raises(vlm, prompt, monkeypatch, low_memory):
    unusual(vlm, prompt)
    with monkeypatch.context() as patch:
        mlp = vlm.decoder_layers[2].mlp
        patch.setattr(mlp.act_fn, "forward", lambda _x: 1 / 0, raising=False)
        before = state_of(vlm.model)
        with pytest.raises(ModelError, match="refuses this prompt: division by zero"):
            run(vlm, prompt, low_memory=low_memory)
        assert_same(before, state_of(vlm.model))


@pytest.mark.parametrize(
    ("where", "low_memory"),
    [
        ("signed_saliency", False), ("backward", False),
        ("signed_saliency", True), ("mean_attention", True), ("backward", True),
    ],
)  # fmt: skip
def test_model_is_left_as_found_when_measuring_raises(vlm, prompt, monkeypatch, where, low_memory):
    unusual(vlm, prompt)
    before = state_of(vlm.model)

    def fail(*_args: Any, **_options: Any) -> None:
        raise MemoryError("full")

    owner = torch.Tensor if where == "backward" else sample_record
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fail)
        with pytest.raises(MemoryError):
            run(vlm, prompt, low_memory=low_memory)
    assert_same(before, state_of(vlm.model))
    run(vlm, prompt)  # and it can be measured again


def test_attention_is_measured_where_no_gradient_comes_by(vlm, prompt, monkeypatch):
    """A layer's output that nothing reads passes no gradient on: its attention is there still."""
    expected = run(vlm, prompt)
    layer = vlm.decoder_layers[1]
    o_proj = layer.self_attn.o_proj
    untouched = o_proj.forward
    monkeypatch.setattr(o_proj, "forward", lambda states: untouched(states.detach()))
    measured = run(vlm, prompt)
    np.testing.assert_allclose(measured.attention_share, expected.attention_share, rtol=1e-6)
    np.testing.assert_allclose(measured.maps["attention"], expected.maps["attention"], rtol=1e-6)
    assert not measured.maps["saliency"][1].any()
    assert measured.flags["attention"][1, 0] == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_and_comes_back_under_any_grad_mode(vlm, prompt, mode):
    expected = run(vlm, prompt).maps["saliency"]
    with mode():
        enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        measured = run(vlm, prompt).maps["saliency"]
        assert torch.is_grad_enabled() == enabled
        assert torch.is_inference_mode_enabled() == inference
    np.testing.assert_array_equal(measured, expected)


def test_gradients_of_a_training_run_survive(vlm, prompt):
    weight = vlm.model.lm_head.weight
    weight.grad = torch.ones_like(weight)
    run(vlm, prompt)
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_dropout_is_off_while_measuring(prompt):
    vlm = LVLM(*tiny_llava(kv_heads=2, text_config={"attention_dropout": 0.5}))
    expected = run(vlm, prompt).maps["saliency"]
    vlm.model.train()
    np.testing.assert_array_equal(run(vlm, prompt).maps["saliency"], expected)


@pytest.mark.parametrize("low_memory", [False, True])
def test_one_forward_and_one_backward_per_answer_token(vlm, prompt, monkeypatch, low_memory):
    forwards, backwards = [], []
    vlm.model.register_forward_hook(lambda *_: forwards.append(1))
    whole = torch.Tensor.backward

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> None:
        backwards.append(1)
        whole(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    tokens = len(prompt.layout.answer_positions)
    assert tokens > 1
    seen: list[int] = []
    run(vlm, prompt, low_memory=low_memory, on_pass=lambda: seen.append(1))
    assert (len(forwards), len(backwards), len(seen)) == (1, tokens, 1 + tokens)
    run(vlm, prompt, low_memory=low_memory, per_token=False)
    assert (len(forwards), len(backwards)) == (2, tokens + 1)


def test_a_model_that_gives_all_logits_gives_the_same(vlm, prompt):
    expected = run(vlm, prompt).maps["saliency"]
    whole = vlm.model.forward

    def forward(input_ids: Any, attention_mask: Any, pixel_values: Any, use_cache: bool) -> Any:
        return whole(input_ids, pixel_values, attention_mask, use_cache=use_cache)

    vlm.model.forward = forward
    measured = run(vlm, prompt).maps["saliency"]
    # The head's product over all rows rounds otherwise than over a few.
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_vision_tower_keeps_its_attention_and_gets_no_gradient(vlm, prompt):
    seen = []

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        seen.append((module.config._attn_implementation, output[0].requires_grad))

    for module in vlm.model.modules():
        if type(module).__name__ == "CLIPAttention":
            module.register_forward_hook(look)
    run(vlm, prompt)
    assert seen == [("sdpa", False)] * 2


def test_attention_stays_fused(vlm, prompt, monkeypatch):
    """The model's own SDPA runs once per layer, in the decoder as in the vision tower."""
    calls = []
    whole = nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return whole(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    run(vlm, prompt)
    assert len(calls) == 4 + 2


@pytest.mark.parametrize("low_memory", [False, True])
def test_nothing_is_kept_after_measuring(vlm, prompt, low_memory):
    """No hook, closure or cache may hold activations: the next picture needs the room."""
    held = []

    def remember(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        held.append(weakref.ref(output))

    vlm.decoder_layers[1].self_attn.q_proj.register_forward_hook(remember)
    gc.disable()  # references must go by themselves, not by the collector
    try:
        run(vlm, prompt, low_memory=low_memory)
        assert held
        assert not any(reference() is not None for reference in held)
    finally:
        gc.enable()


def test_flex_attention_is_refused_in_one_sentence(vlm, prompt):
    vlm.model.model.language_model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ModelError, match=r"flex_attention.*sdpa"):
        run(vlm, prompt)


def test_attention_outside_the_interface_is_refused(vlm, prompt, monkeypatch):
    def own(module: nn.Module, hidden_states: torch.Tensor, **_options: Any) -> Any:
        return module.o_proj(module.q_proj(hidden_states)), None

    monkeypatch.setattr(type(vlm.decoder_layers[0].self_attn), "forward", own)
    with pytest.raises(ModelError, match="AttentionInterface"):
        run(vlm, prompt)


def test_layers_without_attention_say_so(vlm, prompt, monkeypatch):
    """As in hybrids: layer 1 mixes positions by other means."""
    attention = vlm.decoder_layers[1].self_attn
    monkeypatch.setattr(
        attention, "forward", lambda hidden_states, **_: (hidden_states.cumsum(1), None)
    )
    measured = run(vlm, prompt)
    for signal in ("attention", "saliency"):
        flags = measured.flags[signal]
        assert (flags[1] == 3).all()
        assert (flags[[0, 2, 3]] == 0).all()
    assert not measured.attention_share[1].any()
    np.testing.assert_allclose(measured.attention_share[[0, 2, 3]].sum(-1), 1, rtol=1e-5)


def test_norm_under_another_name_is_found_and_a_missing_one_named(vlm, prompt):
    expected = run(vlm, prompt).maps["llava_cam"]
    for layer in vlm.decoder_layers:
        layer.ffn_norm = layer.post_attention_layernorm
    np.testing.assert_array_equal(run(vlm, prompt).maps["llava_cam"], expected)
    with pytest.raises(InputError, match=r"hook='ffn'.*layer_input.*'self_attn'"):
        run(vlm, prompt, signals=[LlavaCam("ffn")])
    with pytest.raises(InputError, match=r"hook='self_attn'.*one tensor"):
        run(vlm, prompt, signals=[LlavaCam("self_attn")])


def test_a_forward_set_on_the_instance_is_kept(vlm, prompt):
    """As accelerate does to move weights: it must be called, and be there afterwards."""
    norm, layer = vlm.decoder_layers[1].post_attention_layernorm, vlm.decoder_layers[1]
    called = []
    for module in (norm, layer):
        inner = module.forward

        def forward(*args: Any, inner: Any = inner, **options: Any) -> Any:
            called.append(1)
            return inner(*args, **options)

        module.forward = forward
    before = (norm.forward, layer.forward)
    run(vlm, prompt, low_memory=True)
    assert called
    assert (norm.forward, layer.forward) == before


def test_logits_that_are_not_finite_are_an_error(vlm, prompt):
    with torch.no_grad():
        vlm.model.lm_head.weight[7] = torch.nan
    with pytest.raises(ModelError, match=r"the target is not finite.*float32 or bfloat16"):
        run(vlm, prompt)


def test_gradients_that_are_not_finite_are_an_error(vlm, prompt):
    """A finite forward whose backward overflows, as half precision does."""
    vlm.decoder_layers[3].mlp.register_full_backward_hook(
        lambda _module, gradients, _outputs: tuple(gradient * torch.inf for gradient in gradients)
    )
    with pytest.raises(ModelError, match="not finite at layer"):
        run(vlm, prompt)


def test_llava_cam_of_one_layer_by_autograd(vlm, prompt):
    """The same pass without any of our hooks: plain SDPA, autograd.grad."""
    measured = run(vlm, prompt, per_token=False).maps["llava_cam"][1, 0]
    seen = []
    handle = vlm.decoder_layers[1].post_attention_layernorm.register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    logits = vlm.model(**prompt.inputs).logits[0].log_softmax(-1)
    handle.remove()
    layout, ids = prompt.layout, prompt.inputs["input_ids"][0]
    score = sum(logits[position - 1, ids[position]] for position in layout.answer_positions)
    (gradient,) = torch.autograd.grad(score, seen)
    image = layout.image_positions
    expected = (seen[0][0, image] @ gradient[0, image].mean(0)).relu().detach().numpy()
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_a_model_without_gradients_is_refused_and_never_called_empty():
    model, processor = tiny_llava(5, layers=3)
    question = [Image.new("RGB", (20, 20), "red")], "What?"
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    for options in ({}, {"low_memory": True}, {"signals": ["llava_cam"]}):
        with pytest.raises(ModelError, match=r"no gradient passes through Llava.*gradients=False"):
            vlmflow.LVLM(quantised, processor).explain(*question, answer="1 2", **options)
    with torch.inference_mode():
        inferring, _ = tiny_llava(5, layers=3)
    with pytest.raises(ModelError, match="load it outside of inference_mode"):
        vlmflow.LVLM(inferring, processor).explain(*question, answer="1 2")
    vlmflow.LVLM(model, processor).explain(*question, answer="1 2")


def quantised_by_torch(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def quantised_by_torchao(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    activations = torchao.Int8DynamicActivationInt8WeightConfig()
    torchao.quantize_(model.get_decoder(), activations)
    return model


def made_for_inference(_model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return tiny_llava(5, layers=3, attn_implementation="eager")[0]


@pytest.mark.parametrize(
    "kind", [quantised_by_torch, quantised_by_torchao, made_for_inference, lambda model: model]
)
def test_attention_is_measured_where_no_gradient_passes(kind):
    model, processor = tiny_llava(5, layers=3, attn_implementation="eager")
    vlm = vlmflow.LVLM(kind(model), processor)
    prompt = vlm.prepare([Image.new("RGB", (20, 20), "red")], "What?", "1 2")
    with torch.no_grad():
        weights = vlm.model(**prompt.inputs, output_attentions=True, use_cache=False).attentions
    rows = torch.stack([of_layer[0].mean(0) for of_layer in weights])[:, prompt.layout.answer_rows]
    flow = vlm.explain([Image.new("RGB", (20, 20), "red")], "What?", answer="1 2", gradients=False)
    expected = rows[:, :, prompt.layout.image_positions].numpy()
    np.testing.assert_allclose(flow.maps["attention"][:, 1:], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flow.maps["attention"][:, 0], expected.mean(1), rtol=1e-4, atol=1e-6)
    assert flow.signals == ("attention",)


def test_without_gradients_there_is_one_pass_and_no_graph(vlm, prompt, monkeypatch):
    graphs, passes = [], []
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: pytest.fail("a backward pass"))
    vlm.decoder_layers[-1].register_forward_hook(
        lambda _layer, _args, output: graphs.append(
            (output[0] if isinstance(output, tuple) else output).requires_grad
        )
    )
    run(vlm, prompt, signals=None, gradients=False, on_pass=lambda: passes.append(1))
    assert graphs == [False]
    assert len(passes) == 1


def test_signals_of_gradients_are_refused_without_them():
    with pytest.raises(InputError, match=r"saliency, llava_cam are made of gradients"):
        ExplainOptions(signals=SIGNALS, gradients=False)
