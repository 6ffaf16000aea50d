"""What is computed for a server is what a cache really holds."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

import vlmflow
from tests.studies.test_own_tasks import Brightness
from tests.support.tiny import tiny_llava
from vlmflow import ExitPolicy, Truncation, cli
from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.skeleton import open_skeleton
from vlmflow.serving.cache_sizes import CacheSizes
from vlmflow.serving.estimate import (
    Request,
    concurrent,
    served_requests,
    weight_bytes,
)
from vlmflow.serving.measure import measure_requests
from vlmflow.truncation.timing import timed_answer


@pytest.fixture(scope="module", params=[4, 2])
def vlm(request):
    """With a key head for every query head, and with shared ones."""
    return vlmflow.LVLM(*tiny_llava(3, layers=4, kv_heads=request.param), name="tiny")


@pytest.mark.parametrize(
    "policy",
    [Truncation(1, 0), Truncation((1, 3), (0.5, 2)), Truncation(2, 0.25, remainder="average")],
)
def test_computed_bytes_are_those_of_the_cache(vlm, policy):
    (sample,) = Brightness().samples("test", 1)
    prompt = vlm.prepare(sample.pictures, sample.question)
    image = len(prompt.layout.positions_of(Segment.IMAGE))
    text = prompt.inputs["input_ids"].shape[1] - image
    for way, place in ((None, 0), (policy, 1)):
        run = timed_answer(vlm, prompt, way, max_new_tokens=5)
        # The last token is never fed back.
        request = Request(text, image, answer=max(1, len(run.ids) - 1))
        row = served_requests(vlm.model, vlm.decoder_layers, policy, request, 4)[place]
        assert row.prompt_tokens == run.cached_tokens
        if len(run.ids) == 5:  # no end token, which the cache would hold as well
            assert row.cache_bytes == run.cache_bytes
            assert sum(row.layer_bytes) == run.cache_bytes


def test_an_exit_policy_has_a_row_per_exit(vlm):
    policy = ExitPolicy(layer=(1, 3), keep=(2, 0), signal="image_attention", thresholds=(0.0, 0.0))
    rows = served_requests(vlm.model, vlm.decoder_layers, policy, Request(10, 16, 3), 2)
    assert [row.exit_layer for row in rows] == [None, 1, 3]
    assert rows[1].prompt_tokens == (26, 12, 12, 12)
    assert rows[2].prompt_tokens == (26, 26, 26, 10)
    assert rows[0].decoder_share == 1 > rows[2].decoder_share > rows[1].decoder_share


def test_sliding_windows_bound_a_cache_and_states_are_refused():
    model, _ = tiny_llava(3, layers=4)
    layers = model.model.language_model.layers
    config = model.config.text_config
    whole = CacheSizes.of(model, layers, 2)
    assert whole.token_bytes == 2 * config.num_key_value_heads * config.head_dim * 2
    config.layer_types = ["sliding_attention", "full_attention"] * 2
    config.sliding_window = 5
    sizes = CacheSizes.of(model, layers, 2)
    unit = sizes.token_bytes
    assert sizes.layer_bytes([9, 9, 4, 4]) == (5 * unit, 9 * unit, 4 * unit, 4 * unit)
    config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(ModelError, match=r"layer 1 of .* is 'linear_attention'"):
        CacheSizes.of(model, layers, 2)
    config.layer_types, config.kv_lora_rank = None, 8
    with pytest.raises(ModelError, match="kv_lora_rank=8"):
        CacheSizes.of(model, layers, 2)


def test_as_many_requests_fit_as_memory_holds():
    assert concurrent(100, 40, 10) == 5  # of 90 usable
    assert concurrent(100, 95, 10) == 0
    with pytest.raises(InputError, match="image tokens=0"):
        Request(1, 0, 1)


def test_a_skeleton_has_the_sizes_and_no_values(tmp_path):
    model, _ = tiny_llava(3, layers=4)
    model.config.save_pretrained(tmp_path)
    skeleton, layers = open_skeleton(str(tmp_path))
    assert len(layers) == 4
    assert {weights.device.type for weights in skeleton.parameters()} == {"meta"}
    assert weight_bytes(skeleton, 2) == weight_bytes(model, 2)
    assert torch.get_default_device().type == "cpu"
    AutoConfig.for_model("llama").save_pretrained(tmp_path / "text")
    with pytest.raises(ModelError, match="is of type 'llama'"):
        open_skeleton(str(tmp_path / "text"))


def test_measured_requests_are_answers_one_by_one(vlm):
    task, policy = Brightness(), Truncation(1, 0)
    measured = measure_requests(vlm, task, policy, 3)
    same = sum(
        vlm.generate(s.pictures, s.question, max_new_tokens=3)
        == vlm.generate(s.pictures, s.question, max_new_tokens=3, truncation=policy)
        for s in task.samples("test", 3)
    )
    assert (measured.count, measured.same) == (3, same)
    assert measured.exits == {1: 3}
    assert measured.cache_bytes < measured.cache_bytes_untouched


def test_the_command_computes_measures_and_says_json(tmp_path):
    model, processor = tiny_llava(3, layers=4)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    sizes = ["--image-tokens", "16", "--text-tokens", "10", "--answer-tokens", "4"]
    arguments = ["export-policy", "--model", str(tmp_path / "model"), *sizes]
    policy = ExitPolicy(layer=(1, 3), keep=(0, 0), signal="image_attention", thresholds=(-9.0, 0.0))
    policy.save(tmp_path / "policy.json")
    given = ["--policy", str(tmp_path / "policy.json"), "--task", "scenes-existence"]
    result = CliRunner().invoke(cli.app, [*arguments, *given, "--samples", "2", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [row["exit_layer"] for row in facts["requests"]] == [None, 1, 3]
    assert facts["measured"]["exits"] == {"1": 2}  # the threshold lets everybody go
    shown = CliRunner().invoke(cli.app, [*arguments, "--truncate", "layer=1,keep=0"])
    assert shown.exit_code == 0, shown.output
    assert "26 to 10" in shown.stdout
    assert "measured" not in shown.stdout
