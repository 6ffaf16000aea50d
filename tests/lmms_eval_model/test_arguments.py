"""What stands after --model_args: read as written, or refused in one sentence."""

from __future__ import annotations

import pytest

from vlmflow import ExitPolicy, Truncation, preset
from vlmflow.errors import InputError
from vlmflow.lmms_eval_model.arguments import Arguments, split_arguments

OWN = """
from dataclasses import dataclass
import vlmflow

@dataclass(frozen=True)
class Powered(vlmflow.Ranking):
    power: int = 1
    word: str = ""

    def scores(self, seen):
        return seen.hidden[seen.image].sum(-1)
"""


def as_lmms_eval_reads(text):
    """As lmms_eval.utils.simple_parse_args_string of 0.7.3 does: numbers become numbers."""

    def value(text):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if text.isnumeric():
            return int(text)
        try:
            return float(text)
        except ValueError:
            return text

    return {name: value(text) for name, text in split_arguments(text).items()}


def read(text):
    return Arguments.read({"pretrained": "scenes-llava", **as_lmms_eval_reads(text)})


@pytest.mark.parametrize(
    ("text", "truncation"),
    [
        ("layer=6,keep=0", Truncation(6, 0)),
        ("layer=6,keep=1", Truncation(6, 1)),
        ("layer=6,keep=1.0", Truncation(6, 1.0)),
        ("layer=2:8,keep=0.50:16,rank_by=diversity", Truncation((2, 8), (0.5, 16), "diversity")),
        ("layer=2,keep=3,rank_by=random(seed=4)", Truncation(2, 3, "random(seed=4)")),
        ("layer=2,keep=3,rank_by=random,seed=4", Truncation(2, 3, "random(seed=4)")),
        ("layer=2,keep=3,remainder=merge", Truncation(2, 3, remainder="merge")),
        ("preset=fastv", preset("fastv", 12)),
    ],
)
def test_what_removes_tokens_is_what_the_command_line_reads(text, truncation):
    for given in (text, text + ",batch_size=4,dtype=float32"):
        assert read(given).way(12) == truncation


def test_nothing_is_removed_unless_something_says_so():
    arguments = read("device=cpu,trust_remote_code=True,batch_size=16")
    assert arguments.way is None
    assert (arguments.opening, arguments.batch_size) == ({"device": "cpu"}, 16)
    assert arguments.trust_remote_code


def test_a_ranking_of_a_file_with_parameters(tmp_path, monkeypatch):
    (tmp_path / "ranks_for_lmms.py").write_text(OWN, "utf-8")
    monkeypatch.chdir(tmp_path)
    flat = read("layer=2,keep=3,rank_by=ranks_for_lmms:Powered,power=2,word=a").way(12)
    # Quotes keep lmms-eval from splitting at a comma inside brackets.
    quoted = read("layer=2,keep=3,rank_by='ranks_for_lmms:Powered(power=2,word=a)'").way(12)
    assert flat == quoted
    assert (flat.ranking.power, flat.ranking.word) == (2, "a")


def test_a_policy_of_a_file(tmp_path):
    policy = ExitPolicy(2, 0, signal="image_attention", thresholds=(-0.5,))
    policy.save(tmp_path / "policy.json")
    assert read(f"policy={tmp_path / 'policy.json'}").way(4) == policy


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pretrained=", "needs pretrained=MODEL"),
        ("layers=6", "layers='6' is not an argument.*pretrained.*layer, keep"),
        ("max_batch_size=8", "max_batch_size='8' is not an argument"),
        ("rank_by=random", "without layer and keep"),
        ("layer=6", "needs keep"),
        ("layer=6,keep=0,batchsize=4", "no setting 'batchsize'"),
        ("layer=6,keep=0,preset=fastv", "settings .*, preset and policy all remove tokens"),
        ("preset=fastv,policy=policy.json", "settings .*, preset and policy all remove tokens"),
        ("preset=fastvv", "fastvv"),
        ("policy=missing.json", "missing.json"),
        ("layer=six,keep=0", "six"),
        ("layer=6,keep=-1", "keep"),
        ("layer=6,keep=0,rank_by=nope", "nope"),
        ("layer=6,keep=0,rank_by=no_module:Nope", "no_module"),
        ("batch_size=auto", "batch_size='auto'"),
        ("batch_size=0", "batch_size='0'"),
        ("batch_size=2.5", "batch_size='2.5'"),
        ("batch_size=" + "9" * 30, "batch_size='9{30}'"),
        ("trust_remote_code=perhaps", "trust_remote_code='perhaps'"),
    ],
)
def test_what_is_unknown_or_contradicts_itself_is_named(text, named):
    with pytest.raises(InputError, match=named) as refusal:
        read(text)
    assert "\n" not in str(refusal.value)


def test_a_layer_that_the_model_lacks_is_refused_before_any_answer():
    with pytest.raises(InputError, match="layer=12, but scenes-llava has 12 decoder layers"):
        read("layer=12,keep=0,device=cpu").open()


def test_a_part_without_a_value_is_named():
    with pytest.raises(InputError, match="'keep' in 'layer=6,keep'"):
        split_arguments("layer=6,keep")
